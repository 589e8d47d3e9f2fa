"""Requests whose caches are swapped to the host and back on a full pool, in the clear or through encryption.

vLLM preempts the youngest request and resumes the oldest of those that were preempted, which is the last that left: the
order of copies to the device is known when they leave it (Tan et al., PipeLLM, ASPLOS 2025, section on LIFO swaps).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import decode, ledger, platform_of, prefill
from nearpeak.cost.copies import copy
from nearpeak.cost.engine import engine_on
from nearpeak.cost.memory import kv_bytes
from nearpeak.cost.serving import stage_seconds
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.cipher import ENCRYPTION, NOP, Cipher, Mode, Run, guess
from nearpeak.simulate.speculation import Channel, Predictor
from nearpeak.workload.traffic import LogNormal

Array = NDArray[np.float64]
SWAP_SLACK = 16
"""Counters left free before each guess among requests: every preemption puts one more before those that are guessed."""
SPREAD, LONGEST = 1.0, 3.0
"""Of lengths: standard deviation and cut-off, in means; assumed, near what conversations show."""


def lengths(mean: float, count: int, seed: int) -> NDArray[np.int64]:
    """Token counts of requests, lognormal with a deviation of ``SPREAD`` means, cut at ``LONGEST`` means."""
    drawn = LogNormal(mean, SPREAD).draw(count, np.random.default_rng(seed))
    return np.asarray(np.clip(drawn, 1, int(np.ceil(LONGEST * mean))))


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests that are all there at once, and what serving them takes.

    Attributes:
        isl, osl: tokens of each, ``[requests]``. samples: answers to each prompt, that share the prompt's cache.
        pool: tokens of cache that fit. kv: bytes of one. prompt: seconds of a prompt of so many tokens.
        step: seconds of a decode step of so many sequences, ``[sequences + 1]``.
        link: seconds of a copy of so many bytes.
    """

    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    samples: int
    pool: int
    kv: float
    prompt: Callable[[int], float]
    step: Array
    link: Callable[[float], float]


def requests_of(setup: Setup, isl: NDArray[np.int64], osl: NDArray[np.int64], samples: int) -> Requests:
    """Requests on one device whose weights stay on it; ``setup`` gives mean lengths.

    Raises:
        UsageError: the weights do not fit, or the largest request with all its answers does not.
    """
    at, host, one = platform_of(setup), engine_on(setup.engine, setup.node), Pool()
    held = ledger(setup, replace(one, batch=1.0))
    kv = float(kv_bytes(setup, one, np.asarray(2.0)) - kv_bytes(setup, one, np.asarray(1.0)))
    room = float(held.capacity - held.reserved - held.weights - held.activations)
    pool, most = int(room // kv), int((isl + samples * osl).max())
    if pool < most:
        raise UsageError(
            f"a request of {most} tokens of {setup.model.name} does not fit the {max(pool, 0)} that "
            f"{setup.node.device.title} holds beside the weights: fewer samples, shorter answers or fewer bits"
        )
    sequences = np.arange(1, samples * len(isl) + 1, dtype=float)
    context = np.asarray(float(np.mean(isl) + np.mean(osl) / 2))
    step = decode(at.in_graph(), setup, one, sequences, context).total * host.graph + host.step
    step = step + host.sequence * sequences

    def prompt(tokens: int) -> float:
        return float(stage_seconds(setup, host, prefill(at, setup, one, np.ones(()), np.asarray(float(tokens))).total))

    lengths = {int(n): prompt(int(n)) for n in np.unique(isl)}
    return Requests(
        isl, osl, samples, pool, kv, lengths.__getitem__, np.append(0.0, step), lambda size: float(copy(at, size))
    )


def swapped(of: Requests, mode: Mode, encryption: float = ENCRYPTION, threads: int = 1, depth: int = 4) -> Run:
    """Serve all requests on a full pool: grow, preempt the youngest by swapping it out, resume the oldest.

    As vLLM did: new requests come in only while none is swapped out; a step waits for its copies. The host decrypts
    what leaves the device: on demand at once, ahead in the background, before it is encrypted to come back.
    """
    waiting, running, away = deque(range(len(of.isl))), list[int](), list[int]()
    made = np.zeros(len(of.isl), np.int64)
    channel, cipher, predictor = Channel(SWAP_SLACK), Cipher(), Predictor()
    clock, used, hits, copies, nops, out = 0.0, 0, 0, 0, 0, 0

    def held(r: int) -> int:
        return int(of.isl[r] + of.samples * made[r])

    def work(r: int) -> float:
        return held(r) * of.kv / (encryption * threads)

    growth = of.samples
    while waiting or running or away:
        while used + growth * len(running) > of.pool:
            r = running.pop()
            used -= held(r)
            away.append(r)
            predictor.left(r)
            clock += of.link(held(r) * of.kv)
            out += 1
            if mode == "on_demand":
                clock += work(r)
            elif mode == "ahead":
                cipher.until(clock)
                cipher.add(-out, work(r))
        while away and used + held(away[-1]) + growth * (len(running) + 1) <= of.pool:
            r = away.pop()
            version, copies = int(made[r]), copies + 1
            if mode == "on_demand":
                clock += work(r)
            elif mode == "ahead":
                cipher.until(clock)
                sent = channel.send(r, version)
                cipher.drop(sent.lost)
                ready = work(r) if sent.ahead is None else cipher.left.pop(sent.ahead, 0.0)
                clock = cipher.now(clock, ready) + sent.nops * NOP
                hits, nops = hits + (sent.ahead is not None), nops + sent.nops
                cipher.encrypted += sent.ahead is None
            predictor.came(r)
            clock += of.link(held(r) * of.kv)
            running.append(r)
            used += held(r)
        while waiting and not away and used + of.isl[waiting[0]] + growth * (len(running) + 1) <= of.pool:
            r = waiting.popleft()
            running.append(r)
            used += held(r)
            clock += of.prompt(int(of.isl[r]))
        if mode == "ahead":
            cipher.until(clock)
            guess(channel, cipher, [(r, int(made[r])) for r in predictor.ahead(depth)], work)
        clock += float(of.step[of.samples * len(running)])
        made[running] += 1
        used += growth * len(running)
        done = [r for r in running if made[r] >= of.osl[r]]
        used -= sum(held(r) for r in done)
        running = [r for r in running if made[r] < of.osl[r]]
    return Run(clock, hits, copies, nops, cipher.encrypted - out * (mode == "ahead"))
