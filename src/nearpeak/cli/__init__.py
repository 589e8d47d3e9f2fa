"""The command line: four verbs and four catalogues. Here lives what reads arguments and prints; no computing.

Each command's module imports the rooms it needs when it runs, so that ``--help`` starts at once.
"""

import sys

import click

from nearpeak import __version__
from nearpeak.cli import (
    accuracy,
    apply,
    calibrate,
    catalogues,
    explain,
    measurements,
    plan,
    predict,
    prove,
    simulate,
    tune,
    web,
)
from nearpeak.errors import NearpeakError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearpeak")
def nearpeak() -> None:
    """How near the hardware's peak is an ML workload, and what brings it nearer.

    \b
    Example: the best ways to serve a model on up to eight H200 under latency goals
      nearpeak plan Qwen/Qwen3-32B --gpus h200:1..8 --isl 4000 --osl 500 --ttft 0.3 --tpot 0.01
    """


for _command in (
    plan.plan,
    predict.predict,
    simulate.simulate,
    apply.apply,
    prove.prove,
    calibrate.calibrate,
    accuracy.accuracy,
    explain.explain,
    explain.fleet,
    explain.live,
    explain.search,
    catalogues.models,
    catalogues.hardware,
    catalogues.techniques,
    measurements.measurements,
    tune.tune,
    web.web,
):
    nearpeak.add_command(_command)


EXTRAS = {"numba": "simulate", "highspy": "search", "ray": "ray", "fastapi": "web", "uvicorn": "web", "torch": "torch",
          "transformers": "torch", "cryptography": "torch"}  # fmt: skip
"""The extra that brings a package which the base does without."""


def main() -> None:
    """Run the command line; errors that a person can act on end it with one message and their exit code."""
    try:
        nearpeak(standalone_mode=False)
    except NearpeakError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        click.echo(f"error: this needs {error.name}: pip install nearpeak[{EXTRAS[error.name]}]", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        click.echo(f"error: {place}{error.strerror or error}", err=True)
        sys.exit(1)
