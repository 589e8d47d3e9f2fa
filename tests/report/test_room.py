import subprocess
import sys

import pytest

import nearpeak.export
import nearpeak.report


@pytest.mark.parametrize("room", ["report", "export"])
def test_importing_the_room_loads_nothing_heavy(room):
    heavy = ("numpy", "plotly", "rich", "duckdb", "msgspec", "torch")
    code = f"import sys, nearpeak.{room}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("room", [nearpeak.report, nearpeak.export])
def test_every_public_name_is_there(room):
    for name in room.__all__:
        assert callable(getattr(room, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = room.nothing
