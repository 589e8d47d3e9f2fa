"""A Hugging Face checkpoint folder: its configuration, its safetensors shards, and the files beside them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearpeak.compress.safetensors_file import Tensor, read_header
from nearpeak.errors import NearpeakError, UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"}


@dataclass(frozen=True)
class Shard:
    """One safetensors file. ``fingerprint``: its size, its time of change and the SHA-256 of its header."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    fingerprint: str

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, its headers read and checked, its weights not read.

    Attributes:
        config: the content of ``config.json``.
        shards: in the order of their names. sharded: whether there is an index.
        companions: other files to carry along (tokenizer, generation settings, code), relative to the folder.
        left_out: weights in other formats, or safetensors files that the index does not name.
    """

    folder: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    sharded: bool
    companions: tuple[Path, ...]
    left_out: tuple[Path, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor, Shard]]:
        """Every tensor with its name and the shard it lies in."""
        for shard in self.shards:
            for name, tensor in shard.tensors.items():
                yield name, tensor, shard

    def fingerprint(self) -> dict[str, str]:
        """What the source was: a fingerprint of each shard and of the configuration."""
        config = hashlib.sha256((self.folder / CONFIG).read_bytes()).hexdigest()
        return {CONFIG: config, **{shard.name: shard.fingerprint for shard in self.shards}}


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint's configuration and headers.

    Raises:
        UsageError: the folder is not a checkpoint of safetensors files.
        NearpeakError: a file is damaged, or index and files disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder of a downloaded checkpoint")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} has no {CONFIG}; give the folder of a Hugging Face checkpoint")
    config = _read_json(folder / CONFIG)
    single, sharded = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
    if single and sharded:
        raise UsageError(f"{folder} has both {SINGLE} and {INDEX}; remove the one that does not belong to the model")
    if not single and not sharded:
        raise UsageError(f"{folder} has neither {SINGLE} nor {INDEX}; convert the weights to safetensors first")
    shards = _indexed_shards(folder) if sharded else (_read_shard(folder / SINGLE),)
    companions, left_out = _other_files(folder, {shard.name for shard in shards})
    return Checkpoint(folder, config, shards, sharded, companions, left_out)


def index(shards: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """The content of ``model.safetensors.index.json`` for tensors by shard."""
    places = {name: shard for shard, tensors in shards.items() for name in tensors}
    total = sum(t.bytes for tensors in shards.values() for t in tensors.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise NearpeakError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise NearpeakError(f"{path} should hold a JSON object, not {type(content).__name__}")
    return content


def _read_shard(path: Path) -> Shard:
    tensors, metadata, raw = read_header(path)
    stat = path.stat()
    return Shard(path, tensors, metadata, f"{stat.st_size}-{stat.st_mtime_ns}-{hashlib.sha256(raw).hexdigest()}")


def _indexed_shards(folder: Path) -> tuple[Shard, ...]:
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NearpeakError(f"{folder / INDEX} has no weight_map")
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise NearpeakError(f"{folder} lacks {', '.join(absent)}, named in {INDEX}; finish the download")
    shards = tuple(_read_shard(folder / name) for name in names)
    found = [(tensor, shard.name) for shard in shards for tensor in shard.tensors]
    if disagree := set(found) ^ set(weight_map.items()):
        tensor, shard_name = min(disagree)
        where = "its file has it not" if (tensor, shard_name) not in found else "the index does not"
        raise NearpeakError(f"{folder / INDEX} and the files disagree on {tensor} in {shard_name}: {where}")
    return shards


def _other_files(folder: Path, shards: set[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    companions: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)  # .git, .cache of the downloader
        if hidden or not path.is_file() or str(relative) in {*shards, CONFIG, INDEX}:
            continue
        weights = path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(".index.json")
        (left_out if weights else companions).append(relative)
    return tuple(companions), tuple(left_out)
