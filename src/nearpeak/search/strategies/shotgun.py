"""Batches by an epsilon-shotgun: aim greedily, and scatter the batch around the aim.

The first of a batch is where the surrogate's mean is least, or with probability epsilon a random member of the Pareto
set of its mean and uncertainty (``greedy``). The others are normal draws around it, ``N(x', r^2 I)`` in the unit cube
of features, cut off at its sides. The minimiser may be as far off as what separates the aim from the best value f*
seen, given how fast the function changes about the aim:

    r = (|mu(x') - f*| + gamma sigma(x')) / L

L is the largest slope of the mean within a length scale of the aim; gamma is 1, r at most half the cube's diagonal.
A sure aim on a steep slope is shot narrowly, an unsure one on flat ground widely. There is one maximisation a batch,
whatever its size.

De Ath, Everson, Fieldsend, Rahat: epsilon-shotgun: epsilon-greedy Batch Bayesian Optimisation, GECCO 2020
(arXiv 2002.01873).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr, ndtri

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import opening
from nearpeak.search.candidates import WHOLE_GRID, unseen
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.strategies.greedy import expecting, exploring, greediest
from nearpeak.search.strategies.local_penalization import LocalPenalization, steepest
from nearpeak.search.study import cube
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.kernels import Stationary, squared_distances
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP
from nearpeak.topic import Explanation, Option, Table, Topic

_POOL = 1_024
_TRIES = 20


@dataclass(frozen=True)
class Shotgun:
    """The method.

    Attributes:
        epsilon: probability that a batch explores. gamma: weight of the uncertainty in the radius.
        initial: evaluations before the first surrogate.

    Raises:
        UsageError: epsilon is no probability.
    """

    epsilon: float = 0.1
    gamma: float = 1.0
    surrogate: GPSurrogate = field(default_factory=RefittedGP)
    initial: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UsageError(f"epsilon is a probability, from 0 to 1, not {self.epsilon:g}")

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        posterior = expecting(space, self.surrogate(space, history, rng), history)
        choose = exploring if rng.random() < self.epsilon else greediest
        aim = choose(space, posterior, history, rng)[None]
        reach = radius(posterior, space.encode(aim)[0], float(history.values[history.succeeded].min()), self.gamma, rng)
        history = history.waiting_for(aim)
        return np.vstack([aim, scattered(space, aim[0], reach, count - 1, history, rng)])


def radius(posterior: GP, aim: Floats, best: float, gamma: float, rng: np.random.Generator) -> float:
    """Standard deviation of the scatter around features ``aim [f]``; ``best`` is the least value seen."""
    assert isinstance(posterior.kernel, Stationary)
    kernel = posterior.kernel
    lengths = kernel.lengthscales if kernel.groups is None else kernel.lengthscales[kernel.groups]
    slope = steepest(posterior, np.maximum(aim - lengths, 0.0), np.minimum(aim + lengths, 1.0), posterior.x, rng)
    mean, sd = posterior.predict(aim[None])
    gap = abs(float(mean[0]) - best) + gamma * float(sd[0])
    widest = 0.5 * np.sqrt(len(aim))
    return float(widest if slope * widest <= gap else gap / slope)


def scattered(
    space: Space, centre: Floats, reach: float, count: int, history: History, rng: np.random.Generator
) -> Floats:
    """Configurations normal about ``centre [width]`` with standard deviation ``reach`` in features, ``[count, width]``.

    Floats are drawn as they are, and again where a constraint does not hold. Where there are other parameters a draw
    lands on the nearest configuration that nothing took yet.
    """
    if count == 0:
        return np.empty((0, space.width))
    middle = space.encode(centre[None])
    if space.floats and not space.conditions:
        found = np.empty((0, space.width))
        for _ in range(_TRIES):
            draws = _truncated_normal(np.repeat(middle, 2 * count, axis=0), reach, rng)
            rows = np.column_stack([p.unscale(c) for p, c in zip(space.floats, draws.T, strict=True)])
            found = np.vstack([found, rows[space.holds(rows)]])
            if len(found) >= count:
                return found[:count]
        return np.vstack([found, space.sample(count - len(found), rng)])
    if space.grid is not None and len(space.grid.points) <= WHOLE_GRID:
        pool = unseen(space, space.grid.points, history)
    else:
        near = space.moved(np.repeat(centre[None], _POOL, axis=0), rng, reach)
        pool = unseen(space, np.unique(np.vstack([near, space.sample(_POOL, rng)]), axis=0), history)
    if len(pool) < count:
        return np.vstack([pool, space.sample(count - len(pool), rng)])
    away = squared_distances(_truncated_normal(np.repeat(middle, count, axis=0), reach, rng), space.encode(pool))
    taken = np.empty(count, dtype=np.intp)
    for i in range(count):
        taken[i] = int(np.argmin(away[i]))
        away[:, taken[i]] = np.inf
    return np.asarray(pool[taken])


def _truncated_normal(middle: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    """Normal draws about ``middle [n, f]`` that stay in the unit cube, by inversion."""
    low, high = ndtr(-middle / deviation), ndtr((1 - middle) / deviation)
    drawn = middle + deviation * ndtri(low + (high - low) * rng.random(middle.shape))
    return np.asarray(np.clip(drawn, 0.0, 1.0))


def regrets(problem: str, batch: int, evaluations: int, seeds: int) -> dict[str, Floats]:
    """Best value less the optimum after so many evaluations in batches, of each method for each seed, ``[seeds]``.

    Raises:
        UnknownName: there is no such problem. UsageError: a count is below 1.
    """
    from nearpeak.search.strategies.asynchronous import problem_named, simulate_workers

    at = problem_named(problem)
    space = cube(at.dimension)
    if min(batch, evaluations, seeds) < 1:
        raise UsageError(f"batch, evaluations and seeds are at least 1, not {min(batch, evaluations, seeds)}")
    methods: dict[str, Method] = {
        "epsilon-shotgun": Shotgun(),
        "local penalization": LocalPenalization(RefittedGP()),
        "random": RandomSearch(),
    }

    def best(name: str, seed: int) -> float:
        run = simulate_workers(
            methods[name], at.function, space, batch, lambda point, rng: 1.0, evaluations, seed, synchronous=True
        )
        return float(np.nanmin(run.values)) - at.optimum

    return {name: np.array([best(name, seed) for seed in range(seeds)]) for name in methods}


def _explain(problem: str, batch: int, evaluations: int, seeds: int) -> Explanation:
    found = regrets(problem, batch, evaluations, seeds)
    middle = {name: float(np.median(values)) for name, values in found.items()}
    return Explanation(
        {"batches": -(-evaluations // batch)},
        (
            Table.of(
                f"Best value less the optimum of {problem} after {evaluations} evaluations in batches of {batch}",
                method=list(middle),
                median_regret=list(middle.values()),
                least_regret=[float(v.min()) for v in found.values()],
                largest_regret=[float(v.max()) for v in found.values()],
            ),
        ),
        (f"{min(middle, key=lambda name: middle[name])} has the least median regret over {seeds} seeds.",),
    )


TOPIC = Topic(
    "shotgun",
    "How good are batches that are scattered around one greedy aim?",
    "De Ath et al., epsilon-shotgun: epsilon-greedy Batch Bayesian Optimisation, GECCO 2020 (arXiv 2002.01873)",
    (
        Option("problem", str, f"A test function: {', '.join(n for n, p in PROBLEMS.items() if not p.constraints)}."),
        Option("batch", int, "Configurations that are evaluated at once.", 10),
        Option("evaluations", int, "Evaluations in all.", 100),
        Option("seeds", int, "Searches of each method.", 3),
    ),
    _explain,
    "--problem branin --batch 10 --evaluations 60 --seeds 2",
)
