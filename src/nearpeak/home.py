"""Where nearpeak keeps what belongs to the user: measurements and calibrations."""

import os
import sys
from pathlib import Path


def home() -> Path:
    """``$NEARPEAK_HOME``, or else the folder ``nearpeak`` in the user's data directory. It may not exist yet."""
    chosen = os.environ.get("NEARPEAK_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nearpeak"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "nearpeak"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nearpeak"
