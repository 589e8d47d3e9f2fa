"""What the tests of search share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def measurements() -> Path:
    """The folder of published measurements; skips where it is not beside the project."""
    folder = Path(__file__).parents[3] / "shared/measurements"
    if not folder.is_dir():
        pytest.skip("the published measurements (../shared/measurements) are not here")
    return folder
