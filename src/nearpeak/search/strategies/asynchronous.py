"""Asynchronous search: a worker that becomes free is given work at once, by AEGiS; and a simulated pool of workers.

AEGiS chooses for a free worker, with ``d`` parameters and ``e = min(1 / sqrt(max(d, 4)), 1/2)``,

    with probability 1 - 2 e:  the minimiser of the posterior mean,
    with probability e:        the minimiser of a function drawn from the posterior (``thompson``),
    with probability e:        a random member of the Pareto set of mean and uncertainty (``greedy``).

Configurations that are being evaluated are in the model at their mean, so that what is running looks certain. That
leaves the mean as it is: a greedy choice that runs already teaches nothing, and is a Thompson choice instead.

De Ath, Everson, Fieldsend: Asynchronous epsilon-Greedy Bayesian Optimisation, UAI 2021 (arXiv 2010.07615).
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from time import process_time
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.bayesian import opening
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import PROBLEMS, Problem
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.strategies.greedy import expecting, exploring, greediest
from nearpeak.search.strategies.local_penalization import LocalPenalization
from nearpeak.search.strategies.thompson import Thompson, sampled
from nearpeak.search.study import cube
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

Durations = Callable[[Floats, np.random.Generator], float]
"""Seconds that the evaluation of a configuration ``[width]`` takes."""

UNCONSTRAINED: Final = tuple(name for name, problem in PROBLEMS.items() if problem.constraints is None)
"""Names of the test functions that topics run on."""
_SAME: Final = 1e-3
"""Features nearer than this (in each) are the same choice."""
ALONE: Final = 0.2
"""Probability of each way to explore while nothing else is being evaluated."""


@dataclass(frozen=True)
class Aegis:
    """The method.

    Attributes:
        epsilon: probability of each of the two ways to explore; None: ``1 / sqrt(max(d, 4))``, which also keeps workers
            apart, and at most ``ALONE`` while nothing else is being evaluated.
        initial: evaluations before the first surrogate.

    Raises:
        UsageError: epsilon is not between 0 and one half.
    """

    epsilon: float | None = None
    surrogate: GPSurrogate = field(default_factory=RefittedGP)
    initial: int | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 <= self.epsilon <= 0.5:
            raise UsageError(f"epsilon is the probability of each of two ways: from 0 to 0.5, not {self.epsilon:g}")

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        usual = 1 / np.sqrt(max(len(space.parameters), 4))
        posterior = self.surrogate(space, history, rng)
        for _ in range(count):
            epsilon = self.epsilon
            if epsilon is None:
                epsilon = usual if len(history.pending) else min(usual, ALONE)
            believed = expecting(space, posterior, history)
            draw = rng.random()
            if draw < epsilon:
                point = exploring(space, believed, history, rng)
            elif draw < 2 * epsilon:
                point = sampled(space, believed, history, rng)
            else:
                point = greediest(space, posterior, history, rng)
                if _running(space, point, history):
                    point = sampled(space, believed, history, rng)
            history = history.waiting_for(point[None])
        return history.pending[-count:]


def _running(space: Space, point: Floats, history: History) -> bool:
    away = np.abs(space.encode(history.pending) - space.encode(point[None]))
    return bool((away < _SAME).all(axis=1).any())


@dataclass(frozen=True)
class Run:
    """What simulated workers did, in the order in which evaluations began; ``n`` of them.

    Attributes:
        points: ``[n, width]``. values: ``[n]``. begun, ended: seconds since the start, ``[n]``. worker: ``[n]``.
        workers: how many there are. horizon: seconds until no more work was handed out.
        chosen: seconds that the method took to choose, ``[n]`` (a batch's are on its first).
    """

    points: Floats
    values: Floats
    begun: Floats
    ended: Floats
    worker: NDArray[np.intp]
    workers: int
    horizon: float
    chosen: Floats

    @property
    def idle(self) -> Floats:
        """Share of the horizon in which each worker had nothing to do, ``[workers]``."""
        busy = np.minimum(self.ended, self.horizon) - np.minimum(self.begun, self.horizon)
        return np.asarray(1 - np.bincount(self.worker, busy, self.workers) / self.horizon)

    @property
    def utilisation(self) -> float:
        """Share of all workers' time that was spent on evaluations."""
        return float(1 - self.idle.mean())

    def best_by(self, time: ArrayLike) -> Floats:
        """The least value among evaluations that had ended by each time; infinite before the first."""
        done = np.asarray(time)[..., None] >= self.ended
        return np.asarray(np.where(done & np.isfinite(self.values), self.values, np.inf).min(axis=-1))


def simulate_workers(
    method: Method,
    f: Callable[[Floats], Floats],
    space: Space,
    workers: int,
    durations: Durations,
    budget: int,
    seed: int,
    *,
    until: float = np.inf,
    synchronous: bool = False,
    charged: bool = False,
) -> Run:
    """A search on ``workers`` simulated workers: the clock jumps from the end of one evaluation to the next.

    Args:
        f: values ``[k]`` of configurations ``[k, width]``; NaN where an evaluation fails. durations: seconds of an
            evaluation. budget: evaluations that may begin. until: seconds after which none begins any more.
        synchronous: wait until all workers are free, and hand out a batch. charged: workers wait while the method
            chooses, for the processor time that it takes on this machine; it chooses for one after another. Without,
            choosing takes no time, and the same seed gives the same run.

    Raises:
        UsageError: there is no worker, no budget, or an evaluation takes no positive time.
    """
    if workers < 1 or budget < 1:
        raise UsageError(f"a pool needs a worker and an evaluation, not {workers} workers and a budget of {budget}")
    clock_rng = np.random.default_rng([seed, 1])
    history = History.empty(space.width, seed=seed)
    running: list[tuple[float, int, int]] = []
    free, now, ready = list(range(workers)), 0.0, 0.0
    points, values = np.empty((budget, space.width)), np.empty(budget)
    begun, ended, chosen = np.empty(budget), np.empty(budget), np.zeros(budget)
    worker, count = np.empty(budget, dtype=np.intp), 0
    while True:
        while free and count < budget and now < until and (not synchronous or len(free) == workers):
            few = min(len(free), budget - count)
            started = process_time()
            rows = method.propose(space, history, few, np.random.default_rng([seed, 0, count]))
            chosen[count] = process_time() - started
            ready = max(ready, now) + (chosen[count] if charged else 0.0)
            if len(rows) == 0:
                break
            history = history.waiting_for(rows)
            for row, value in zip(rows, f(rows), strict=True):
                takes = durations(row, clock_rng)
                if not takes > 0:
                    raise UsageError(f"an evaluation takes a positive time, not {takes:g} s")
                points[count], values[count], worker[count] = row, value, free.pop(0)
                begun[count], ended[count] = ready, ready + takes
                heapq.heappush(running, (ended[count], count, int(worker[count])))
                count += 1
        if not running:
            break
        now, which, released = heapq.heappop(running)
        if now >= until:
            break
        free.append(released)
        history = history.told(points[which], float(values[which]), float(ended[which] - begun[which]))
    last = float(until) if np.isfinite(until) else float(begun[:count].max())
    return Run(
        points[:count], values[:count], begun[:count], ended[:count], worker[:count], workers,
        last if last > 0 else float(ended[:count].max()), chosen[:count],
    )  # fmt: skip


def half_normal(mean: float) -> Durations:
    """Durations that are the size of a normal variable, ``mean`` seconds on average."""
    require_positive(mean=mean)
    scale = mean * np.sqrt(np.pi / 2)
    return lambda point, rng: max(float(scale * abs(rng.standard_normal())), 1e-9)


def problem_named(name: str) -> Problem:
    """An unconstrained test function.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in UNCONSTRAINED:
        raise UnknownName("problem", name, UNCONSTRAINED)
    return PROBLEMS[name]


def _explain(problem: str, workers: int, seconds: float, evaluations: int, seeds: int) -> Explanation:
    at = problem_named(problem)
    require_positive(evaluations=evaluations, seeds=seeds)
    space = cube(at.dimension)
    until = evaluations * seconds / workers
    methods: dict[str, tuple[Method, bool]] = {
        "AEGiS": (Aegis(), False),
        "local penalization": (LocalPenalization(RefittedGP()), False),
        "Thompson, in batches": (Thompson(), True),
        "random": (RandomSearch(), False),
    }
    rows: list[dict[str, float | str]] = []
    for name, (method, waits) in methods.items():
        runs = [
            simulate_workers(
                method, at.function, space, workers, half_normal(seconds), 4 * evaluations, seed,
                until=until, synchronous=waits, charged=True,
            )
            for seed in range(seeds)
        ]  # fmt: skip
        rows.append(
            {
                "method": name,
                "median_regret": float(np.median([run.best_by(until) for run in runs])) - at.optimum,
                "evaluations": float(np.mean([(run.ended <= until).sum() for run in runs])),
                "idle_share": float(np.mean([run.idle.mean() for run in runs])),
            }
        )
    best = min(rows, key=lambda row: float(row["median_regret"]))
    return Explanation(
        {"wall_clock_time": until},
        (Table(f"{workers} workers on {problem} for the same time", tuple(rows)),),
        (f"{best['method']} has the least median regret over {seeds} seeds.",),
    )


TOPIC = Topic(
    "asynchronous",
    "What do many workers find when none of them waits for the others?",
    "De Ath et al., Asynchronous epsilon-Greedy Bayesian Optimisation, UAI 2021 (arXiv 2010.07615)",
    (
        Option("problem", str, f"A test function: {', '.join(UNCONSTRAINED)}."),
        Option("workers", int, "Workers that evaluate.", 8),
        Option("seconds", float, "Mean duration of an evaluation, half-normal, seconds.", 60.0),
        Option("evaluations", int, "Evaluations that the workers' time is enough for.", 60),
        Option("seeds", int, "Searches of each method.", 3),
    ),
    _explain,
    "--problem branin --workers 8 --evaluations 48 --seeds 2",
)  # fmt: skip
