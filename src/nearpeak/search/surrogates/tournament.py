"""Which surrogate suits a space? A tournament of them on a sample of it.

Five beliefs about the function behind one interface: an exact Gaussian process, a deep ensemble, a network whose
weights are sampled by Hamiltonian Monte Carlo, a deep kernel and a network of infinite width. No one is best
everywhere: smooth functions of few parameters suit the first, functions that change their character (steps, cliffs)
the finite networks, very many parameters the infinite one. So they are tried where it matters: some configurations of
the space are evaluated once, and each surrogate then searches that table, one row revealed at a time, from the same
first rows. What counts is the regret against the best row.

Li, Rudner, Wilson: A Study of Bayesian Neural Network Surrogates for Bayesian Optimization, ICLR 2024.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import log_expected_improvement
from nearpeak.search.bayesian import Surrogate, gp_surrogate, incumbent
from nearpeak.search.candidates import farthest
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import Problem, hartmann6
from nearpeak.search.space import Space
from nearpeak.search.study import Study, cube
from nearpeak.search.surrogates.bayesian_network import BayesianNetwork
from nearpeak.search.surrogates.deep_ensemble import DeepEnsemble
from nearpeak.search.surrogates.deep_kernel import DeepKernelGP
from nearpeak.search.surrogates.gp import GP, fit
from nearpeak.search.surrogates.infinite_width import InfiniteWidthGP
from nearpeak.search.surrogates.networks import Network
from nearpeak.topic import Explanation, Option, Topic, names


def rbf_surrogate(space: Space, history: History, rng: np.random.Generator) -> GP:
    """An exact ARD Gaussian process with the squared exponential kernel."""
    good = history.succeeded
    return fit(space.encode(history.points[good]), history.values[good], shape="rbf", groups=space.groups)


SURROGATES: Final[Mapping[str, Surrogate]] = {
    "gp": gp_surrogate,
    "gp-rbf": rbf_surrogate,
    "deep-ensemble": DeepEnsemble(),
    "bayesian-network": BayesianNetwork(),
    "deep-kernel": DeepKernelGP(),
    "infinite-width": InfiniteWidthGP(),
}
"""By name, as `--surrogate` takes them."""


def tournament(
    space: Space,
    points: Floats,
    values: Floats,
    evaluations: int,
    seeds: int,
    surrogates: Mapping[str, Surrogate] = SURROGATES,
    initial: int = 10,
    first_seed: int = 0,
    title: str = "sample",
) -> Study:
    """Every surrogate, and random search, on a table of the space.

    Args:
        points: configurations, ``[n, width]``. values: what they gave, ``[n]``; smaller is better; NaN: it failed.
        evaluations: rows that each may look at. initial: of them, those chosen before the first surrogate: a spread
            sample, the same for all of one seed.

    Returns:
        the regrets against the best row; "random" is the last method.

    Raises:
        UsageError: fewer rows than evaluations, or no value.
    """
    if not initial < evaluations <= len(points) or not np.isfinite(values).any():
        raise UsageError(
            f"a tournament of {evaluations} evaluations, {initial} of them a first sample, needs a table of at least "
            f"that many rows with values, not {len(points)} rows, {np.isfinite(values).sum()} with a value"
        )
    features, best = space.encode(points), np.nanmin(values)
    methods = [*surrogates, "random"]
    curves = np.empty((len(methods), 1, seeds, evaluations))
    for k in range(seeds):
        order = np.random.default_rng([first_seed + k, 0]).permutation(len(points))
        spread = farthest(features[order[: 20 * initial]], initial)
        first = order[np.concatenate([spread, np.setdiff1d(np.arange(len(order)), spread)])]
        for i, name in enumerate(methods):
            chosen = list(first[:initial] if name in surrogates else first[:evaluations])
            while len(chosen) < evaluations:
                rng = np.random.default_rng([first_seed + k, 1, len(chosen)])
                chosen.append(_next(space, surrogates[name], features, points, values, chosen, first, rng))
            seen = np.where(np.isfinite(values[chosen]), values[chosen], np.inf)
            curves[i, 0, k] = np.minimum.accumulate(seen) - best
    return Study(tuple(methods), (title,), curves, curves[..., -1])


def _next(
    space: Space, surrogate: Surrogate, features: Floats, points: Floats, values: Floats, chosen: list[int],
    order: Floats, rng: np.random.Generator,
) -> int:  # fmt: skip
    """The unseen row of largest expected improvement; the next of ``order`` until two rows gave values."""
    left = np.setdiff1d(order, chosen)
    if np.isfinite(values[chosen]).sum() < 2:
        return int(rng.choice(left))
    history = History.of(points[chosen], values[chosen])
    posterior = surrogate(space, history, rng)
    scores = log_expected_improvement(posterior, features[left], incumbent(space, history, posterior))
    return int(left[np.argmax(scores)])


def network_draw(dimension: int, seed: int = 0) -> Problem:
    """A network with random weights (two hidden layers of 64) as a function; its least value is not known."""
    network = Network((dimension, 64, 64, 1))
    theta = 1.7 * network.draw(1, np.random.default_rng([seed, dimension]))

    def function(x: Floats) -> Floats:
        return np.asarray(network(theta, 2 * x - 1)[0, :, 0])

    return Problem(f"network-{dimension}", dimension, function, -np.inf, 8.0)


def steps(x: Floats) -> Floats:
    """Terraces with cliffs between them, ripples on one side of the space only, ``[n, 4] -> [n]``."""
    terraces = np.floor(4 * x[:, 0]) + 1.5 * np.floor(2 * x[:, 3] + 0.4)
    ripples = np.where(x[:, 1] > 0.6, np.sin(9 * x[:, 2]) * x[:, 1], 0.3 * x[:, 2])
    return np.asarray(np.abs(terraces - 1.0) + ripples)


ARENA: Final[Mapping[str, Problem]] = {
    "hartmann-6": Problem("hartmann-6", 6, hartmann6, -3.322368011415515, 3.32),
    "network-50": network_draw(50),
    "steps-4": Problem("steps-4", 4, steps, -1.0, 6.0),
}
"""Functions of different character: smooth, of very many inputs, with cliffs."""


def on_problem(
    problem: Problem, sample: int, evaluations: int, seeds: int, surrogates: Mapping[str, Surrogate] = SURROGATES
) -> Study:
    """A tournament on uniform draws of a problem's unit cube."""
    space = cube(problem.dimension)
    points = space.sample(sample, np.random.default_rng(sample))
    return tournament(space, points, problem.function(points), evaluations, seeds, surrogates, title=problem.name)


def _explain(problem: str, surrogates: tuple[str, ...], sample: int, evaluations: int, seeds: int) -> Explanation:
    if problem not in ARENA:
        raise UnknownName("problem", problem, ARENA)
    for name in surrogates:
        if name not in SURROGATES:
            raise UnknownName("surrogate", name, SURROGATES)
    study = on_problem(ARENA[problem], sample, evaluations, seeds, {name: SURROGATES[name] for name in surrogates})
    median = np.median(study.final[:, 0], axis=1)
    ranks = study.ranks[:, 0]
    winner = study.methods[int(np.argmin(ranks))]
    return Explanation(
        {"winner": winner, "mean_rank": float(ranks.min()), "median_regret": float(median[np.argmin(ranks)])},
        (study.table(),),
        (
            f"On {problem}, {winner} ranks first over {seeds} seeds of {evaluations} evaluations each.",
            f"Random search has a median regret of {median[-1]:.3g}, the best surrogate {median[:-1].min():.3g}.",
        ),
    )


TOPIC = Topic(
    "surrogates",
    "Which surrogate searches a space best: a Gaussian process or one of four neural networks?",
    "Li, Rudner and Wilson, A Study of Bayesian Neural Network Surrogates for Bayesian Optimization, ICLR 2024 "
    "(arXiv 2305.20028)",
    (
        Option("problem", str, "One of hartmann-6, network-50, steps-4.", "steps-4"),
        Option("surrogates", names, "Surrogates that compete.", tuple(SURROGATES)),
        Option("sample", int, "Configurations of the table that is searched.", 500),
        Option("evaluations", int, "Rows that each surrogate may look at, ten of them the first sample.", 20),
        Option("seeds", int, "Repetitions with other first samples.", 2),
    ),
    _explain,
    "--problem steps-4 --surrogates gp,infinite-width,deep-ensemble --evaluations 16 --seeds 2",
)
