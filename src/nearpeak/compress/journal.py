"""The record that lets an interrupted job go on: its parameters, and what is known of each finished shard.

It lies in ``OUT.partial`` beside the unfinished checkpoint, and is written anew, atomically, after each shard.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearpeak.compress.atomic import write_json
from nearpeak.errors import UsageError

_VERSION = 1


@dataclass
class Journal:
    """A job's progress. ``finished``: for each verified shard its size and the relative error of each layer."""

    path: Path
    parameters: dict[str, Any]
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)

    def finish(self, shard: str, size: int, errors: dict[str, float]) -> None:
        """Record that ``shard`` is on disk and verified."""
        self.finished[shard] = {"bytes": size, "errors": errors}
        self.write()

    def write(self) -> None:
        """Write the journal to disk."""
        content = {"version": _VERSION, "parameters": self.parameters, "finished": self.finished}
        write_json(self.path, content)


def open_journal(path: Path, files: Path, parameters: dict[str, Any]) -> Journal:
    """The journal at ``path``, or a new one (not yet written) if there is none.

    Args:
        path: where the journal lies or will lie.
        files: the folder of the shards it speaks of.
        parameters: of the job to do; a journal of another job is not continued.

    Raises:
        UsageError: what lies there is another job's, is no journal, or speaks of a shard that has changed since.
    """
    way_out = f"delete {path.parent} to start over, or choose another out_dir"
    if not path.exists():
        if path.parent.exists() and any(path.parent.iterdir()):
            raise UsageError(f"{path.parent} exists and holds no journal of an interrupted job; {way_out}")
        return Journal(path, parameters)
    try:
        content = json.loads(path.read_bytes())
        version, earlier, finished = content["version"], content["parameters"], content["finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a journal: {error!r}; {way_out}") from error
    if version != _VERSION:
        raise UsageError(f"{path} was written by another version of nearpeak; {way_out}")
    if differing := [key for key in parameters if earlier.get(key) != parameters[key]]:
        shown = ", ".join(
            f"{key} {earlier.get(key)!r} then, {parameters[key]!r} now"
            if isinstance(parameters[key], int | str)
            else f"another {key}"
            for key in differing
        )
        raise UsageError(f"{path.parent} belongs to a job with other parameters ({shown}); {way_out}")
    for shard, facts in finished.items():
        if not (files / shard).is_file() or (files / shard).stat().st_size != facts["bytes"]:
            raise UsageError(f"{files / shard} is not what the journal says ({facts['bytes']} bytes); {way_out}")
    return Journal(path, parameters, finished)
