from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "measurements"


@pytest.fixture
def shared():
    """The folder of published measurements, which is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the published measurements (../shared/measurements) are not here")
    return SHARED


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("NEARPEAK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NEARPEAK_CALIBRATION", raising=False)
