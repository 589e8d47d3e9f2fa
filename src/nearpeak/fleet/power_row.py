"""A row of GPU servers behind one breaker: requests, phases of power, and a controller that sees and acts late.

Each server runs one instance of a Setup for requests of one priority, first come, first served: a prompt at a time,
while the others wait, then all that are in flight decode together. What a prompt and a step take, and the watts that
they draw, are those of the Setup at each clock (``cost.step_power``); between requests devices idle, and the rest of a
server draws what it does at load.

Servers are advanced event by event within an interval of the telemetry; only the clocks join them, which change between
intervals. A controller has stages: in each, servers of low and of high priority keep to a clock. It goes one stage up
where the power it sees is above the stage's threshold and one down where it is ``margin`` below; where two stages share
a threshold it waits until the first has had time to show. It starts in the last stage, as one that knows nothing of
the row must. Above the breaker the power brake slows everything down.
What it sees is old by the telemetry's delay, a clock is set after the cap's delay, the brake is on after its own.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import power
from nearpeak.cost.step_power import under_cap
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.topic import require_positive
from nearpeak.workload.traffic import LogNormal

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
LOW, HIGH = 0, 1
"""Priorities."""


@dataclass(frozen=True)
class Phases:
    """A server by clock and requests in flight, arrays ``[clocks, in flight]``.

    Attributes:
        clocks: over boost, ``[clocks]``; the first is 1, the last the brake's.
        prompt: seconds of a mean prompt beside so many decoding requests, from 0. token: of a decode step of so many.
        prompt_power, token_power: watts of the server meanwhile. idle_power: between requests.
        rated_power: watts that the server is provisioned for. request_rate: requests/s with all slots in use.
    """

    clocks: Array
    prompt: Array
    token: Array
    prompt_power: Array
    token_power: Array
    idle_power: float
    rated_power: float
    request_rate: float

    @property
    def slots(self) -> int:
        """Most requests in flight."""
        return int(self.token.shape[1]) - 1


def phases(setup: Setup, slots: int, clocks: ArrayLike) -> Phases:
    """A whole server whose devices run one instance of ``setup``, with up to ``slots`` requests in flight.

    Args:
        clocks: over boost; the last is the brake's.

    Raises:
        UsageError: slots are below 1, the first clock is not 1, or as ``step_power.under_cap``.
    """
    steps = np.asarray(clocks, float)
    if slots < 1 or steps[0] != 1.0:
        raise UsageError(f"slots must be 1 or more, not {slots}, and the first clock 1, not {steps[0]:g}")
    batch = np.arange(1.0, slots + 1)
    found = under_cap(replace(setup, decode=replace(setup.decode, batch=batch)), clock=steps[:, None])
    node, times = setup.node, found.prediction.times
    shape = (steps.size, slots)
    token, prompt = (np.broadcast_to(a, shape) for a in (times.token, times.prompt))
    watts = [np.broadcast_to(w, shape) * node.count + node.overhead_power for w in found.watts]
    unused = np.full((steps.size, 1), np.nan)
    return Phases(
        clocks=steps,
        prompt=np.ascontiguousarray(prompt),
        token=np.hstack([unused, token]),
        prompt_power=watts[1],
        token_power=np.hstack([unused, watts[0]]),
        idle_power=power.idle(node.device) * node.count + node.overhead_power,
        rated_power=node.device.tdp * node.count + node.overhead_power,
        request_rate=float(np.broadcast_to(found.prediction.request_rate, shape)[0, -1]),
    )


@dataclass(frozen=True)
class Arrivals:
    """Requests of many servers, those of a server together and in order, arrays ``[requests]``.

    ``time``: seconds. ``prompt``: tokens over the mean. ``tokens``: of the answer. ``start``: where each server's
    begin, ``[servers + 1]``. ``horizon``: seconds until which they arrive.
    """

    time: Array
    prompt: Array
    tokens: Array
    start: Whole
    horizon: float

    def first(self, servers: int) -> "Arrivals":
        """Those of the first servers alone."""
        end = int(self.start[servers])
        return Arrivals(self.time[:end], self.prompt[:end], self.tokens[:end], self.start[: servers + 1], self.horizon)


def diurnal(
    servers: int, peak_rate: float, valley: float, osl: float, spread: float, day: float, seed: int, days: float = 1.0
) -> Arrivals:
    """A Poisson process for each server whose rate goes as a cosine between ``valley * peak_rate`` and ``peak_rate``.

    Each day begins and ends at the valley. A server's requests depend on the seed and its own number alone.

    Args:
        peak_rate: requests/s of a server at the peak. osl: mean tokens of an answer.
        spread: standard deviation of prompts and answers over their means (lognormal). day: seconds.

    Raises:
        UsageError: a number is not above 0, or the valley is not between 0 and 1.
    """
    require_positive(servers=servers, peak_rate=peak_rate, osl=osl, spread=spread, day=day, days=days)
    if not 0 <= valley <= 1:
        raise UsageError(f"valley must be a share of the peak between 0 and 1, not {valley:g}")
    horizon = day * days
    grid = np.linspace(0, horizon, max(1001, math.ceil(1000 * days)))
    # The rate's integral, whose inverse makes a unit process one of this rate.
    turn = day / (2 * np.pi)
    grown = peak_rate * ((1 + valley) / 2 * grid - (1 - valley) / 2 * turn * np.sin(grid / turn))
    times, prompts, answers = [], [], []
    for child in np.random.SeedSequence(seed).spawn(servers):
        rng = np.random.default_rng(child)
        count = int(rng.poisson(grown[-1]))
        times.append(np.interp(np.sort(rng.random(count)) * grown[-1], grown, grid))
        prompts.append(LogNormal(1000.0, spread).draw(count, rng) / 1000.0)
        answers.append(LogNormal(osl, spread).draw(count, rng).astype(float))
    start = np.concatenate([[0], np.cumsum([t.size for t in times])])
    return Arrivals(np.concatenate(times), np.concatenate(prompts), np.concatenate(answers), start, horizon)


@dataclass(frozen=True)
class Controller:
    """What is done about a row's power; shares are of the breaker's.

    Attributes:
        name: of the policy. thresholds: above which each stage begins, ``[stages]``.
        clocks: place among the ``Phases``' clocks of low and of high priority, ``[stages + 1, 2]``; the first stage 0.
        margin: below its threshold at which a stage ends. brake: whether there is a power brake.
        interval, telemetry, cap, brake_delay: seconds between readings, until one is seen, until a clock is set, until
            the brake is on.
    """

    name: str
    thresholds: tuple[float, ...]
    clocks: tuple[tuple[int, int], ...]
    margin: float = 0.05
    brake: bool = True
    interval: float = 2.0
    telemetry: float = 2.0
    cap: float = 40.0
    brake_delay: float = 5.0

    def __post_init__(self) -> None:
        require_positive(interval=self.interval)
        if len(self.clocks) != len(self.thresholds) + 1 or self.clocks[0] != (0, 0):
            raise UsageError(f"policy {self.name!r} needs a pair of clocks for stage 0, (0, 0), and for each threshold")


@dataclass(frozen=True)
class Run:
    """What a row did.

    Attributes:
        power: mean watts in each interval. stage: of the controller at its end.
        begun, finished: seconds at which each request's prompt was begun, and its last token came, ``[requests]``.
        latency: from arrival to the last token. priority: of each request.
        brakes: how often the brake was pulled. over: seconds above the breaker's power. breaker: watts.
    """

    power: Array
    stage: Whole
    begun: Array
    finished: Array
    latency: Array
    priority: Whole
    brakes: int
    over: float
    breaker: float

    def percentile(self, share: float, priority: int) -> float:
        """Seconds of latency that a share of the requests of a priority stay below.

        Raises:
            UsageError: there are none.
        """
        own = self.latency[self.priority == priority]
        if not own.size:
            raise UsageError(f"no request of {('low', 'high')[priority]} priority came; give more load or a longer day")
        return float(np.quantile(own, share))


def priorities(servers: int, low_share: float) -> Whole:
    """Priority of each server: those of low priority are spread evenly, whatever the number of servers."""
    place = np.arange(servers + 1) * low_share + 1e-9
    return np.where(np.diff(np.floor(place)) > 0, LOW, HIGH)


def run(of: Phases, arrivals: Arrivals, breaker: float, policy: Controller, low_share: float = 0.5) -> Run:
    """Run a row until its last request is through.

    Args:
        breaker: watts. low_share: of the servers whose requests are of low priority.

    Raises:
        UsageError: the breaker has no power, or the share is not between 0 and 1.
    """
    require_positive(breaker=breaker)
    if not 0 <= low_share <= 1:
        raise UsageError(f"low share must be between 0 and 1, not {low_share:g}")
    servers = arrivals.start.size - 1
    level = priorities(servers, low_share)
    late = [math.ceil(delay / policy.interval) for delay in (policy.telemetry, policy.cap, policy.brake_delay)]
    seen, stage, begun, finished, brakes = _run(
        of.prompt, of.token, of.prompt_power, of.token_power, of.idle_power, arrivals.time, arrivals.prompt,
        arrivals.tokens, arrivals.start, level, breaker, np.array([*policy.thresholds, np.inf]),
        np.array(policy.clocks), policy.margin, policy.brake, policy.interval, late[0], late[1], late[2],
        math.ceil(arrivals.horizon / policy.interval),
    )  # fmt: skip
    return Run(
        power=seen, stage=stage, begun=begun, finished=finished, latency=finished - arrivals.time,
        priority=np.repeat(level, np.diff(arrivals.start)), brakes=int(brakes),
        over=float((seen > breaker).sum() * policy.interval), breaker=breaker,
    )  # fmt: skip


@njit(cache=True)
def _advance(
    now: float, until: float, prompt: Array, token: Array, prompt_power: Array, token_power: Array, idle: float,
    time: Array, length: Array, tokens: Array, head: int, end: int, filling: float, running: Whole, left: Array,
    count: int, begun: Array, finished: Array,
) -> tuple[float, int, float, int]:  # fmt: skip
    """One server from ``now`` to ``until`` at one clock: joules, and its state after.

    ``head``: the next request whose prompt is not through; ``filling``: seconds left of it over those of a mean prompt,
    0 where it has not begun. ``running``, ``left``: requests that decode and their tokens, the first ``count``.
    """
    joules = 0.0
    while now < until:
        if filling == 0.0 and head < end and count < running.size and time[head] <= now:
            filling = length[head]
            begun[head] = now
        if filling > 0.0:
            passed = min(until - now, filling * prompt[count])
            joules += prompt_power[count] * passed
            now += passed
            filling -= passed / prompt[count]
            if filling < 1e-12:
                filling = 0.0
                if tokens[head] > 1.0:  # the first came with the prompt
                    running[count], left[count] = head, tokens[head] - 1.0
                    count += 1
                else:
                    finished[head] = now
                head += 1
            continue
        passed = until - now
        if head < end and count < running.size:
            passed = min(passed, max(time[head] - now, 0.0))
        if count == 0:
            joules += idle * passed
            now += passed
            continue
        least = left[0]
        for i in range(1, count):
            least = min(least, left[i])
        passed = min(passed, least * token[count])
        joules += token_power[count] * passed
        now += passed
        done = passed / token[count]
        i, kept = 0, count
        while i < kept:
            left[i] -= done
            if left[i] < 1e-9:
                finished[running[i]] = now
                kept -= 1
                running[i], left[i] = running[kept], left[kept]
            else:
                i += 1
        count = kept
    return joules, head, filling, count


@njit(cache=True)
def _run(
    prompt: Array, token: Array, prompt_power: Array, token_power: Array, idle: float, time: Array, length: Array,
    tokens: Array, start: Whole, priority: Whole, breaker: float, thresholds: Array, clocks: Whole, margin: float,
    brake: bool, interval: float, telemetry: int, cap: int, brake_delay: int, horizon: int,
) -> tuple[Array, Whole, Array, Array, int]:  # fmt: skip
    """Interval after interval until all requests are through: watts and stage of each, and when requests got what."""
    servers, slots = start.size - 1, token.shape[1] - 1
    running, left = np.zeros((servers, slots), np.int64), np.zeros((servers, slots))
    head, count, filling = start[:-1].copy(), np.zeros(servers, np.int64), np.zeros(servers)
    begun, finished = np.full(time.size, np.nan), np.full(time.size, np.nan)
    watts, stages = np.zeros(horizon + 1), np.zeros(horizon + 1, np.int64)
    braked = np.zeros(horizon + 1, np.bool_)
    first = thresholds.size - 1
    stage, changed, on, brakes, k, busy = first, 0, False, 0, 0, True
    while k < horizon or busy:
        if k >= watts.size:
            watts, stages = np.concatenate((watts, np.zeros_like(watts))), np.concatenate((stages, stages * 0))
            braked = np.concatenate((braked, np.zeros_like(braked)))
        acting = stages[k - 1 - cap] if k > cap else first
        pulled = k > brake_delay and braked[k - 1 - brake_delay]
        joules, busy = 0.0, False
        for s in range(servers):
            at = prompt.shape[0] - 1 if pulled else clocks[acting, priority[s]]
            used, head[s], filling[s], count[s] = _advance(
                k * interval, (k + 1) * interval, prompt[at], token[at], prompt_power[at], token_power[at], idle,
                time, length, tokens, head[s], start[s + 1], filling[s], running[s], left[s], count[s], begun, finished,
            )  # fmt: skip
            joules += used
            busy = busy or count[s] > 0 or head[s] < start[s + 1]
        watts[k] = joules / interval
        seen = watts[k - telemetry] / breaker if k >= telemetry else 0.0
        settled = k - changed > cap + telemetry + 1
        fresh = stage == 0 or thresholds[stage] > thresholds[stage - 1]
        if seen > thresholds[stage] and (fresh or settled):
            stage += 1
            changed = k
        elif stage > 0 and settled and 0.0 < seen < thresholds[stage - 1] - margin:
            stage -= 1
            changed = k
        if brake and not on and seen > 1.0:
            on = True
            brakes += 1
        elif on and seen < 1.0 - margin:
            on = False
        stages[k], braked[k] = stage, on
        k += 1
    return watts[:k], stages[:k], begun, finished, brakes
