"""What users of a Setup see: time to first token, time per output token, throughput.

A steady state, in closed form, from the step times of ``step``. In flight are ``b`` requests in each attention
replica; when one ends, the next begins. All functions broadcast over the arrays of the Setup.

Aggregated serving. Prefill and decode share the devices. With ``S`` seconds until a prompt that is alone in its step is
through, and ``D`` seconds of a decode step, a request meets ``osl - 1`` decode steps, its own prompt, and each of the
other ``b - 1`` prompts once. A prompt costs the others ``P``: what its chunks add to the decode steps that they share,
or its whole time where an engine does not mix the two; short prompts that arrive together share a step. Of the other
prompts, ``w`` are served before a request's first token and the rest between its later tokens::

    ttft = S + D / 2 + w P          tpot = D + (b - 1 - w) P / (osl - 1)

Where requests arrive at random, ``w P`` is the mean wait of an M/D/1 queue, ``load P / (2 (1 - load))``. The closed
loop of a load generator begins with a wave of ``b`` requests at once, which wait for ``(b - 1) / 2`` prompts on
average: in ``r`` rounds that is ``g = 1 / (2 r)`` of the others in the mean. Requests of equal lengths that end in one
step come back in one step, ``k`` others with each. Between the waves the queue is that of random arrivals::

    w = g (b - 1) + k + (1 - 2 g) load / (2 (1 - load))

Disaggregated serving. The prefill pool is that queue, the cache travels, and the decode pool sees decode steps alone.

Multi-token prediction. A decode step emits several tokens of a sequence, so there are fewer of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import memory, step
from nearpeak.cost.calibration import join
from nearpeak.cost.engine import Engine, engine_on
from nearpeak.cost.memory import Ledger
from nearpeak.cost.platform import Platform
from nearpeak.cost.step import Step
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup

Array = NDArray[np.float64]

WAVES = 1 / 6
"""The same share as an engine's ``waves`` where prompts have a pool of their own: one constant for all engines, set on
363 disaggregated runs. Ten rounds would make it 1/20; what a pool prefills together comes back together."""


@dataclass(frozen=True)
class Prediction:
    """Figures of a Setup in its steady state; arrays that broadcast to the Setup's shape. SI units.

    Attributes:
        ttft: mean seconds from a request's arrival to its first token. tpot: mean seconds between later tokens.
        latency: seconds from arrival to the last token.
        request_rate: requests/s of the whole deployment. devices: in all.
        load: share of time that the part which prefills is busy with prompts; at 1 and over there is no steady state.
        times: the steps behind the figures. memory, prefill_memory: ledgers of the pools.
    """

    ttft: Array
    tpot: Array
    latency: Array
    request_rate: Array
    devices: Array
    load: Array
    times: "Times"
    memory: Ledger
    prefill_memory: Ledger | None

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether every pool starts in memory and the state is steady, as it always is where one pool does both."""
        if self.prefill_memory is None:
            return self.memory.fits
        return self.memory.fits & self.prefill_memory.fits & (self.load < 1)


def predict(
    platform: Platform,
    setup: Setup,
    host: Engine | None = None,
    closed: bool = False,
    slowed: "Callable[[Kernels], Kernels] | None" = None,
) -> Prediction:
    """Price every Setup in ``setup``.

    Args:
        platform: of the Setup's device under its engine. host: the engine's constants, those calibrated if None.
        closed: requests come in the waves of a closed loop, not at random.
        slowed: what a cap makes of the kernels (see ``step_power``).

    Raises:
        UsageError: the model is an encoder, which decodes nothing.
    """
    if setup.model.encoder:
        raise UsageError(f"{setup.model.name} is an encoder; only models that decode are priced so far")
    host = host or engine_on(setup.engine, setup.node)
    kernels = priced(platform, setup, host.mixes)
    if slowed is not None:
        kernels = slowed(kernels)
    times = timed(kernels, host, closed)
    if setup.prefill is None:
        return _aggregated(setup, kernels, times, host, closed)
    return _disaggregated(setup, setup.prefill, kernels, times, host, closed)


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a Setup's steps take, and how often they run, whatever the engine adds; arrays.

    Attributes:
        decode: one decode step. chunk: one step with a prompt's chunk, ``chunks`` of which make a prompt.
        full: seconds of one step with as many prompts as it takes at most, ``prompts``.
        batch, osl: of the Setup. emitted: tokens of a sequence in a decode step, in the mean.
        stages: of the pool that prefills: its slowest stage's share of a pass. depth: layers of the model.
        mixed: prompts and decoding requests share steps. serial: who launches kernels also runs them, as on a CPU.
    """

    decode: Step
    chunk: Step
    chunks: Array
    full: Array
    prompts: Array
    batch: Array
    osl: Array
    emitted: Array
    stages: Array
    depth: float | Array
    mixed: bool
    serial: bool


def priced(platform: Platform, setup: Setup, mixes: bool) -> Kernels:
    """Price the steps of a Setup. ``mixes``: the engine's requests decode on while prompts are served."""
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    pool, first = setup.decode, setup.prefill or setup.decode
    mixed, batch, context = mixes and setup.prefill is None, np.asarray(pool.batch, float), isl + osl / 2
    # Prompts differ in length, so their kernels are launched from the host; decode steps replay a captured graph.
    decode = step.decode(platform.in_graph(), setup, pool, batch, context)
    others = np.maximum(batch - 1, 0.0) if mixed else np.zeros(())
    chunks = np.ceil(isl / setup.chunk)
    size, prefix = isl / chunks, (isl - isl / chunks) / 2
    # In a pool that only prefills, any number of prompts may wait.
    most = batch if setup.prefill is None else np.inf
    prompts = np.maximum(1.0, np.minimum(np.floor(setup.chunk / isl), most))
    chunk = step.mixed(platform, setup, first, np.ones(()), size, prefix, others, context)
    full = chunk.total
    if np.any(prompts > 1):
        full = step.mixed(platform, setup, first, prompts, size, prefix, others, context).total
    return Kernels(
        decode, chunk, chunks, full, prompts, batch, osl,
        emitted=setup.emitted, stages=step.unevenness(setup, first) / first.pp,
        depth=step.depth(setup.model), mixed=mixed, serial=setup.node.device.kind == "cpu",
    )  # fmt: skip


@dataclass(frozen=True)
class Times:
    """Steps of a Setup, and the seconds that follow with the engine's share.

    Attributes:
        prefill: all steps of a prompt that is alone in them, with what else decodes in them. decode: a decode step.
        overhead: of the engine in a decode step. prompt: until a lone prompt is through.
        occupied: that each prompt costs the other requests of its replica, in the slowest of a pool's stages.
        token: of a decode step.
        together: other prompts that come with each.
    """

    prefill: Step
    decode: Step
    overhead: Array
    prompt: Array
    occupied: Array
    token: Array
    together: Array


def timed(kernels: Kernels, host: Engine, closed: bool) -> Times:
    """The seconds of steps under an engine.

    A step serves the prompts of all requests that begin in it: ``batch * chunks / osl`` of them in the mean, one at
    least where there is any, and more where a load generator's requests come back together.
    """
    batch = kernels.batch
    decode = kernels.decode * host.graph
    overhead = host.step + host.sequence * batch
    token = decode.total + overhead
    besides = host.sequence * batch if kernels.mixed else 0.0
    chunk, full = (
        launched(seconds, kernels.depth, host, kernels.serial) + besides
        for seconds in (kernels.chunk.total, kernels.full)
    )
    alone = np.maximum(chunk - token, 0.0) if kernels.mixed else chunk
    # One more prompt in a step never costs more than a step of its own would.
    further = np.clip((full - chunk) / np.maximum(kernels.prompts - 1, 1.0), 0.0, chunk)
    begun = np.maximum(batch * kernels.chunks * kernels.emitted / kernels.osl, 1e-6)
    together = np.minimum(host.together, batch - 1) if closed else np.zeros(())
    sharing = np.minimum(kernels.prompts, begun / -np.expm1(-begun) + together)
    cost = (alone + (sharing - 1) * further) / sharing * kernels.chunks
    return Times(
        prefill=kernels.chunk * kernels.chunks,
        decode=decode,
        overhead=overhead,
        prompt=chunk * kernels.chunks,
        occupied=cost * kernels.stages,
        token=token,
        together=together,
    )


def stage_seconds(setup: Setup, host: Engine, kernels: Array) -> Array:
    """Seconds of a step of a Setup whose kernels the host launches one by one."""
    return launched(kernels, step.depth(setup.model), host, setup.node.device.kind == "cpu")


def launched(kernels: Array, depth: float | Array, host: Engine, serial: bool) -> Array:
    """Seconds of a step whose kernels the host launches one by one: theirs or the launching, whichever takes longer,
    and somewhat more where both are alike, since a step has long kernels and short ones.

    On a CPU nothing overlaps (``serial``): who launches is who computes.
    """
    launching = host.layer * depth
    if serial:
        return kernels + launching + host.step
    return join(kernels, np.asarray(launching)) + host.step


def shared(kernels: Kernels, times: Times, host: Engine, closed: bool) -> tuple[Array, Array, Array]:
    """TTFT, TPOT and load of requests that share devices.

    An answer of one token has no later ones: it waits for all other prompts, and its TPOT is that of a decode step.
    """
    later = np.maximum(kernels.osl - 1, 0.0)
    others = (kernels.batch - 1) * times.occupied
    alone = host.request + times.prompt + np.where(later > 0, times.token / 2, 0.0)
    # The load that the requests in flight make at the cycle they would have without waiting: an upper bound.
    load = kernels.batch * times.occupied / (times.prompt + later / kernels.emitted * times.token + others)
    wait = np.where(later > 0, _wait(load, times, others, host.waves, times.together, closed), others)
    tpot = times.token / kernels.emitted + (others - wait) / np.maximum(later, 1.0)
    return alone + wait, tpot, load


def _wait(load: Array, times: Times, others: Array, waves: float, together: Array | float, closed: bool) -> Array:
    """Seconds that a request waits for other prompts: an M/D/1 queue, and what a closed loop adds; at most for all."""
    random = load * times.occupied / (2 * np.maximum(1 - load, 1e-9))
    if closed:
        random = waves * others + together * times.occupied + (1 - 2 * waves) * random
    return np.asarray(np.minimum(random, others))


def _aggregated(setup: Setup, kernels: Kernels, times: Times, host: Engine, closed: bool) -> Prediction:
    pool = setup.decode
    ttft, tpot, load = shared(kernels, times, host, closed)
    latency = ttft + (np.asarray(setup.osl, float) - 1) * tpot
    rate = pool.in_flight / latency
    devices = np.asarray(pool.devices, float)
    ledger = memory.ledger(setup, pool)
    return Prediction(ttft, tpot, latency, rate, devices, load, times, ledger, None)


def _disaggregated(setup: Setup, first: Pool, kernels: Kernels, times: Times, host: Engine, closed: bool) -> Prediction:
    pool = setup.decode
    isl, later = np.asarray(setup.isl, float), np.maximum(kernels.osl - 1, 0.0)
    moved = transfer(setup, first, isl)
    tpot = times.token / kernels.emitted
    # The prefill pool makes the first token; a decode slot is held while the cache arrives and for the later tokens.
    rate = pool.in_flight / (later * tpot + moved)
    lines = np.asarray(first.replicas, float) * first.dp
    load = rate * times.occupied / lines
    others = np.maximum(pool.in_flight / lines - 1, 0.0) * times.occupied
    wait = _wait(load, times, others, WAVES, 0.0, closed)
    ttft = host.request + times.prompt + wait + moved
    devices = np.asarray(pool.devices + first.devices, float)
    ledgers = memory.ledger(setup, pool), memory.ledger(setup, first, decoding=False)
    return Prediction(ttft, tpot, ttft + (kernels.osl - 1) * tpot, rate, devices, load, times, *ledgers)


def transfer(setup: Setup, first: Pool, isl: Array) -> Array:
    """Seconds to carry a prompt's cache from its prefill instance to a decode instance.

    Every device of an instance sends or receives its part; the instance with fewer ports sets the pace. Pools that
    share a node use its devices' links, others the node's network ports.
    """
    node, decode = setup.node, setup.decode
    cache = memory.kv_bytes(setup, first, isl) * first.tp * first.pp
    ports = np.minimum(np.asarray(first.tp * first.pp, float), decode.tp * decode.pp)
    inside = node.scale_up.latency + cache / (node.scale_up.bandwidth * ports)
    if node.network is None:
        return np.asarray(inside)
    outside = node.network.latency + cache / (node.network.bandwidth * np.maximum(1, ports * node.nics / node.count))
    return np.asarray(np.where(first.devices + decode.devices <= node.count, inside, outside))
