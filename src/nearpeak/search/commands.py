"""A command line as what is tuned: a template with placeholders, a build before it, a value read from its output.

``{tile}`` stands for the value of parameter ``tile``, quoted for the shell; ``{scratch}`` for a folder that a
configuration has for itself while it is measured, for what a build writes; ``{{tile}}`` for the text ``{tile}``. An
inactive parameter is the empty text. Booleans are true and false, permutations and simplexes numbers with commas.

Commands run by ``/bin/sh`` in a process group of their own, which is killed when the command has ended, has taken too
long, or nearpeak itself is ended: nothing of it runs on.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, NoReturn

from nearpeak.errors import UsageError
from nearpeak.search.measurement import Run, RunFailed

SCRATCH: Final = "scratch"
_PLACEHOLDER: Final = re.compile(r"\{\{(\w+)\}\}|(?<!\$)\{([A-Za-z_]\w*)\}")
_OUTPUT: Final = 16 * 2**20
"""Bytes of the end of an output that are read."""
_REASON: Final = 200
"""Characters of a reason for a failure."""


@dataclass(frozen=True)
class Value:
    """How the value is read: ``time`` (seconds of the command), ``json:PATH`` or a regular expression.

    A path is keys and places in lists with dots between them: ``json:runs.0.latency``. The JSON is the whole output or
    its last line. Of a regular expression the last match counts, its group if it has one.

    Raises:
        UsageError: the text is no regular expression, or one with several groups.
    """

    text: str = "time"

    def __post_init__(self) -> None:
        try:
            groups = 0 if self.text.startswith("json:") else re.compile(self.text).groups
        except re.error as error:
            raise UsageError(
                f"value {self.text!r} is no regular expression: {error}; there are also time and json:PATH"
            ) from None
        if groups > 1:
            raise UsageError(f"value {self.text!r} has {groups} groups; put one around the number, (?:...) elsewhere")

    @property
    def is_time(self) -> bool:
        """Whether it is the seconds that the command takes."""
        return self.text == "time"

    def read(self, output: str, seconds: float) -> float:
        """The value of a run that printed ``output`` and took ``seconds``.

        Raises:
            RunFailed: it is not there, or no finite number.
        """
        if self.is_time:
            return seconds
        found = self._in_json(output) if self.text.startswith("json:") else self._matched(output)
        try:
            value = float(found)
        except (TypeError, ValueError):
            raise RunFailed(f"{self.text!r} gives {found!r:.{_REASON}}, which is no number") from None
        if not math.isfinite(value):
            raise RunFailed(f"{self.text!r} gives {value}")
        return value

    def _matched(self, output: str) -> str:
        found: list[str] = re.findall(self.text, output, re.MULTILINE)
        if not found:
            raise RunFailed(f"{self.text!r} matches nothing in the output {output.strip()[-_REASON:]!r}")
        return found[-1]

    def _in_json(self, output: str) -> Any:  # noqa: ANN401 (JSON is of many types)
        try:
            found = json.loads(output)
        except ValueError:
            try:
                found = json.loads((output.strip().splitlines() or [""])[-1])
            except ValueError:
                raise RunFailed(f"the output is no JSON: {output.strip()[-_REASON:]!r}") from None
        path = self.text.removeprefix("json:")
        for key in filter(None, path.split(".")):
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                there = ", ".join(found) if isinstance(found, dict) else type(found).__name__
                raise RunFailed(f"the JSON has no {key!r} of {path!r}; it has {there:.{_REASON}}") from None
        return found


@dataclass(frozen=True)
class CommandTarget:
    """A command line that is tuned.

    Attributes:
        command: run for each repeat. names: of the parameters. build: run once before. value: how it is read.
        environment: variables beside those of nearpeak's own, templates too (not quoted). time_limit: seconds for a
            build or a run. folder: where they run; the current one by default. sign: -1 to maximise.

    Raises:
        UsageError: a template names what is no parameter, or a parameter is in no template.
    """

    command: str
    names: frozenset[str]
    build: str | None = None
    value: Value = field(default_factory=Value)
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit: float | None = None
    folder: Path | None = None
    sign: float = 1.0

    def __post_init__(self) -> None:
        if SCRATCH in self.names:
            raise UsageError(f"a parameter cannot be called {SCRATCH}: {{{SCRATCH}}} is the folder of a configuration")
        used: set[str] = set()
        for template in filter(None, (self.command, self.build, *self.environment.values())):
            named = {m[2] for m in _PLACEHOLDER.finditer(template) if m[2]}
            if unknown := sorted(named - self.names - {SCRATCH}):
                raise UsageError(
                    f"{template!r} has the placeholder {{{unknown[0]}}}; parameters are "
                    f"{', '.join(sorted(self.names))}. Write {{{{{unknown[0]}}}}} for the text itself"
                )
            used |= named
        if unused := sorted(self.names - used):
            raise UsageError(
                f"{', '.join(unused)} would change nothing: no command, build or variable has {{{unused[0]}}}"
            )

    def filled(
        self, template: str, configuration: Mapping[str, Any], scratch: str | None = None, quoted: bool = True
    ) -> str:
        """A template with a configuration's values; without a ``scratch`` folder its placeholder stays."""
        words = {name: _word(configuration[name]) if name in configuration else "" for name in self.names}
        if scratch is not None:
            words[SCRATCH] = scratch

        def put(match: re.Match[str]) -> str:
            if match[1] is not None:
                return f"{{{match[1]}}}"
            if match[2] not in words:
                return match[0]
            word = words[match[2]]
            return shlex.quote(word) if quoted and word else word

        return _PLACEHOLDER.sub(put, template)

    @contextmanager
    def prepared(self, configuration: Mapping[str, Any]) -> Iterator[Run]:
        """The configuration, built.

        Raises:
            RunFailed: the build fails or takes too long.
        """
        with tempfile.TemporaryDirectory(prefix="nearpeak-tune-", ignore_cleanup_errors=True) as scratch:
            extra = {n: self.filled(t, configuration, scratch, quoted=False) for n, t in self.environment.items()}
            environment = {**os.environ, **extra}
            if self.build is not None:
                try:
                    shell(self.filled(self.build, configuration, scratch), environment, self.folder, self.time_limit)
                except RunFailed as error:
                    raise RunFailed(f"the build failed: {error}") from None
            command = self.filled(self.command, configuration, scratch)

            def run() -> float:
                output, seconds = shell(command, environment, self.folder, self.time_limit)
                return self.sign * self.value.read(output, seconds)

            yield run


def _word(value: Any) -> str:  # noqa: ANN401 (a parameter's value)
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def shell(
    command: str, environment: Mapping[str, str], folder: Path | None = None, time_limit: float | None = None
) -> tuple[str, float]:
    """Run a command; the end of its standard output, and the seconds it took.

    Raises:
        RunFailed: it does not end with exit code 0 in time; the text says how, with the last line it wrote as an error.
    """
    late = threading.Event()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ending_on_sigterm():
        begun = time.perf_counter()
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment),
            cwd=folder, start_new_session=True,
        )  # fmt: skip

        def end() -> None:
            late.set()
            _kill(process)

        # A timer, since wait(timeout=...) polls, and what it measures is then off by up to 50 ms.
        timer = threading.Timer(time_limit or 0, end)
        try:
            if time_limit is not None:
                timer.start()
            code = process.wait()
            seconds = time.perf_counter() - begun
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
        if late.is_set():
            raise RunFailed(f"it took longer than {time_limit:g} s")
        output = _end_of(out)
        if code != 0:
            ended = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            said = (_end_of(err).strip() or output.strip()).splitlines()
            raise RunFailed(f"{ended}: {said[-1].strip()[:_REASON]}" if said else ended)
        return output, seconds


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside, being terminated is an exception, so that what runs for us is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_of(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _OUTPUT))
    return file.read().decode(errors="replace")
