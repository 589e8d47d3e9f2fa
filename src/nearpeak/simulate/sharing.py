"""Who of several applications on one device runs next: a chat, an image generator, live captions, an agent.

Gu et al., "ConsumerBench: Benchmarking Generative AI Applications on End-User Devices", arXiv 2506.17538. A workflow is
a graph of apps, each with requests, with goals of its own, and with apps that must have ended before it. A request is a
first step (a prompt, an encoder) and later steps (tokens, rounds of denoising), one after another; a step is one unit
of work, or several that may run side by side. The device has slots, each of which runs one unit to its end. What runs
next where a slot is free is the policy's choice:

- ``greedy``: the unit that was ready first, as a device does that takes launches in their order. Who has the smallest
  units waits most, since each of them waits for the large units of others.
- ``partitioned``: an app has slots of its own, which idle when it does.
- ``slo-aware``: the unit whose request has the least time to spare before its goal (least laxity first, Mok 1983);
  requests that cannot meet their goal any more come after those that can, apps without a goal last.

``choose``, ``begin`` and ``end`` know no clock: the simulator (``apps``) and the live run (``nearpeak.decode.apps``)
call the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.topic import require_positive

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

POLICIES = ("greedy", "partitioned", "slo-aware")
"""In the order of their codes."""
GREEDY, PARTITIONED, SLO_AWARE = range(3)


@dataclass(frozen=True)
class App:
    """An application; times in seconds on one slot.

    Attributes:
        first: of a request's first step, 0 for none. step: of a unit of its later steps. steps: how many later steps.
        width: units of a later step, side by side.
        requests: how many. period: between arrivals, or, with 0, the next one comes ``think`` after the last has ended.
        after: apps that must have ended before this one begins.
        first_goal: from arrival to the end of the first step; step_goal: of a later step, in the mean of a request;
            goal: from arrival to the end.
    """

    name: str
    first: float
    step: float
    steps: int
    width: int = 1
    requests: int = 1
    period: float = 0.0
    think: float = 0.0
    after: tuple[str, ...] = ()
    first_goal: float = inf
    step_goal: float = inf
    goal: float = inf

    def __post_init__(self) -> None:
        if not (self.first >= 0 and self.period >= 0 and self.think >= 0) or min(self.steps, self.width) < 1:
            raise UsageError(f"app {self.name!r}: times must not be negative, steps and width at least 1")
        require_positive(**{f"step of {self.name}": self.step, f"requests of {self.name}": self.requests})

    @property
    def alone(self) -> float:
        """Seconds of a request that has the slots for itself."""
        return self.first + self.steps * self.step

    @property
    def bound(self) -> bool:
        """Whether it has a goal."""
        return min(self.first_goal, self.step_goal, self.goal) < inf

    @property
    def work(self) -> float:
        """Slot-seconds of all its requests."""
        return self.requests * (self.first + self.steps * self.step * self.width)


FIRST, STEP, STEPS, WIDTH, REQUESTS, PERIOD, THINK, FIRST_GOAL, STEP_GOAL, GOAL = range(10)
REQUEST, AT, STARTED, ENDED, DUE, READY, FIRST_END, ORIGIN, PENDING = range(9)


@dataclass(frozen=True, eq=False)
class Desk:
    """What ``choose``, ``begin`` and ``end`` read and write.

    Attributes:
        spec: an app a row. after: ``[app, app]``, the first waits for the second. own: where it may run,
            ``[app, slot]``.
        state: an app a row: its current request and step, units of it that started and ended, when the request was due,
            the step ready and the first step over, when its first request was due, apps that it waits for.
        log: ``[app, request, 3]``: due, first step over, end; NaN until then.
    """

    spec: Array
    after: Flags
    own: Flags
    state: Array
    log: Array


def desk(apps: Sequence[App], policy: str, slots: int) -> Desk:
    """The state before anything has begun.

    Raises:
        UnknownName: of the policy, or of an app that another one waits for.
        UsageError: two apps have one name, apps wait for each other in a circle, or there is no app or slot.
    """
    if policy not in POLICIES:
        raise UnknownName("policy", policy, POLICIES)
    if slots < 1 or not apps:
        raise UsageError(f"{len(apps)} apps on {slots} slots; at least one of each is needed")
    after = waits(apps)
    spec = np.array([
        [a.first, a.step, a.steps, a.width, a.requests, a.period, a.think, a.first_goal, a.step_goal, a.goal]
        for a in apps
    ])  # fmt: skip
    state = np.zeros((len(apps), 9))
    state[:, PENDING] = after.sum(1)
    state[:, AT] = np.where(spec[:, FIRST] > 0, 0, 1)
    own = partition(apps, slots) if policy == "partitioned" else np.ones((len(apps), slots), bool)
    return Desk(spec, after, own, state, np.full((len(apps), int(spec[:, REQUESTS].max()), 3), np.nan))


def waits(apps: Sequence[App]) -> Flags:
    """Who waits for whom, ``[app, app]``; see ``desk`` for what is raised."""
    names = [a.name for a in apps]
    if len(set(names)) < len(names):
        raise UsageError(f"apps {', '.join(names)}: each needs a name of its own")
    after = np.zeros((len(apps), len(apps)), bool)
    for i, app in enumerate(apps):
        for name in app.after:
            if name not in names:
                raise UnknownName("app", name, names)
            after[i, names.index(name)] = True
    reach = after.copy()
    for k in range(len(apps)):
        reach |= reach[:, k : k + 1] & reach[k]
    if reach.diagonal().any():
        raise UsageError(f"app {names[int(reach.diagonal().argmax())]!r} waits for itself through others")
    return after


def partition(apps: Sequence[App], slots: int) -> Flags:
    """Slots of each app, ``[app, slot]``: heavy ones first, each to the slot with the least work so far; slots that are
    then left go to the app with the most work for each of its slots.
    """
    own, load = np.zeros((len(apps), slots), bool), np.zeros(slots)
    work = np.array([a.work for a in apps])
    for i in np.argsort(-work, kind="stable"):
        slot = load.argmin()
        own[i, slot] = True
        load[slot] += work[i]
    for slot in np.flatnonzero(load == 0):
        own[(work / own.sum(1)).argmax(), slot] = True
    return own


@njit(cache=True)
def spare(spec: Array, state: Array, a: int, now: float) -> float:
    """Seconds that an app's current request can still wait without missing the goal of its first or later steps."""
    if state[a, AT] == 0:
        due = min(state[a, DUE] + spec[a, FIRST_GOAL], state[a, DUE] + spec[a, GOAL] - spec[a, STEPS] * spec[a, STEP])
        return float(due - now - spec[a, FIRST])
    due = min(state[a, FIRST_END] + spec[a, STEPS] * spec[a, STEP_GOAL], state[a, DUE] + spec[a, GOAL])
    return float(due - now - (spec[a, STEPS] - state[a, AT] + 1) * spec[a, STEP])


@njit(cache=True)
def choose(code: int, slot: int, now: float, spec: Array, own: Flags, state: Array) -> int:
    """The app whose next unit a free slot runs now, -1 for none. ``code``: of the policy."""
    best, least, rank = -1, np.inf, 0
    for a in range(spec.shape[0]):
        units = spec[a, WIDTH] if state[a, AT] > 0 else 1
        if (
            not own[a, slot]
            or state[a, PENDING] > 0
            or state[a, REQUEST] >= spec[a, REQUESTS]
            or state[a, READY] > now
            or state[a, STARTED] >= units
        ):
            continue
        key, group = state[a, READY], 2
        if code == SLO_AWARE:
            left = spare(spec, state, a, now)
            if left < np.inf:
                key, group = left, 0 if left >= 0 else 1
        if best < 0 or group < rank or (group == rank and key < least):
            best, least, rank = a, key, group
    return best


@njit(cache=True)
def begin(a: int, spec: Array, state: Array) -> None:
    """A unit of the app's current step begins."""
    state[a, STARTED] += 1


@njit(cache=True)
def end(a: int, now: float, spec: Array, after: Flags, state: Array, log: Array) -> bool:
    """A unit of the app's current step has ended; returns whether the step has, and what follows is ready."""
    state[a, ENDED] += 1
    if state[a, ENDED] < (spec[a, WIDTH] if state[a, AT] > 0 else 1):
        return False
    request = int(state[a, REQUEST])
    if state[a, AT] == 0:
        state[a, FIRST_END] = now
    state[a, STARTED] = state[a, ENDED] = 0
    state[a, AT] += 1
    state[a, READY] = now
    if state[a, AT] <= spec[a, STEPS]:
        return True
    log[a, request] = state[a, DUE], state[a, FIRST_END], now
    state[a, REQUEST] += 1
    if state[a, REQUEST] == spec[a, REQUESTS]:
        for b in range(spec.shape[0]):
            if after[b, a]:
                state[b, PENDING] -= 1
                if state[b, PENDING] == 0:
                    state[b, DUE] = state[b, READY] = state[b, FIRST_END] = state[b, ORIGIN] = now
        return True
    state[a, AT] = 0 if spec[a, FIRST] > 0 else 1
    if spec[a, PERIOD] > 0:
        state[a, DUE] = state[a, ORIGIN] + state[a, REQUEST] * spec[a, PERIOD]
    else:
        state[a, DUE] = now + spec[a, THINK]
    state[a, READY] = max(now, state[a, DUE])
    state[a, FIRST_END] = state[a, DUE]
    return True


@njit(cache=True)
def arrival(now: float, spec: Array, state: Array) -> float:
    """When the next request arrives after now; infinity if none will before a unit ends."""
    soonest = np.inf
    for a in range(spec.shape[0]):
        waiting = state[a, PENDING] == 0 and state[a, REQUEST] < spec[a, REQUESTS]
        if waiting and state[a, READY] > now:
            soonest = min(soonest, state[a, READY])
    return float(soonest)
