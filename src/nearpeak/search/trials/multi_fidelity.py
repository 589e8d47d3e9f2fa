"""Cheap approximations as a parameter: how much does an evaluation tell about the real thing for each second it takes.

One parameter of the space is the fidelity (epochs, share of the data, repeats, problem size); the function that counts
is the one at its highest value. The surrogate sees the fidelity as any other parameter, so that it learns how far the
cheap resembles the dear. An evaluation at fidelity ``s`` is worth

    KG(x, s) / cost(s)

where the answer will be a configuration at the highest fidelity (``log KG - log cost``, see ``knowledge_gradient``).
Costs are given, or learned from what evaluations took: log seconds, a line in the log of the fidelity.

Poloczek, Wang, Frazier: Multi-Information Source Optimization, NeurIPS 2017. Wu, Toscano-Palmerin, Frazier, Wilson:
Practical Multi-fidelity Bayesian Optimization for Hyperparameter Tuning, UAI 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import Acquisition
from nearpeak.search.acquisitions.knowledge_gradient import (
    KnowledgeGradient,
    correlated,
    lines,
    log_expected_decrease,
    representatives,
)
from nearpeak.search.history import History
from nearpeak.search.parameters import Float, Floats, Integer
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior

Cost = Callable[[Floats], Floats]
"""Of fidelities ``[m]``: seconds (or any unit) of an evaluation, ``[m]``, above 0."""


@dataclass(frozen=True)
class MultiFidelity:
    """log of the knowledge gradient per cost.

    Attributes:
        fidelity: name of the parameter, an Integer or a Float above 0; its highest value is the real thing.
        cost: of a fidelity; None: learned from the seconds that evaluations took.
        gradient: how the points are chosen that stand for the space.
    """

    fidelity: str
    cost: Cost | None = None
    gradient: KnowledgeGradient = field(default_factory=KnowledgeGradient)

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Choose points at the highest fidelity that stand for the space, and learn the costs.

        Raises:
            UsageError: the space has no such fidelity, or the surrogate gives no covariances.
        """
        known = correlated(posterior, "multi-fidelity search")
        parameter = fidelity_of(space, self.fidelity)
        feature = int(np.flatnonzero(space.groups == list(space.parameters).index(self.fidelity))[0])
        real = at_highest(space, self.fidelity, representatives(space, history, rng))
        targets = self.gradient.targets(space.encode(real), known, rng)
        levels = known.predict(targets)[0]
        cost = self.cost or learned_cost(history.points[:, space.columns[self.fidelity].start], history.costs)

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            fidelity = _unscaled(parameter, x[:, feature])
            gained = log_expected_decrease(*lines(known, x, targets, *known.predict(x), levels, itself=False))
            return gained - np.log(cost(fidelity))

        return score


def fidelity_of(space: Space, name: str) -> Integer | Float:
    """The parameter that is the fidelity.

    Raises:
        UsageError: there is none of that name, or it is not a number above 0 that always exists.
    """
    parameter = space.parameters.get(name)
    if parameter is None:
        raise UsageError(f"no parameter {name!r} to be the fidelity; there are {', '.join(space.parameters)}")
    if not isinstance(parameter, Integer | Float) or parameter.low <= 0 or name in space.conditions:
        raise UsageError(f"the fidelity {name} must be an Integer or a Float above 0 without a condition")
    return parameter


def at_highest(space: Space, name: str, points: Floats) -> Floats:
    """Configurations with the fidelity raised to its highest value; those that then break a constraint are dropped.

    Raises:
        UsageError: all do.
    """
    raised = points.copy()
    raised[:, space.columns[name]] = fidelity_of(space, name).high
    raised = raised[space.holds(raised)]
    if len(raised) == 0:
        raise UsageError(f"no configuration meets the constraints at the highest {name}: nothing could be the answer")
    return np.unique(raised, axis=0)


def learned_cost(fidelity: Floats, seconds: Floats) -> Cost:
    """``exp(a) s^b`` by least squares of log seconds ``[n]`` on log fidelities ``[n]``, b at least 0.

    Raises:
        UsageError: no evaluation took any time: then the costs must be given.
    """
    timed = seconds > 0
    if not timed.any():
        raise UsageError("no evaluation has a cost from which to learn that of a fidelity: give `cost`")
    log_s, log_t = np.log(fidelity[timed]), np.log(seconds[timed])
    spread = float(((log_s - log_s.mean()) ** 2).sum())
    slope = max(float(((log_s - log_s.mean()) * log_t).sum()) / spread, 0.0) if spread > 0 else 1.0
    start = float(log_t.mean() - slope * log_s.mean())

    def cost(s: Floats) -> Floats:
        return np.exp(start + slope * np.log(s))

    return cost


def recommended(space: Space, fidelity: str, history: History, posterior: Posterior) -> Floats:
    """Of the configurations seen, at the highest fidelity, the one with the least posterior mean, ``[width]``."""
    seen = at_highest(space, fidelity, history.points[history.succeeded])
    return np.asarray(seen[int(np.argmin(posterior.predict(space.encode(seen))[0]))])


def _unscaled(parameter: Integer | Float, feature: Floats) -> Floats:
    low, high = parameter.low, parameter.high
    if parameter.log:
        return np.asarray(low * (high / low) ** feature)
    return np.asarray(low + feature * (high - low))
