"""A transformers model whose layers are not in memory: each is read from disk just before it runs, into few buffers.

Aminabadi et al., "DeepSpeed Inference", SC 2022 (arXiv 2207.00032), the mode in which weights lie on NVMe. A thread
reads layer ``k + 1`` while layer ``k`` computes; with ``n`` buffers it may be ``n - 1`` layers ahead, and it goes on
with the first layer while the last computes. Embedding, head and norms stay. What is held never exceeds a cap in bytes;
files are read past the page cache, so that the operating system holds no second copy. ``simulate.layer_streaming``
predicts it by the recurrence of ``simulate.line``.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import torch
from torch import nn

from nearpeak.decode.feeding import Hollow, bytes_of, fed, hollow, parameters_on_meta, random_gpt, transformers_model
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.simulate.line import passes
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names in safetensors files of the formats that layers may have."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its bytes from ``start``."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Tensors of all safetensors files of a folder by name; their headers alone are read.

    Raises:
        NearpeakError: there is no such file, or a tensor has a format that layers cannot have.
    """
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, t in header.items():
            if t["dtype"] not in DTYPES:
                raise NearpeakError(f"{path}: {name} is {t['dtype']}; layers can stream as {', '.join(DTYPES)}")
            found[name] = Stored(path, 8 + length + t["data_offsets"][0], DTYPES[t["dtype"]], tuple(t["shape"]))
    if not found:
        raise NearpeakError(f"{folder} has no safetensors file; save the model with save_pretrained")
    return found


@dataclass
class Clock:
    """Seconds that reading took, and that layers waited for it."""

    fetched: float = 0.0
    waited: float = 0.0
    passes: int = 0


class Disk:
    """Layers from files: read when they are asked for, or by a thread that is ahead by all buffers but one.

    Args:
        of: the model. stored: its tensors. buffers: how many layers are held. device: where they compute.
        prefetch: whether a thread reads ahead. bandwidth: bytes/s that the disk is held to, to stand for a slower one.
    """

    def __init__(
        self, of: Hollow, stored: Mapping[str, Stored], buffers: int, device: str = "cpu", prefetch: bool = True,
        bandwidth: float = float("inf"),
    ) -> None:  # fmt: skip
        self.bandwidth = bandwidth
        self.of, self.stored, self.device, self.clock = of, stored, torch.device(device), Clock()
        self.files = {path: os.open(path, os.O_RDONLY) for path in {s.path for s in stored.values()}}
        cuda: Any = torch.cuda  # its constructor has no types
        self.side = cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.staging = None if self.side is None else torch.empty(of.size, dtype=torch.uint8, pin_memory=True)
        self.used: dict[int, Any] = {}
        self.free: SimpleQueue[torch.Tensor | None] = SimpleQueue()
        self.ready: SimpleQueue[tuple[int, torch.Tensor] | BaseException] = SimpleQueue()
        for _ in range(buffers):
            self.free.put(torch.empty(of.size, dtype=torch.uint8, device=self.device))
        self.thread = threading.Thread(target=self._ahead, daemon=True) if prefetch else None
        if self.thread:
            self.thread.start()

    def take(self, k: int) -> torch.Tensor:
        """The buffer with layer ``k``; layers are taken in their order, again and again."""
        start = perf_counter()
        if self.thread is None:
            buffer = self.free.get()
            assert buffer is not None
            self._read(k, buffer)
        else:
            came = self.ready.get()
            if isinstance(came, BaseException):
                raise NearpeakError(f"a layer could not be read: {came}") from came
            read, buffer = came
            if read != k:
                raise NearpeakError(f"layer {k} ran where layer {read} was read ahead: layers must run in their order")
        self.clock.waited += perf_counter() - start
        self.clock.passes += k == 0
        return buffer

    def give(self, k: int, buffer: torch.Tensor) -> None:
        """The layer that lies in ``buffer`` has been launched."""
        if self.side is not None:
            self.used[buffer.data_ptr()] = torch.cuda.current_stream(self.device).record_event()
        self.free.put(buffer)

    def close(self) -> None:
        """End the thread and close the files."""
        if self.thread:
            self.free.put(None)
            self.thread.join()
        for file in self.files.values():
            os.close(file)

    def _ahead(self) -> None:
        try:
            for k in cycle(range(len(self.of.layers))):
                if (buffer := self.free.get()) is None:
                    return
                self._read(k, buffer)
                self.ready.put((k, buffer))
        except BaseException as error:
            self.ready.put(error)

    def _read(self, k: int, buffer: torch.Tensor) -> None:
        """Fill ``buffer`` with layer ``k``: through pinned memory where that is on a GPU, after its last use."""
        start = perf_counter()
        into = buffer if self.staging is None else self.staging
        for piece in self.of.pieces[k]:
            read(self.files, self.stored[piece.full_name], into[piece.start : piece.start + piece.size])
        sleep(max(0.0, sum(p.size for p in self.of.pieces[k]) / self.bandwidth - (perf_counter() - start)))
        if self.side is not None:
            if (done := self.used.pop(buffer.data_ptr(), None)) is not None:
                done.synchronize()
            with torch.cuda.stream(self.side):
                buffer.copy_(into, non_blocking=True)
            self.side.synchronize()
        self.clock.fetched += perf_counter() - start


def read(files: Mapping[Path, int], tensor: Stored, into: torch.Tensor) -> None:
    """Read a tensor's bytes into uint8 memory, and have the operating system forget them.

    Raises:
        NearpeakError: the file ends before the tensor does.
    """
    file, view, done = files[tensor.path], bytes_of(into), 0
    while done < tensor.size:
        count = os.preadv(file, [view[done:]], tensor.start + done)
        if not count:
            raise NearpeakError(f"{tensor.path} ends at byte {tensor.start + done}; copy or download it again")
        done += count
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, tensor.start, tensor.size, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Streamed:
    """A model that streams. ``held``: bytes of weights in memory; ``whole``: of all weights; ``buffers``: of layers."""

    model: Any
    held: int
    whole: int
    buffers: int
    clock: Clock = field(default_factory=Clock)


@contextmanager
def streamed(
    folder: str | Path, cap: float, prefetch: bool = True, buffers: int = 2, device: str = "cpu",
    bandwidth: float = float("inf"),
) -> Iterator[Streamed]:  # fmt: skip
    """A causal language model of a folder whose layers stream from disk; call ``.model`` as any transformers model.

    Args:
        cap: bytes of weights that may be in memory at once. buffers: layers held, at most.

    Raises:
        UsageError: the cap does not hold what stays and the buffers that are needed (two to read ahead, else one).
        NearpeakError: no checkpoint, or one that lacks a tensor.
    """
    path = Path(folder)
    stored = stored_tensors(path)
    with parameters_on_meta():
        model = transformers_model(path, weights=False)
    of = hollow(model)
    streaming = {p.full_name for pieces in of.pieces for p in pieces}
    staying = {name: p for name, p in model.named_parameters() if name not in streaming}
    wanted = {p.full_name: p.meta for pieces in of.pieces for p in pieces} | staying
    for name, p in wanted.items():
        if name not in stored or (stored[name].shape, stored[name].dtype) != (tuple(p.shape), p.dtype):
            raise NearpeakError(f"{path} has no {name} of shape {list(p.shape)} and {p.dtype}")
    rest = sum(stored[name].size for name in staying)
    room, least = int((cap - rest) // of.size), 2 if prefetch else 1
    if room < least:
        raise UsageError(
            f"a cap of {cap:.4g} bytes: {rest} bytes stay and {least} layers of {of.size} bytes must fit beside them; "
            f"give at least {rest + least * of.size}"
        )
    _load(model, staying, stored, device)
    count = min(buffers, room)
    disk = Disk(of, stored, count, device, prefetch, bandwidth)
    whole = sum(s.size for s in stored.values())
    try:
        with fed(of, disk):
            yield Streamed(model, rest + count * of.size, whole, count, disk.clock)
    finally:
        disk.close()


def _load(model: Any, staying: Mapping[str, nn.Parameter], stored: Mapping[str, Stored], device: str) -> None:  # noqa: ANN401
    files = {path: os.open(path, os.O_RDONLY) for path in {s.path for s in stored.values()}}
    for name in staying:
        data = torch.empty(stored[name].size, dtype=torch.uint8)
        read(files, stored[name], data)
        owner, _, leaf = name.rpartition(".")
        value = data.view(stored[name].dtype).view(stored[name].shape).to(device)
        model.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    for file in files.values():
        os.close(file)
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


@dataclass(frozen=True)
class Compared:
    """A model that streams beside the same model in memory.

    Attributes:
        identical: whether the logits of all passes are equal to the last bit.
        resident, serial, prefetch: seconds of a pass: weights in memory, read when they are needed, and read ahead.
        fetch, waited: seconds of a pass that reading takes one after another, and that layers wait where it is ahead.
        predicted: seconds of a pass that is ahead, from those of serial reading. streamed: what was in memory.
    """

    identical: bool
    resident: float
    serial: float
    prefetch: float
    fetch: float
    waited: float
    predicted: float
    streamed: Streamed


def compare(
    folder: str | Path, cap: float, tokens: torch.Tensor, repeats: int = 5, buffers: int = 2, device: str = "cpu",
    bandwidth: float = float("inf"),
) -> Compared:  # fmt: skip
    """Logits and medians of seconds of whole passes over ``tokens`` ``[batch, length]``, three ways by turns.

    Each measured pass follows another at once, so that what was read ahead while nothing ran does not count.
    """
    ids = tokens.to(device)

    def run(model: Any) -> tuple[float, torch.Tensor]:  # noqa: ANN401
        start = perf_counter()
        logits = model(input_ids=ids, use_cache=False).logits.cpu()
        return perf_counter() - start, logits

    def steady(of: Streamed) -> tuple[float, float, float, torch.Tensor]:
        run(of.model)
        fetched, waited = of.clock.fetched, of.clock.waited
        seconds, logits = run(of.model)
        return seconds, of.clock.fetched - fetched, of.clock.waited - waited, logits

    resident = transformers_model(Path(folder), weights=True).to(device)
    times: list[tuple[float, ...]] = []
    identical = True
    with (
        torch.inference_mode(),
        streamed(folder, cap, True, buffers, device, bandwidth) as ahead,
        streamed(folder, cap, False, 1, device, bandwidth) as serial,
    ):
        run(resident)
        for _ in range(repeats):
            alone, expected = run(resident)
            late, fetch, _, first = steady(serial)
            early, _, waited, second = steady(ahead)
            identical &= torch.equal(first, expected) and torch.equal(second, expected)
            times.append((alone, late, early, fetch, waited))
    alone, late, early, fetch, waited = (median(column) for column in zip(*times, strict=True))
    layers = resident.config.get_text_config().num_hidden_layers
    each = [fetch / layers] * layers, [(late - fetch) / layers] * layers
    return Compared(identical, alone, late, early, fetch, waited, float(passes(*each, ahead.buffers)[1]), ahead)


def save_random_gpt(folder: Path, layers: int, hidden: int, seed: int = 0) -> Path:
    """Write a GPT-2 of random weights; return the folder.

    The files are on the disk itself when this returns: what the page cache has not written yet, it cannot forget.
    """
    random_gpt(layers, hidden, seed).save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return folder


def _explain(
    model: str | None, layers: int, hidden: int, cap: float, batch: int, isl: int, buffers: int, repeats: int,
    device: str, bandwidth: float | None, seed: int,
) -> Explanation:  # fmt: skip
    require_positive(bandwidth=1.0 if bandwidth is None else bandwidth)
    require_positive(layers=layers, hidden=hidden, cap=cap, batch=batch, isl=isl, buffers=buffers, repeats=repeats)
    with TemporaryDirectory() as temporary:
        folder = save_random_gpt(Path(temporary), layers, hidden, seed) if model is None else Path(model)
        whole = sum(s.size for s in stored_tensors(folder).values())
        tokens = torch.randint(100, (batch, isl), generator=torch.Generator().manual_seed(seed))
        found = compare(folder, cap * whole, tokens, repeats, buffers, device, bandwidth or float("inf"))
    held = found.streamed.held
    return Explanation(
        {
            "identical_logits": found.identical, "model_memory": whole, "cap_memory": cap * whole, "held_memory": held,
            "buffers": found.streamed.buffers, "fetch_time": found.fetch, "waited_time": found.waited,
        },
        (
            Table.of(
                "Seconds of a pass",
                weights=["in memory", "read when needed", "read ahead", "read ahead, predicted"],
                pass_time=[found.resident, found.serial, found.prefetch, found.predicted],
            ),
        ),
        (
            f"Reading ahead takes {found.prefetch / found.serial:.2f} of the time of reading when needed, with "
            f"{100 * held / whole:.3g} % of the weights in memory; layers wait {found.waited / found.fetch:.2f} of the "
            "time that reading takes.",
            f"Logits are {'' if found.identical else 'NOT '}the same to the last bit as those of the model in memory.",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "layer-streaming",
    "How fast does a model run here whose layers stream from disk under a cap on memory?",
    "Aminabadi et al., DeepSpeed Inference: Enabling Efficient Inference of Transformer Models at Unprecedented Scale, "
    "SC 2022 (arXiv 2207.00032)",
    (
        Option("model", str, "Folder of a checkpoint; a GPT-2 of random weights if not given.", None),
        Option("layers", int, "Layers of the random model.", 24),
        Option("hidden", int, "Width of the random model.", 512),
        Option("cap", float, "Share of the weights that may be in memory.", 0.25),
        Option("batch", int, "Sequences.", 4),
        Option("isl", int, "Tokens of each.", 16),
        Option("buffers", int, "Layers in memory at once, at most.", 2),
        Option("repeats", int, "Measured passes of each kind.", 5),
        Option("device", str, "cpu or cuda.", "cpu"),
        Option("bandwidth", float, "Bytes/s that the disk is held to; its own if not given.", None),
        Option("seed", int, "Of weights and tokens.", 0),
    ),
    _explain,
    "--layers 24 --hidden 512 --cap 0.25",
)
