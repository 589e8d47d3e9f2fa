"""A folder of launch files that is there whole or not at all."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nearpeak.errors import UsageError


def write(files: Mapping[str, str], directory: Path) -> None:
    """Write files (name: text) into a new folder; scripts are made executable.

    Raises:
        UsageError: the folder exists, or cannot be written.
    """
    if directory.exists() or directory.is_symlink():
        raise UsageError(f"{directory} exists; remove it or name another folder")
    staging = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        for name, text in files.items():
            path = staging / name
            path.write_text(text, encoding="utf-8", newline="\n")
            path.chmod(0o755 if name.endswith(".sh") else 0o644)
        staging.chmod(0o755)
        staging.rename(directory)
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror}; name a folder that you may write") from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)
