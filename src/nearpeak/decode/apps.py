"""Applications that share a device live: small torch stand-ins under the simulator's own policies.

A slot is a thread with one core (or one CUDA stream). It asks ``choose`` (``nearpeak.simulate.sharing``) what to run,
runs one unit of a stand-in to its end, and tells ``end``: the simulation's own compiled functions, on a wall clock.
Goals and arrivals are multiples of what each app takes alone on the device, measured just before, so that they mean the
same on any machine. The simulation gets only those times too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean
from threading import Condition, Thread
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nearpeak.errors import NearpeakError
from nearpeak.simulate.apps import Outcome, share
from nearpeak.simulate.sharing import (
    AT,
    POLICIES,
    REQUEST,
    REQUESTS,
    STARTED,
    App,
    arrival,
    begin,
    choose,
    desk,
    end,
)
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

if TYPE_CHECKING:
    from nearpeak.decode.stand_ins import StandIn


CV, DRAWS = 0.15, 8
"""Of a simulated unit's time: how much it varies, assumed; and simulations whose mean is compared with a live run."""


@dataclass(frozen=True)
class Run:
    """A live run.

    Attributes:
        outcome: what became of the requests.
        firsts, laters: seconds of each unit of each app, of first and of later steps, ``[app][unit]``.
        made: what each request made, ``[app][request]``.
    """

    outcome: Outcome
    firsts: tuple[list[float], ...]
    laters: tuple[list[float], ...]
    made: tuple[tuple[tuple[int, ...], ...], ...]


def live(apps: Sequence[App], work: Mapping[str, "StandIn"], policy: str, slots: int = 2, device: str = "cpu") -> Run:
    """Run apps to their end; ``work`` has what does each app's units, by its name.

    Raises:
        NearpeakError: a unit failed; the cause is what it raised. For others see ``nearpeak.simulate.sharing.desk``.
    """
    import torch

    at, code = desk(apps, policy, slots), POLICIES.index(policy)
    firsts: tuple[list[float], ...] = tuple([] for _ in apps)
    laters: tuple[list[float], ...] = tuple([] for _ in apps)
    turn, failed = Condition(), list[BaseException]()
    choose(code, 0, -1.0, at.spec, at.own, at.state)  # compiled, or read from the cache, before the clock starts
    origin = perf_counter()

    def serve(slot: int) -> None:
        try:
            torch.set_num_threads(1)  # a thread's own
            with _lane(device), turn:
                while not failed and (at.state[:, REQUEST] < at.spec[:, REQUESTS]).any():
                    now = perf_counter() - origin
                    a = choose(code, slot, now, at.spec, at.own, at.state)
                    if a < 0:
                        turn.wait(min(arrival(now, at.spec, at.state) - now, 1.0))
                        continue
                    request, step, part = (int(at.state[a, k]) for k in (REQUEST, AT, STARTED))
                    begin(a, at.spec, at.state)
                    turn.release()
                    try:
                        begun = perf_counter()
                        work[apps[a].name].run(request, step, part)
                        _finish(device)
                        over = perf_counter()
                    finally:
                        turn.acquire()
                    (laters if step else firsts)[a].append(over - begun)
                    if end(a, over - origin, at.spec, at.after, at.state, at.log):
                        turn.notify_all()
        except BaseException as error:  # whatever it is, the other slots must not wait for ever
            failed.append(error)
            with turn:
                turn.notify_all()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    threads = [Thread(target=serve, args=(slot,), daemon=True) for slot in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    if failed:
        raise NearpeakError(f"an app's unit failed: {failed[0]!r}") from failed[0]
    busy = sum(map(sum, firsts)) + sum(map(sum, laters))
    made = tuple(tuple(work[a.name].made(r) for r in range(a.requests)) for a in apps)
    return Run(Outcome.of(apps, policy, slots, at.log, busy), firsts, laters, made)


@contextmanager
def _lane(device: str) -> Iterator[None]:
    """One thread's torch: no gradients; on CUDA a stream of its own."""
    import torch

    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():  # type: ignore[no-untyped-call]
        yield


def _finish(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.current_stream().synchronize()


@dataclass(frozen=True)
class Habit:
    """How an app is used, in multiples of what it takes by itself.

    Attributes:
        steps, width, requests: as in ``App``. first: whether a request has a first step of its own kind.
        think, period: as in ``App``, over the seconds of a request alone.
        slack: its goals, over what they are alone: of a whole request if ``whole``, else of the first step and of later
            ones.
    """

    steps: int
    requests: int
    slack: float
    first: bool = True
    width: int = 1
    think: float = 0.0
    period: float = 0.0
    whole: bool = False

    def app(self, name: str, first: float, step: float, contention: float) -> App:
        """The app whose units take ``first`` and ``step`` seconds, ``contention`` times as long beside others."""
        request = first + self.steps * step
        used = App(
            name, first, step, self.steps, self.width, self.requests, self.period * request, self.think * request
        )
        allowed = self.slack * contention
        if self.whole:
            return replace(used, goal=allowed * request)
        return replace(used, first_goal=allowed * first if self.first else inf, step_goal=allowed * step)


HABITS = {
    "chat": Habit(16, 5, slack=8.0, think=3.0),
    "image": Habit(6, 14, slack=4.0, first=False, width=2),
    "caption": Habit(24, 16, slack=4.0, period=5.0, whole=True),
}
"""A person who chats, one who has images made all the time, and captions of a live talk."""


def calibrated(
    work: Mapping[str, "StandIn"], habits: Mapping[str, Habit], slots: int = 2, device: str = "cpu"
) -> tuple[tuple[App, ...], float]:
    """Apps with times, arrivals and goals from what each takes alone; and how much longer a unit takes beside another.

    Each app runs a few requests by itself on one slot. What has several units side by side runs on all slots too: its
    units are then longer, as those of any app are while no slot is idle, and goals allow for that. The first request
    warms up and does not count.
    """

    def alone(name: str, habit: Habit, on: int) -> tuple[float, float]:
        one = App(name, float(habit.first), 1.0, habit.steps, habit.width, requests=3)
        ran = live([one], work, "greedy", on, device)
        first, later = (times[0][len(times[0]) // one.requests :] for times in (ran.firsts, ran.laters))
        return fmean(first or [0.0]), fmean(later)

    times = {name: alone(name, habit, 1) for name, habit in habits.items()}
    wide = [alone(n, h, slots)[1] / times[n][1] for n, h in habits.items() if h.width > 1 and slots > 1]
    contention = max([1.0, *wide])
    return tuple(habit.app(name, *times[name], contention) for name, habit in habits.items()), contention


@dataclass(frozen=True)
class Comparison:
    """Outcomes of the policies, live (one a round) and simulated; and what requests made in the last round."""

    lived: Mapping[str, Sequence[Outcome]]
    simulated: Mapping[str, Sequence[Outcome]]
    made: Mapping[str, tuple[tuple[tuple[int, ...], ...], ...]]

    def attainment(self, policy: str, app: str, live: bool = True) -> float:
        """Share of an app's requests that met their goals, over all rounds."""
        return fmean(o.attainment[app] for o in (self.lived if live else self.simulated)[policy])

    def mean(self, policy: str, live: bool = True) -> float:
        """The same over all apps alike."""
        return fmean(o.mean_attainment for o in (self.lived if live else self.simulated)[policy])


def compare(
    habits: Mapping[str, Habit] = HABITS, rounds: int = 1, slots: int = 2, device: str = "cpu", seed: int = 0
) -> Comparison:
    """Run the stand-ins under each policy, and simulate the same from what they take alone.

    Each round runs every policy once, each time another one first, and measures just before what apps take alone.
    """
    from nearpeak.decode.stand_ins import stand_ins

    require_positive(rounds=rounds, slots=slots)
    lived: dict[str, list[Outcome]] = {p: [] for p in POLICIES}
    simulated: dict[str, list[Outcome]] = {p: [] for p in POLICIES}
    made = {}
    for turn in range(rounds):
        for i in range(len(POLICIES)):
            policy = POLICIES[(i + turn) % len(POLICIES)]
            apps, contention = calibrated(stand_ins(device), habits, slots, device)
            ran = live(apps, stand_ins(device), policy, slots, device)
            lived[policy].append(ran.outcome)
            made[policy] = ran.made
            simulated[policy] += [share(apps, policy, slots, CV, contention, seed + i) for i in range(DRAWS)]
    return Comparison(lived, simulated, made)


def _explain(rounds: int, slots: int, device: str, seed: int) -> Explanation:
    found = compare(HABITS, rounds, slots, device, seed)
    pairs = [(p, a) for p in POLICIES for a in HABITS]
    lived, simulated = (np.array([found.attainment(p, a, at) for p, a in pairs]) for at in (True, False))
    took, expected = ([fmean(o.latency[a] for o in at[p]) for p, a in pairs] for at in (found.lived, found.simulated))
    apart = float(np.abs(lived - simulated).max())
    worst = min(HABITS, key=lambda a: found.attainment("greedy", a))
    gain = found.attainment("slo-aware", worst) - found.attainment("greedy", worst)
    return Explanation(
        {"gain_of_slo_aware_share": gain, "live_to_simulated_share": apart},
        (
            Table.of(
                "Requests that met their goals",
                policy=[p for p, _ in pairs],
                app=[a for _, a in pairs],
                live_share=lived,
                simulated_share=simulated,
                live_latency=took,
                simulated_latency=expected,
            ),
            Table.of(
                "All apps",
                policy=POLICIES,
                live_share=[found.mean(p) for p in POLICIES],
                simulated_share=[found.mean(p, False) for p in POLICIES],
                use_share=[fmean(o.use for o in found.lived[p]) for p in POLICIES],
            ),
        ),
        (
            f"Greedy sharing is worst for {worst}; sharing by goals lets {100 * gain:.3g} % more of its requests meet "
            "theirs.",
            f"Live and simulated attainment are at most {100 * apart:.3g} points apart.",
        ),
    )


TOPIC = Topic(
    "apps",
    "Who meets the goals when a chat, an image generator and live captions share this machine, live and simulated?",
    "Gu et al., ConsumerBench: Benchmarking Generative AI Applications on End-User Devices, 2025 (arXiv 2506.17538)",
    (
        Option("rounds", int, "Times that everything is measured anew.", 1),
        Option("slots", int, "Units that run at a time: cores, or CUDA streams.", 2),
        Option("device", str, "Where it runs: cpu or cuda.", "cpu"),
        Option("seed", int, "Of the simulation.", 0),
    ),
    _explain,
    "--rounds 2",
)
