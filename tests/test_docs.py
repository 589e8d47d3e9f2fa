"""The documentation is what the registries hold, and its commands run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from nearpeak.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
sys.path.insert(0, str(ROOT / "tools"))


def commands():
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                if line.startswith("$ nearpeak"):
                    yield pytest.param(line.removeprefix("$ "), id=f"{page.name}: {line[11:50]}")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_shown_with_a_prompt_runs(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEARPEAK_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", shlex.split(command, comments=True))
    main()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["techniques.md", "hardware.md", "models.md", "search-methods.md"])
def test_generated_pages_are_up_to_date(name):
    import write_docs

    assert (ROOT / "docs" / name).read_text() == write_docs.PAGES[name](), "run `make docs`"


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
