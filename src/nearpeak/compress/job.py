"""One compression job: what is read, what each tensor becomes, and what that takes in disk and memory.

Everything here is known from headers, before any weight is read.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nearpeak.compress.checkpoint import CONFIG, INDEX, Checkpoint, Shard, index, read_checkpoint
from nearpeak.compress.pack_quantized import quantization_config, stored_as
from nearpeak.compress.quantizers import Scheme
from nearpeak.compress.safetensors_file import Shape, layout
from nearpeak.compress.targets import Selection, select
from nearpeak.errors import UsageError

_WORKSPACE = 96 * 2**20  # bytes: copy buffers, float32 blocks, the allocator's slack


@dataclass(frozen=True)
class Job:
    """A checkpoint, a technique, a scheme, and the layers it falls on."""

    source: Checkpoint
    technique: str
    scheme: Scheme
    selection: Selection

    @cached_property
    def linears(self) -> frozenset[str]:
        """Names of the weights to quantize."""
        return frozenset(f"{module}.weight" for module in self.selection.linears)

    def parameters(self) -> dict[str, Any]:
        """What decides the bytes written. Two jobs with equal parameters write equal files."""
        return {
            "technique": self.technique,
            "bits": self.scheme.bits,
            "group": self.scheme.group,
            "linears": list(self.selection.linears),
            "source": self.source.fingerprint(),
        }

    def contents(self, shard: Shard) -> dict[str, tuple[str, Shape]]:
        """Number format and shape of each tensor that the written shard holds."""
        stored: dict[str, tuple[str, Shape]] = {}
        for name, tensor in shard.tensors.items():
            if name in self.linears:
                stored |= stored_as(name.removesuffix(".weight"), tensor, self.scheme)
            else:
                stored[name] = (tensor.dtype, tensor.shape)
        return stored

    def metadata(self, shard: Shard) -> dict[str, str]:
        """Metadata of the written shard; loaders ask for ``format``."""
        return shard.metadata or {"format": "pt"}

    def documents(self) -> dict[str, dict[str, Any]]:
        """JSON files of the written checkpoint: configuration and, where there are several shards, the index."""
        kept = sorted({*self.selection.kept, "lm_head"})
        documents = {CONFIG: {**self.source.config, "quantization_config": quantization_config(self.scheme, kept)}}
        if self.source.sharded:
            documents[INDEX] = index({s.name: layout(self.contents(s), {})[1] for s in self.source.shards})
        return documents


def prepare(model_dir: str | Path, technique: str, bits: int, group: int, ignore: Sequence[str]) -> Job:
    """Read the headers and decide what becomes of each tensor. Errors as in ``read_checkpoint`` and ``select``."""
    source = read_checkpoint(model_dir)
    scheme = Scheme(bits, group)
    tensors = {}
    for name, tensor, shard in source.tensors():
        if name in tensors:
            raise UsageError(f"{shard.path} holds {name} a second time; two shards of the checkpoint contradict")
        tensors[name] = tensor
    return Job(source, technique, scheme, select(tensors, source.config, scheme, ignore))


@dataclass(frozen=True)
class Estimate:
    """What a job takes. Bytes throughout.

    Attributes:
        read: size of the source's shards.
        written: size of all files of the result, its report excepted.
        remaining: the part of ``written`` that no earlier, interrupted run has written.
        peak_memory: most memory held at once beyond the interpreter and torch themselves: one layer's weights, codes
            and words. It does not grow with the checkpoint or its shards.
        largest_shard: size of the largest file read.
        free_disk, free_memory: what the machine has; ``free_memory`` is None where the system does not say.
    """

    read: int
    written: int
    remaining: int
    peak_memory: int
    largest_shard: int
    free_disk: int
    free_memory: int | None

    def refuse_unless_fits(self) -> None:
        """Raise UsageError if disk or memory do not suffice."""
        if self.remaining > self.free_disk:
            raise UsageError(
                f"{self.remaining / 1e9:.2f} GB would be written and {self.free_disk / 1e9:.2f} GB are free; "
                "make room or choose another out_dir"
            )
        if self.free_memory is not None and self.peak_memory > self.free_memory:
            raise UsageError(
                f"the largest layer takes {self.peak_memory / 1e9:.2f} GB of memory and "
                f"{self.free_memory / 1e9:.2f} GB are free; end other programs or use a larger machine"
            )


def predict(job: Job, out: Path, finished: Mapping[str, int]) -> Estimate:
    """Disk and memory of ``job`` when written to ``out``; ``finished``: bytes of the shards already there."""
    source = job.source
    shards = sum(
        max((t.end for t in places.values()), default=len(head))
        for head, places in (layout(job.contents(s), job.metadata(s)) for s in source.shards)
    )
    documents = sum(len(_text(document)) for document in job.documents().values())
    companions = sum((source.folder / path).stat().st_size for path in source.companions)
    written = shards + documents + companions
    sizes = [shard.path.stat().st_size for shard in source.shards]
    return Estimate(
        read=sum(sizes),
        written=written,
        remaining=written - sum(finished.values()),
        peak_memory=_peak_memory(job),
        largest_shard=max(sizes),
        free_disk=shutil.disk_usage(out.parent).free,
        free_memory=_free_memory(),
    )


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _peak_memory(job: Job) -> int:
    """One layer's stored weights, an int8 code and a byte of scratch for each, its words and two copies of them."""
    largest = 0
    for name, tensor, _ in job.source.tensors():
        if name in job.linears:
            elements = math.prod(tensor.shape)
            largest = max(largest, tensor.bytes + 2 * elements + 3 * elements * job.scheme.bits // 8)
    return largest + _WORKSPACE


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo") as lines:
            found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return found["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
