import json
from dataclasses import dataclass

import pytest

from nearpeak.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, with a home of its own."""
    monkeypatch.setenv("NEARPEAK_HOME", str(tmp_path / "home"))

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["nearpeak", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        seen = capsys.readouterr()
        return Ran(code, seen.out, seen.err)

    return command
