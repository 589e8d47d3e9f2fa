"""Constrained Bayesian optimization in context: no model is fitted.

The prior-fitted network (``prior_fitted``) reads objective and measured constraints in one pass, as outputs over one
set of points.

What is evaluated next has the largest expected improvement times probability of feasibility; while nothing feasible
was seen, the probability alone leads. Constraints enter as bilogs, which leave their sign as it is.

Yu, Picard, Ahmed: Fast and Accurate Bayesian Optimization with Pre-trained Transformers for Constrained Engineering
Problems, arXiv:2406.02883 (2024). Gardner et al.: Bayesian Optimization with Inequality Constraints, ICML 2014.
"""

import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import log_ndtr

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.acquisitions.constrained import Constrained
from nearpeak.search.bayesian import Bayesian, gp_surrogate, opening
from nearpeak.search.candidates import maximize
from nearpeak.search.engineering_problems import ENGINEERING
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.study import Study, compare, cube
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.prior_fitted import Context, widened, worth_keeping
from nearpeak.topic import Explanation, Option, Table, Topic

EFFORT: Final = 0.25
"""Share of the usual number of candidates: each costs more than one of a Gaussian process."""


def bilog(c: Floats) -> Floats:
    """``sign(c) log(1 + |c| / m)`` of each column ``[n, k]``, m the median of ``|c|``: zero stays where it is, and
    values of many magnitudes come together (Eriksson, Poloczek: Scalable Constrained Bayesian Optimization, AISTATS
    2021).
    """
    size = np.median(np.abs(c), axis=0)
    return np.asarray(np.sign(c) * np.log1p(np.abs(c) / np.where(size > 0, size, 1.0)))


@dataclass(frozen=True)
class ConstrainedInContext:
    """Constrained Bayesian optimization without a fit: the objective and every constraint are outputs of one pass.

    Attributes:
        initial: evaluations before the first pass; None: twice the parameters and two.
    """

    initial: int | None = None

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        good = np.flatnonzero(history.succeeded)
        good = good[worth_keeping(history.losses[good])]
        x = widened(space.encode(history.points[good]))
        outputs = np.vstack([history.values[good], bilog(history.constraints[good]).T])
        feasible = history.feasible[good]
        best = float(history.values[good][feasible].min()) if feasible.any() else None
        if len(history.pending):
            x, outputs = _with_guesses(Context.read(x[None], outputs), x, outputs, space.encode(history.pending))
        chosen = np.empty((0, space.width))
        for _ in range(count):
            context = Context.read(x[None], outputs)

            def score(features: Floats, context: Context = context) -> Floats:
                return feasible_improvement(*context.at(widened(features)[None]), best)

            point = maximize(space, score, history, rng, EFFORT)
            chosen, history = np.vstack([chosen, point[None]]), history.waiting_for(point[None])
            x, outputs = _with_guesses(context, x, outputs, space.encode(point[None]))
        return chosen


def feasible_improvement(mean: Floats, sd: Floats, best: float | None) -> Floats:
    """``log E[max(best - f, 0)] + sum_k log P(c_k <= 0)`` of beliefs ``[1 + k, m]``, the objective first, ``[m]``; the
    probability alone where nothing feasible was seen (``best`` None).
    """
    feasible = log_ndtr(-mean[1:] / sd[1:]).sum(0)
    return np.asarray(
        feasible if best is None else feasible + log_improvement((best - mean[0]) / sd[0]) + np.log(sd[0])
    )


def _with_guesses(context: Context, x: Floats, outputs: Floats, features: Floats) -> tuple[Floats, Floats]:
    """Points that are being evaluated count with the network's means."""
    at = widened(features)
    return np.vstack([x, at]), np.hstack([outputs, context.at(at[None])[0]])


def bilog_gp(space: Space, history: History, rng: np.random.Generator) -> GP:
    """A fitted Gaussian process of a constraint's bilog: what the network is compared with."""
    good = history.succeeded
    values = np.full(len(history), np.nan)
    values[good] = bilog(history.values[good][:, None])[:, 0]
    return gp_surrogate(space, replace(history, values=values), rng)


METHODS: Final[dict[str, Method]] = {
    "in-context": ConstrainedInContext(),
    "gp-cei": Bayesian(acquisition=Constrained(surrogate=bilog_gp)),
}
"""The network, and refitted Gaussian processes with constrained expected improvement on the same outputs."""


def seconds_to_propose(problem: str, evaluations: int, repeats: int = 3, seed: int = 0) -> dict[str, float]:
    """Median seconds of a proposal after so many random evaluations, the methods measured in turns."""
    own = ENGINEERING[problem]
    assert own.constraints is not None
    space = cube(own.dimension)
    points = space.sample(evaluations, np.random.default_rng(seed))
    history = replace(History.of(points, own.function(points)), constraints=own.constraints(points))
    spent: dict[str, list[float]] = {name: [] for name in METHODS}
    for k in range(repeats):
        for name, method in METHODS.items():
            begun = time.process_time()
            method.propose(space, history, 1, np.random.default_rng(k))
            spent[name].append(time.process_time() - begun)
    return {name: float(np.median(times)) for name, times in spent.items()}


def race(problem: str, evaluations: int, seeds: int, first_seed: int = 0) -> Study:
    """Both methods on an engineering problem; regret is that of the best feasible design, infinite without one."""
    return compare(METHODS, [ENGINEERING[problem]], seeds, evaluations, first_seed=first_seed)


def _explain(problem: str, evaluations: int, seeds: int) -> Explanation:
    if problem not in ENGINEERING:
        raise UnknownName("problem", problem, ENGINEERING)
    own = ENGINEERING[problem]
    if evaluations <= 2 * own.dimension + 2 or seeds < 1:
        raise UsageError(
            f"take more than {2 * own.dimension + 2} evaluations and a seed, not {evaluations} and {seeds}"
        )
    study, spent = race(problem, evaluations, seeds), seconds_to_propose(problem, evaluations)
    best = own.optimum + np.median(study.final[:, 0], axis=1)
    return Explanation(
        {
            "best_known": own.optimum,
            **{
                f"best_feasible_{name.replace('-', '_')}": float(b) for name, b in zip(study.methods, best, strict=True)
            },
            **{f"{name.replace('-', '_')}_proposal_time": seconds for name, seconds in spent.items()},
        },
        (
            Table.of(
                "Best feasible, by seed",
                **{n: own.optimum + r for n, r in zip(study.methods, study.final[:, 0], strict=True)},
            ),
        ),
        (
            f"A proposal at {evaluations} evaluations takes {spent['gp-cei'] / spent['in-context']:.3g} times as long "
            "with Gaussian processes that are refitted as in context.",
        ),
    )


TOPIC = Topic(
    "prior-fitted",
    "Can a network that was trained once replace the fit of Gaussian processes in constrained optimization?",
    "Yu, Picard and Ahmed, Fast and Accurate Bayesian Optimization with Pre-trained Transformers for Constrained "
    "Engineering Problems, 2024 (arXiv 2406.02883)",
    (
        Option("problem", str, "One of beam, spring, vessel, speed-reducer, truss.", "truss"),
        Option("evaluations", int, "Of each search.", 20),
        Option("seeds", int, "Searches of each method.", 2),
    ),
    _explain,
    "--problem truss --evaluations 20 --seeds 2",
)
