"""What users of a Setup see: time to first token, time per output token, throughput.

A steady state, in closed form, from the step times of ``step``. In flight are ``b`` requests in each attention
replica; when one ends, the next begins. All functions broadcast over the arrays of the Setup.

Aggregated serving. Prefill and decode share the devices. With ``S`` seconds to prefill a prompt and ``D`` seconds of a
decode step, a request meets ``osl - 1`` steps, its own prompt, and each of the other ``b - 1`` prompts once. A prompt
occupies a pipeline stage for ``P``, its slowest stage's share of ``S`` (``P = S`` without stages). Of the other
prompts, a share ``g`` is served before a request's first token and the rest between its later tokens::

    ttft = S + D / 2 + g (b - 1) P          tpot = D + (1 - g) (b - 1) P / (osl - 1)

Where requests arrive at random, ``g (b - 1) P`` is the mean wait of an M/D/1 queue, ``load P / (2 (1 - load))``. In a
closed loop of a load generator they come in waves, and ``g`` is a measured property of the engine's scheduler.

Disaggregated serving. The prefill pool is that queue, the cache travels, and the decode pool sees decode steps alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import memory, step
from nearpeak.cost.engine import Engine, engine
from nearpeak.cost.memory import Ledger
from nearpeak.cost.platform import Platform
from nearpeak.cost.step import Step
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup

Array = NDArray[np.float64]


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


def predict(platform: Platform, setup: Setup, host: Engine | None = None, closed: bool = False) -> Prediction:
    """Price every Setup in ``setup``.

    Args:
        platform: of the Setup's device under its engine. host: the engine's constants, those calibrated if None.
        closed: requests come in the waves of a closed loop, not at random.

    Raises:
        UsageError: the model is an encoder, which decodes nothing.
    """
    if setup.model.encoder:
        raise UsageError(f"{setup.model.name} is an encoder; only models that decode are priced so far")
    host = host or engine(setup.engine)
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    pool = setup.decode
    batch = np.asarray(pool.batch, float)
    first = setup.prefill or pool
    decode = step.decode(platform.in_graph(host.graph), setup, pool, batch, isl + osl / 2)
    # Prompts differ in length, so their kernels are launched from the host; decode steps replay a captured graph.
    prefill = step.prefill(platform, setup, first, np.ones(()), isl)
    overhead = host.step + host.sequence * batch
    prompt = stage_seconds(setup, host, prefill.total)
    times = Times(prefill, decode, overhead, prompt, occupied(setup, first, prompt), decode.total + overhead)
    if setup.prefill is None:
        return _aggregated(setup, times, host, host.waves if closed else None)
    return _disaggregated(setup, setup.prefill, times, host)


@dataclass(frozen=True)
class Times:
    """Steps of a Setup, and the seconds that follow with the engine's share.

    Attributes:
        overhead: of the engine in a decode step. prompt: of a prompt's prefill. occupied: that it keeps a stage busy.
        token: of a decode step.
    """

    prefill: Step
    decode: Step
    overhead: Array
    prompt: Array
    occupied: Array
    token: Array


def stage_seconds(setup: Setup, host: Engine, kernels: Array) -> Array:
    """Seconds of a step whose kernels the host launches one by one: theirs, or the launching if that takes longer.

    On a CPU nothing overlaps: who launches is who computes.
    """
    launching = host.layer * setup.model.layers
    if setup.node.device.kind == "cpu":
        return kernels + launching + host.step
    return np.maximum(kernels, launching) + host.step


def occupied(setup: Setup, pool: Pool, prompt: Array) -> Array:
    """Seconds that a prompt keeps the slowest of a pool's pipeline stages busy."""
    return prompt * step.unevenness(setup, pool) / pool.pp


def shared(times: Times, host: Engine, batch: Array, osl: Array, waves: float | None) -> tuple[Array, Array, Array]:
    """TTFT, TPOT and load of ``batch`` requests that share devices; ``waves``: ``g``, or None for random arrivals.

    An answer of one token has no later ones: it waits for all other prompts, and its TPOT is that of a decode step.
    """
    later = np.maximum(osl - 1, 0.0)
    others = (batch - 1) * times.occupied
    alone = host.request + times.prompt + np.where(later > 0, times.token / 2, 0.0)
    # The load that the requests in flight make at the cycle they would have without waiting: an upper bound.
    load = batch * times.occupied / (times.prompt + later * times.token + others)
    queue = load * times.occupied / (2 * np.maximum(1 - load, 1e-9))
    wait = np.minimum(queue, others) if waves is None else waves * others
    wait = np.where(later > 0, wait, others)
    return alone + wait, times.token + (others - wait) / np.maximum(later, 1.0), load


def _aggregated(setup: Setup, times: Times, host: Engine, waves: float | None) -> Prediction:
    pool = setup.decode
    osl = np.asarray(setup.osl, float)
    ttft, tpot, load = shared(times, host, np.asarray(pool.batch, float), osl, waves)
    latency = ttft + (osl - 1) * tpot
    rate = pool.in_flight / latency
    devices = np.asarray(pool.devices, float)
    ledger = memory.ledger(setup, pool)
    return Prediction(ttft, tpot, latency, rate, devices, load, times, ledger, None)


def _disaggregated(setup: Setup, first: Pool, times: Times, host: Engine) -> Prediction:
    pool = setup.decode
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    moved = transfer(setup, first, isl)
    # The prefill pool makes the first token; a decode slot is held while the cache arrives and for the later tokens.
    rate = pool.in_flight / (np.maximum(osl - 1, 0.0) * times.token + moved)
    load = rate * times.occupied / (np.asarray(first.replicas, float) * first.dp)
    wait = load * times.occupied / (2 * np.maximum(1 - load, 1e-3))
    ttft = host.request + times.prompt + wait + moved
    devices = np.asarray(pool.devices + first.devices, float)
    ledgers = memory.ledger(setup, pool), memory.ledger(setup, first, decoding=False)
    latency = ttft + (osl - 1) * times.token
    return Prediction(ttft, times.token, latency, rate, devices, load, times, *ledgers)


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
