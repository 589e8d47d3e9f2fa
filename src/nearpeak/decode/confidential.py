"""Layers that reach a device through real AES-GCM: encrypted when they are asked for, or ahead under guessed counters.

Tan et al., "PipeLLM: Fast and Confidential Large Language Model Services with Speculative Pipelined Encryption", ASPLOS
2025 (arXiv 2411.03357). Weights of a transformers model lie in the host's memory and its layers in few buffers of the
device. In confidential mode a copy is encrypted by the host under a counter, and the device decrypts it under its own
counter, which goes up by one per copy: a ciphertext sent out of turn does not authenticate, so what arrives proves that
the order was kept. Three ways to bring layer ``k + 1`` while layer ``k`` computes:

- *clear*: a thread copies it.
- *on demand*: the thread that asks encrypts it first, as drivers do, and launches layer ``k`` when that is done.
- *ahead*: a thread encrypts what is guessed to come next (``simulate.speculation``).

The device's own work, copying or decrypting, is on that same thread in all three.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import PriorityQueue
from statistics import median
from threading import Thread
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from nearpeak.decode.feeding import Hollow, bytes_of, fed, hollow, random_gpt
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.simulate.cipher import MODES, Mode
from nearpeak.simulate.speculation import Channel, Predictor, Sealed
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

TAG = 16
"""Bytes of an AES-GCM tag."""
NONCE = 12
DEVICE, DEMAND = -2, -1
"""What goes before ciphertexts that are made ahead, which come in the order of their counters."""


def aes() -> Any:  # noqa: ANN401 (a class of cryptography)
    """AES-GCM of the ``cryptography`` package.

    Raises:
        NearpeakError: it is not installed, or too old to encrypt into given memory.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as e:
        raise NearpeakError("encryption needs cryptography: pip install nearpeak[torch]") from e
    if not hasattr(AESGCM, "encrypt_into"):
        raise NearpeakError("encryption needs cryptography 47 or later: pip install -U nearpeak[torch]")
    return AESGCM


class Worker:
    """One thread that does what is most urgent first; of equally urgent work, what came first."""

    def __init__(self) -> None:
        self.jobs: PriorityQueue[tuple[int, int, Callable[[], Any] | None, Future[Any]]] = PriorityQueue()
        self.order = itertools.count()
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, urgency: int, job: Callable[[], Any] | None) -> "Future[Any]":
        """Do a job; the least number is the most urgent. None ends the thread."""
        future: Future[Any] = Future()
        self.jobs.put((urgency, next(self.order), job, future))
        return future

    def _run(self) -> None:
        while True:
            _, _, job, future = self.jobs.get()
            if job is None:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)


@dataclass
class Count:
    """What a feed did: copies, copies of nothing, ciphertexts that were guessed rightly, and all that were made."""

    copies: int = 0
    nops: int = 0
    hits: int = 0
    encrypted: int = 0


class Swap:
    """Feeds layers from host memory to a device with ``buffers`` buffers, the next one while the current one computes.

    Args:
        of: the model. weights: of each layer, as it lies in a buffer, uint8. mode: see the module.
        depth: ciphertexts ahead. slack: see ``Channel``. wrong: share of guesses that are forced to be another layer.
        verify: compare what arrives with what was sent, to the last bit.
    """

    def __init__(
        self, of: Hollow, weights: Sequence[torch.Tensor], mode: Mode, depth: int = 3, slack: int = 1,
        wrong: float = 0.0, seed: int = 0, verify: bool = False, buffers: int = 2,
    ) -> None:  # fmt: skip
        if mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.of, self.weights, self.mode, self.depth, self.wrong, self.verify = of, weights, mode, depth, wrong, verify
        self.plain = [bytes_of(w) for w in weights]
        self.versions = [0] * len(weights)
        self.key = aes()(np.random.default_rng(seed).bytes(32))
        self.channel, self.predictor, self.received = Channel(slack), Predictor(), 0
        self.rng, self.count, self.exact = np.random.default_rng(seed), Count(), 0
        self.forced: dict[int, int] = {}
        self.sealed: dict[Sealed, tuple[Future[Any], bytearray]] = {}
        self.spare: list[bytearray] = []
        self.free = [torch.empty(of.size, dtype=torch.uint8) for _ in range(buffers)]
        self.coming: tuple[int, list[Future[Any]], torch.Tensor] | None = None
        self.worker = Worker()
        for layer in range(len(weights)):
            self.predictor.left(layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for future, _ in self.sealed.values():
            future.cancel()
        self.worker.submit(DEMAND, None)
        self.worker.thread.join()

    def take(self, k: int) -> torch.Tensor:
        """The buffer with layer ``k``; the next layer is sent for before this one is launched."""
        if self.coming is None:
            self._ask(k)
        assert self.coming is not None
        layer, arrived, buffer = self.coming
        if layer != k:
            raise NearpeakError(f"layer {k} ran where layer {layer} was sent for: layers must run in their order")
        self._ask((k + 1) % len(self.weights))
        for future in arrived:
            future.result()
        return buffer

    def give(self, k: int, buffer: torch.Tensor) -> None:
        """Layer ``k`` has run."""
        self.free.append(buffer)
        self.predictor.left(k)

    def write(self, k: int, weights: torch.Tensor) -> None:
        """Change a layer in host memory: what was encrypted of it before is stale, and nothing else is."""
        self.versions[k] += 1
        self.weights[k].copy_(weights)
        if self.mode == "ahead":
            self._guess()

    def _ask(self, k: int) -> None:
        """Send for layer ``k``."""
        buffer = self.free.pop()
        self.count.copies += 1
        arrives: list[Future[Any]] = []
        if self.mode == "clear":
            job: Callable[[], Any] = partial(self._copy, k, buffer)
        else:
            cipher = self._on_demand(k) if self.mode == "on_demand" else self._ahead(k, arrives)
            job = partial(self._arrive, k, buffer, cipher)
        self.coming = (k, [*arrives, self.worker.submit(DEVICE, job)], buffer)
        if self.mode == "ahead":
            self.predictor.came(k)
            self._guess()

    def _seal(self, k: int, counter: int, into: bytearray) -> None:
        self.key.encrypt_into(counter.to_bytes(NONCE, "big"), self.plain[k], None, memoryview(into)[: self._sent(k)])

    def _sent(self, k: int) -> int:
        return len(self.plain[k]) + TAG

    def _memory(self) -> bytearray:
        return self.spare.pop() if self.spare else bytearray(self.of.size + TAG)

    def _on_demand(self, k: int) -> bytearray:
        sent, into = self.channel.send(k, self.versions[k]), self._memory()
        self._forget(sent.lost)
        self._seal(k, sent.counter, into)
        self.count.encrypted += 1
        return into

    def _ahead(self, k: int, arrives: "list[Future[Any]]") -> bytearray:
        """The ciphertext that waits for a counter to come, behind copies of nothing up to it; else one made now."""
        found = next((s for s in self.channel.waiting if (s.item, s.version) == (k, self.versions[k])), None)
        if found is None:
            return self._on_demand(k)
        sent = self.channel.send(k, self.versions[k])
        self._forget(sent.lost)
        for counter in range(sent.counter - sent.nops, sent.counter):
            nothing = self.key.encrypt(counter.to_bytes(NONCE, "big"), b"", None)
            arrives.append(self.worker.submit(DEVICE, partial(self._nothing, nothing)))
        self.count.nops += sent.nops
        self.count.hits += 1
        future, into = self.sealed.pop(found)
        if future.cancel():  # not begun: the thread that asks need not wait for its turn
            self._seal(k, sent.counter, into)
        else:
            future.result()
        return into

    def _guess(self) -> None:
        """Let the thread encrypt what is guessed to come next."""
        guesses = []
        for i, layer in enumerate(self.predictor.ahead(self.depth)):
            at = self.count.copies + i
            if at not in self.forced:
                other = self.rng.random() < self.wrong and len(self.weights) > 1
                self.forced[at] = int(self.rng.integers(1, len(self.weights))) if other else 0
            guess = (layer + self.forced[at]) % len(self.weights)
            guesses.append((guess, self.versions[guess]))
        new, vain = self.channel.foresee(guesses)
        self._forget(vain)
        for s in new:
            into = self._memory()
            self.sealed[s] = self.worker.submit(s.counter, partial(self._seal, s.item, s.counter, into)), into
            self.count.encrypted += 1

    def _forget(self, sealed: Sequence[Sealed]) -> None:
        for s in sealed:
            future, into = self.sealed.pop(s)
            if future.cancel():
                self.count.encrypted -= 1
                self.spare.append(into)
            # One that is being made keeps its memory, which is let go when it is done.

    def _copy(self, k: int, buffer: torch.Tensor) -> None:
        np.copyto(buffer.numpy()[: len(self.plain[k])], self.weights[k].numpy())

    def _arrive(self, k: int, buffer: torch.Tensor, cipher: bytearray) -> None:
        """The device's part: decrypt under its own counter."""
        into, data = bytes_of(buffer)[: len(self.plain[k])], memoryview(cipher)[: self._sent(k)]
        self.key.decrypt_into(self.received.to_bytes(NONCE, "big"), data, None, into)
        self.received += 1
        self.spare.append(cipher)
        if self.verify:
            if not torch.equal(buffer[: len(into)], self.weights[k]):
                raise NearpeakError(f"layer {k} did not arrive as it was sent")
            self.exact += 1

    def _nothing(self, cipher: bytes) -> None:
        self.key.decrypt(self.received.to_bytes(NONCE, "big"), cipher, None)
        self.received += 1


def host_weights(model: Any) -> tuple[Hollow, list[torch.Tensor]]:  # noqa: ANN401 (a transformers model)
    """Take the weights of a model's layers out of it, into one uint8 tensor a layer."""
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    of = hollow(model)
    weights = []
    for pieces in of.pieces:
        packed = torch.zeros(pieces[-1].start + pieces[-1].size, dtype=torch.uint8)
        for p in pieces:
            packed[p.start : p.start + p.size] = own[p.full_name].contiguous().view(-1).view(torch.uint8)
        weights.append(packed)
    return of, weights


@dataclass(frozen=True)
class Compared:
    """Three ways to bring layers to a device.

    Attributes:
        identical: whether all logits are those of the model in memory, to the last bit.
        seconds: of a pass by mode. counts: by mode, over all passes.
    """

    identical: bool
    seconds: dict[Mode, float]
    counts: dict[Mode, Count]

    def loss(self, mode: Mode) -> float:
        """Share of the throughput in the clear that a mode loses."""
        return 1 - self.seconds["clear"] / self.seconds[mode]


def compare(
    model: Any,  # noqa: ANN401 (a transformers model)
    tokens: torch.Tensor,
    repeats: int = 5,
    wrong: float = 0.0,
    seed: int = 0,
) -> Compared:
    """Medians of seconds of a pass over ``tokens`` ``[batch, length]``, the three modes by turns.

    The model's layers lose their weights to the host's memory. Each measured pass follows another at once; in a first
    round, which does not count, all that arrives is compared with what was sent.
    """
    with torch.inference_mode():
        expected = model(input_ids=tokens, use_cache=False).logits
        of, weights = host_weights(model)
        swaps = {mode: Swap(of, weights, mode, wrong=wrong, seed=seed, verify=True) for mode in MODES}
        times: dict[Mode, list[float]] = {mode: [] for mode in MODES}
        identical = True
        for repeat in range(repeats + 1):
            for mode, swap in swaps.items():
                with fed(of, swap):
                    for _ in range(2):
                        start = perf_counter()
                        logits = model(input_ids=tokens, use_cache=False).logits
                        seconds = perf_counter() - start
                        identical &= torch.equal(logits, expected)
                swap.verify = False
                if repeat:
                    times[mode].append(seconds)
        for swap in swaps.values():
            swap.__exit__(None, None, None)
    counts = {mode: swap.count for mode, swap in swaps.items()}
    return Compared(identical, {mode: median(t) for mode, t in times.items()}, counts)


def _explain(
    layers: int, hidden: int, batch: int, isl: int, wrong: float, repeats: int, threads: int, seed: int
) -> Explanation:
    require_positive(layers=layers, hidden=hidden, batch=batch, isl=isl, repeats=repeats, threads=threads)
    if not 0 <= wrong < 1:
        raise UsageError(f"wrong must be 0 or more and below 1, not {wrong:g}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tokens = torch.randint(1000, (batch, isl), generator=torch.Generator().manual_seed(seed))
        found = compare(random_gpt(layers, hidden, seed), tokens, repeats, wrong, seed)
    finally:
        torch.set_num_threads(before)
    modes = list(MODES)
    ahead = found.counts["ahead"]
    return Explanation(
        {"identical_logits": found.identical, **{f"{m}_loss_share": found.loss(m) for m in modes[1:]}},
        (
            Table.of(
                "A pass through all layers",
                mode=[m.replace("_", " ") for m in modes],
                pass_time=[found.seconds[m] for m in modes],
                copies=[found.counts[m].copies for m in modes],
                encrypted=[found.counts[m].encrypted for m in modes],
                guessed=[found.counts[m].hits for m in modes],
                nops=[found.counts[m].nops for m in modes],
            ),
        ),
        (
            f"Encrypted on demand {100 * found.loss('on_demand'):.3g} % of throughput is lost, ahead "
            f"{100 * found.loss('ahead'):.3g} %; {ahead.hits} of {ahead.copies} layers were guessed rightly, and "
            f"{ahead.encrypted - ahead.copies} ciphertexts made in vain. What was decrypted is what was sent.",
        ),
    )


TOPIC = Topic(
    "confidential",
    "What does encrypting every layer's copy cost here, and how much of it does encrypting ahead hide?",
    "Tan et al., PipeLLM: Fast and Confidential Large Language Model Services with Speculative Pipelined Encryption, "
    "ASPLOS 2025 (arXiv 2411.03357)",
    (
        Option("layers", int, "Layers of a GPT-2 of random weights.", 24),
        Option("hidden", int, "Its width.", 512),
        Option("batch", int, "Sequences.", 4),
        Option("isl", int, "Tokens of each.", 32),
        Option("wrong", float, "Share of guesses that are forced to be wrong.", 0.0),
        Option("repeats", int, "Measured passes of each mode.", 5),
        Option("threads", int, "Threads of torch; encryption has one of its own.", 1),
        Option("seed", int, "Of weights, tokens, key and wrong guesses.", 0),
    ),
    _explain,
    "--layers 24 --hidden 512 --wrong 0.2",
)
