"""Tensors of a decode step that live in a remote pool and are paged in ahead by the order of the graph.

Of a GPU's local memory a window holds the tensors of the operator that runs and of the ``lookahead`` ones after it;
what is left keeps the same share of every tensor for good. Of the bytes of a step ``S`` are then paged, and with remote
bandwidth ``r`` no step is shorter than ``S / r``.

Pages cross local memory as well. An operator of ``k`` seconds, of which ``m`` at least are the traffic of local memory
with bandwidth ``b``, takes ``max(k, m / (1 - r / b))`` while pages come in at ``r``; ``K(r)`` is the sum over all.
Pages that come sooner than they are needed only get in the way, so they are paced: no faster than at ``p`` with
``S / p = K(p)``::

    step = S / min(r, p)

A rack is as fast as a conventional server of ``T`` seconds a step from ``r = S / T`` on, provided that ``K`` there is
no more than ``T``. ``simulate`` runs the same graph event by event; of these formulas it takes the pace alone.

The design is that of Li et al., "FengHuang: Next-Generation Memory Orchestration for AI Inferencing", arXiv 2511.10753
(2025); ``memory_rack`` asks its questions.
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import decode, ledger, platform_of
from nearpeak.cost.memory import kv_bytes, weight_bytes
from nearpeak.cost.step import ACTIVATION
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.topic import require_positive
from nearpeak.workload import Block

Array = NDArray[np.float64]
HEAD_BYTES = 2.0
"""The output head stays in 16 bits."""
LATENCY = 110e-9
"""Seconds to the pool, one way. Assumed: 70 ns of a CXL link (Li et al., Pond, ASPLOS 2023) and 40 ns of a switch."""
STEPS = 4
"""Steps that a simulation runs; the first, which finds an empty window, is not counted."""
HALVINGS = 40


@dataclass(frozen=True)
class Rack:
    """What joins GPUs to the pool, per GPU.

    Attributes:
        bandwidth: bytes/s that a GPU reads from the pool, and as many that it writes. latency: seconds one way.
        local_speed: bandwidth of local memory over that of the conventional device.
        lookahead: operators whose tensors are paged in while one runs; 0: each fetches its own when it is due.
    """

    bandwidth: float
    latency: float = LATENCY
    local_speed: float = 2.0
    lookahead: int = 2

    def __post_init__(self) -> None:
        require_positive(bandwidth=self.bandwidth, latency=self.latency, local_speed=self.local_speed)
        if self.lookahead < 0:
            raise UsageError(f"lookahead must be 0 (on demand) or more operators, not {self.lookahead}")


@dataclass(frozen=True)
class Graph:
    """A decode step on one GPU of a group, operator by operator in the order in which they run, arrays ``[operators]``.

    Attributes:
        seconds: of the kernels, without collectives. size: bytes of weights and cache that they read.
        busy: seconds of these that local memory must at least be read for, at its full bandwidth.
        reduced, gathered: bytes of a vector that all GPUs add up, or collect, after the operator.
        conventional: seconds of those collectives over the server's own links.
        activations: bytes beside the tensors. bandwidth: bytes/s of local memory.
    """

    seconds: Array
    size: Array
    busy: Array
    reduced: Array
    gathered: Array
    conventional: Array
    activations: float
    bandwidth: float

    @property
    def conventional_step(self) -> float:
        """Seconds of a step with all tensors in local memory and collectives over the server's links."""
        return float(self.seconds.sum() + self.conventional.sum())

    def window(self, lookahead: int) -> float:
        """Most bytes of an operator and the ``lookahead`` ones after it; the last is followed by the first."""
        following = np.arange(lookahead + 1)[:, None] + np.arange(self.size.size)
        return float(self.size[following % self.size.size].sum(0).max())


def graph(setup: Setup, local_speed: float = 1.0) -> Graph:
    """The decode step of one configuration as sub-layers: mixer and feed-forward part of each layer, then the head.

    Each costs what one more of it adds to the step and the memory that ``nearpeak.cost`` prices. Experts are all read:
    which of them tokens meet is known too late to page them in ahead.

    Args:
        local_speed: bandwidth of the device's memory over the catalogue's.

    Raises:
        UsageError: the Setup has pipeline stages or several attention replicas.
    """
    if setup.decode.pp != 1 or setup.decode.dp != 1:
        raise UsageError(f"a rack runs tensor parallelism alone; give pp 1 and dp 1, not {setup.decode}")
    device = setup.node.device
    main, *caches = device.memory
    faster = replace(device, memory=(replace(main, bandwidth=main.bandwidth * local_speed), *caches))
    own = replace(setup, node=replace(setup.node, device=faster))
    batch, ranks = float(np.asarray(own.decode.batch)), float(np.asarray(own.decode.devices))
    message = batch * ACTIVATION * (ranks > 1)
    seconds: list[float] = []
    said: list[float] = []
    size: list[float] = []
    reduced: list[float] = []
    rest, rest_said = 0.0, 0.0
    for block in own.model.blocks:
        for part in (replace(block, ffn=None), Block(None, block.ffn, block.count)):
            if part.mixer is None and part.ffn is None and not part.linears:
                continue
            one, rest, rest_said = _added(own, part)
            for column, value in zip((seconds, said, size), one, strict=True):
                column += [value] * block.count
            reduced += [own.model.hidden * message] * block.count
    table = 0.0 if own.model.encoder else own.model.vocab * own.model.hidden * HEAD_BYTES / ranks
    read = np.array([*size, table])
    held = ledger(replace(own, chunk=batch), own.decode)
    return Graph(
        seconds=np.array([*seconds, rest]),
        size=read,
        busy=np.minimum(read / faster.memory_bandwidth, [*seconds, rest]),
        reduced=np.array([*reduced, 0.0]),
        gathered=np.array([0.0] * len(reduced) + [own.model.vocab * message]),
        conventional=np.array([*said, rest_said]),
        activations=float(held.activations),
        bandwidth=faster.memory_bandwidth,
    )


def _added(setup: Setup, part: Block) -> tuple[tuple[float, float, float], float, float]:
    """What one more layer of ``part`` adds to a step: seconds of kernels, of collectives, and bytes that it reads.

    Then the same seconds of what does not grow with the layers: embedding, head, sampling.
    """
    models = [replace(setup, model=replace(setup.model, blocks=(replace(part, count=n),), mtp=())) for n in (1, 2)]
    batch, at = np.asarray(setup.decode.batch, float), platform_of(setup).in_graph()
    context = np.asarray(setup.isl, float) + np.asarray(setup.osl, float) / 2
    kernels, said, size = [], [], []
    for own in models:
        step = decode(at, own, own.decode, batch, context)
        kernels.append(float(step.total - step.communication))
        said.append(float(step.communication))
        size.append(float(weight_bytes(own, own.decode) + kv_bytes(own, own.decode, context) * batch))
    one = (kernels[1] - kernels[0], said[1] - said[0], size[1] - size[0])
    return one, kernels[0] - one[0], said[0] - one[1]


def strained(of: Graph, said: Array, bandwidth: ArrayLike) -> Array:
    """Seconds of a step while pages come in all the time at ``bandwidth``; infinite where local memory can no more."""
    left = 1 - np.asarray(bandwidth, float)[..., None] / of.bandwidth
    slow = np.where(of.busy > 0, of.busy / np.where(left > 0, left, np.nan), 0.0)
    return np.asarray(np.nan_to_num(np.maximum(of.seconds, slow), nan=np.inf).sum(-1) + said.sum())


def pace(of: Graph, said: Array, paged: float) -> float:
    """Bytes/s at which ``paged`` bytes take as long as the operators beside them: the most that helps a step."""
    low, high = 0.0, of.bandwidth
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * strained(of, said, middle) <= paged else (low, middle)
    return low


def closed_form(of: Graph, said: Array, paged: float, bandwidth: ArrayLike) -> Array:
    """Seconds of a step that pages in ahead, see the module. ``said``: seconds of the collective after each operator.

    Args:
        paged: bytes, above 0. bandwidth: bytes/s of the pool.
    """
    return np.asarray(paged / np.minimum(np.asarray(bandwidth, float), pace(of, said, paged)))


def crossover(of: Graph, said: Array, paged: float, target: float) -> float:
    """Bytes/s of the pool from which on a step takes no more than ``target`` seconds.

    Infinite where local memory cannot take the pages in beside the kernels that fast.
    """
    bandwidth = paged / target
    return bandwidth if strained(of, said, bandwidth) <= target else np.inf


@njit(cache=True)
def _simulate(
    seconds: Array, busy: Array, said: Array, paged: Array, lookahead: int, rate: float, latency: float, local: float,
    steps: int,
) -> Array:  # fmt: skip
    """When each of ``steps`` passes over the graph ends. Pages of an operator travel one operator after another."""
    count = seconds.size
    ends = np.zeros(steps)
    now, at, coming = 0.0, 0, 0
    work, talk = seconds[0], said[0]
    left, lag = paged[0], latency
    while at < steps * count:
        while coming < steps * count and left <= 0.0:
            coming += 1
            left, lag = paged[coming % count], latency
        moving = coming < steps * count and coming <= at + lookahead
        running = coming > at
        flowing = moving and lag <= 0.0
        here = at % count
        speed = 1.0
        if flowing and work > 0.0 and busy[here] > 0.0:
            speed = min(1.0, (1.0 - rate / local) * seconds[here] / busy[here])
        until = np.inf
        if running and work > 0.0:
            until = work / speed if speed > 0.0 else np.inf
        elif running:
            until = talk
        if moving:
            until = min(until, lag if lag > 0.0 else left / rate)
        now += until
        if flowing:
            left -= rate * until
            if left < 1e-6:
                left = 0.0
        elif moving:
            lag = lag - until if lag - until > 1e-15 else 0.0
        if running:
            if work > 0.0:
                work = work - speed * until
                if work < 1e-15:
                    work = 0.0
            else:
                talk = talk - until if talk - until > 1e-15 else 0.0
            if work <= 0.0 and talk <= 0.0:
                at += 1
                if at % count == 0:
                    ends[at // count - 1] = now
                work, talk = seconds[at % count], said[at % count]
    return ends


def simulate(of: Graph, said: Array, rack: Rack, kept: float) -> float:
    """Seconds of a decode step in the steady state, event by event: kernels, collectives and pages on their way.

    Args:
        said: seconds of the collective after each operator. kept: share of every tensor that stays in local memory.
    """
    paged = of.size * (1 - kept)
    rate = min(rack.bandwidth, of.bandwidth)
    if rack.lookahead and kept < 1:
        rate = min(rate, pace(of, said, float(paged.sum())))
    ends = _simulate(of.seconds, of.busy, said, paged, rack.lookahead, rate, rack.latency, of.bandwidth, STEPS)
    return float((ends[-1] - ends[0]) / (STEPS - 1))


def kept_share(of: Graph, lookahead: int, local: float) -> float:
    """Share of every tensor that stays in ``local`` bytes beside the window for the others' pages.

    Raises:
        UsageError: not even the window fits.
    """
    window, whole = of.window(lookahead), float(of.size.sum())
    room = local - of.activations
    if room >= whole:
        return 1.0
    if room < window:
        raise UsageError(
            f"local memory of {local / 1e9:.3g} GB does not hold {of.activations / 1e9:.3g} GB of activations and the "
            f"tensors of {lookahead + 1} operators, {window / 1e9:.3g} GB; give more, less lookahead, or more GPUs"
        )
    return (room - window) / (whole - window)


def local_memory(of: Graph, lookahead: int, kept: float) -> float:
    """Bytes of local memory that keep this share of every tensor; the inverse of ``kept_share``."""
    whole = float(of.size.sum())
    return of.activations + kept * whole + (1 - kept) * min(of.window(lookahead), whole)
