"""Acquisition where quantities that are measured along with the value must stay at most 0.

Each constraint has a GP of its own. What an evaluation is worth counts only where the configuration turns out feasible:

    log a(x) + sum_k log P(c_k(x) <= 0)

and while nothing feasible was seen, the probability alone leads. The acquisition's incumbents are feasible ones.

Gardner, Kusner, Xu, Weinberger, Cunningham: Bayesian Optimization with Inequality Constraints, ICML 2014. Gelbart,
Snoek, Adams: Bayesian Optimization with Unknown Constraints, UAI 2014.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr

from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.bayesian import Preparation, Surrogate, gp_surrogate, prepared
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior


def constraint_models(
    space: Space, history: History, rng: np.random.Generator, surrogate: Surrogate = gp_surrogate
) -> list[Posterior]:
    """Beliefs about each measured constraint."""
    unknown = np.full(len(history), np.nan)
    return [
        surrogate(space, replace(history, values=measured, variances=unknown), rng)
        for measured in history.constraints.T
        if np.isfinite(measured).sum() >= 2
    ]


def log_feasibility(models: Sequence[Posterior], x: Floats) -> Floats:
    """Log P(every constraint is at most 0) at features ``[m, f]``, constraints independent, ``[m]``."""
    found = np.zeros(len(x))
    for model in models:
        mean, sd = model.predict(x)
        found += log_ndtr(-mean / sd)
    return found


@dataclass(frozen=True)
class Constrained:
    """An acquisition weighted by the probability of feasibility.

    Attributes:
        acquisition: gives logarithms. surrogate: of each constraint.
    """

    acquisition: Acquisition | Preparation = log_expected_improvement
    surrogate: Surrogate = gp_surrogate

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Fit a model of each constraint."""
        models = constraint_models(space, history, rng, self.surrogate)
        inner = prepared(self.acquisition, space, history, posterior, rng)
        found = bool(history.feasible.any())

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            feasible = log_feasibility(models, x)
            return inner(posterior, x, best) + feasible if found else feasible

        return score
