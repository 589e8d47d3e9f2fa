"""What users of a Setup see: time to first token, time per output token, throughput.

A steady state, in closed form, from the step times of ``step``. In flight are ``b`` requests in each attention
replica; when one ends, the next begins. All functions broadcast over the arrays of the Setup.

Aggregated serving. Prefill and decode share the devices. With ``S`` seconds to prefill a prompt and ``D`` seconds of a
decode step, a request meets ``osl`` steps, its own prompt, and each of the other ``b - 1`` prompts once. Of those, a
share ``g`` is served before its first token and the rest between its later tokens::

    ttft = S + D / 2 + g (b - 1) S          tpot = D + (1 - g) (b - 1) S / osl

Where requests arrive at random, ``g (b - 1) S`` is the mean wait of an M/D/1 queue, ``load S / (2 (1 - load))``. In a
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
        prefill, decode: the steps behind the figures. memory, prefill_memory: ledgers of the pools.
    """

    ttft: Array
    tpot: Array
    latency: Array
    request_rate: Array
    devices: Array
    load: Array
    prefill: Step
    decode: Step
    overhead: Array
    memory: Ledger
    prefill_memory: Ledger | None

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether every pool starts in memory and the state is steady."""
        fits = self.memory.fits & (self.load < 1)
        return fits if self.prefill_memory is None else fits & self.prefill_memory.fits


def predict(platform: Platform, setup: Setup, host: Engine | None = None, closed: bool = False) -> Prediction:
    """Price every Setup in ``setup``.

    Args:
        platform: of the Setup's device under its engine. host: the engine's constants, those calibrated if None.
        closed: requests come in the waves of a closed loop, not at random.
    """
    host = host or engine(setup.engine)
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    pool = setup.decode
    batch = np.asarray(pool.batch, float)
    decode = step.decode(platform.in_graph, setup, pool, batch, isl + osl / 2) * host.graph
    prefill = step.prefill(platform, setup, setup.prefill or pool, np.ones(()), isl)
    overhead = host.step + host.sequence * batch
    # Prompts differ in length, so their kernels are launched from the host; decode steps replay a captured graph.
    times = Times(prefill, decode, overhead, stage_seconds(setup, host, prefill.total), decode.total + overhead)
    if setup.prefill is None:
        return _aggregated(setup, times, host, host.waves if closed else None)
    return _disaggregated(setup, setup.prefill, times, host)


@dataclass(frozen=True)
class Times:
    """Steps of a Setup, and with the engine's share: seconds of a ``prompt`` and of a decode step, ``token``."""

    prefill: Step
    decode: Step
    overhead: Array
    prompt: Array
    token: Array


def stage_seconds(setup: Setup, host: Engine, kernels: Array) -> Array:
    """Seconds of a step whose kernels the host launches one by one: theirs, or the launching if that takes longer.

    On a CPU nothing overlaps: who launches is who computes.
    """
    launching = host.layer * setup.model.layers
    if setup.node.device.kind == "cpu":
        return kernels + launching + host.step
    return np.maximum(kernels, launching) + host.step


def shared(times: Times, host: Engine, batch: Array, osl: Array, waves: float | None) -> tuple[Array, Array, Array]:
    """TTFT, TPOT and load of ``batch`` requests that share devices; ``waves``: ``g``, or None for random arrivals."""
    others = (batch - 1) * times.prompt
    alone = host.request + times.prompt + times.token / 2
    # The load that the requests in flight make at the cycle they would have without waiting: an upper bound.
    load = batch * times.prompt / (times.prompt + osl * times.token + others)
    wait = np.minimum(load * times.prompt / (2 * (1 - load)), others) if waves is None else waves * others
    return alone + wait, times.token + (others - wait) / np.maximum(osl, 1), load


def _aggregated(setup: Setup, times: Times, host: Engine, waves: float | None) -> Prediction:
    pool = setup.decode
    osl = np.asarray(setup.osl, float)
    ttft, tpot, load = shared(times, host, np.asarray(pool.batch, float), osl, waves)
    latency = ttft + (osl - 1) * tpot
    rate = pool.in_flight / latency
    devices = np.asarray(pool.devices, float)
    ledger = memory.ledger(setup, pool)
    return Prediction(
        ttft, tpot, latency, rate, devices, load, times.prefill, times.decode, times.overhead, ledger, None
    )


def _disaggregated(setup: Setup, first: Pool, times: Times, host: Engine) -> Prediction:
    pool = setup.decode
    isl, osl = np.asarray(setup.isl, float), np.asarray(setup.osl, float)
    moved = transfer(setup, first, isl)
    rate = pool.in_flight / ((osl - 1) * times.token + moved)
    served = np.asarray(first.replicas, float) * first.dp * first.pp / times.prompt
    load = rate / served
    wait = load * times.prompt / (2 * np.maximum(1 - load, 1e-3))
    ttft = host.request + times.prompt + wait + moved + times.token
    devices = np.asarray(pool.devices + first.devices, float)
    ledgers = memory.ledger(setup, pool), memory.ledger(setup, first, decoding=False)
    latency = ttft + (osl - 1) * times.token
    return Prediction(
        ttft, times.token, latency, rate, devices, load, times.prefill, times.decode, times.overhead, *ledgers
    )


def transfer(setup: Setup, pool: Pool, isl: Array) -> Array:
    """Seconds to carry a prompt's cache from its prefill instance to a decode instance, over the slower port.

    Pools that share a node use its devices' links, others the node's network ports.
    """
    node = setup.node
    cache = memory.kv_bytes(setup, pool, isl) * pool.tp * pool.pp
    inside = node.scale_up.bandwidth * np.asarray(pool.tp, float)
    devices = np.asarray(pool.devices) + setup.decode.devices
    if node.network is None:
        return node.scale_up.latency + cache / inside
    share = np.maximum(1, np.asarray(pool.tp, float) * node.nics / node.count)
    outside = node.network.latency + cache / (node.network.bandwidth * share)
    return np.where(devices <= node.count, node.scale_up.latency + cache / inside, outside)
