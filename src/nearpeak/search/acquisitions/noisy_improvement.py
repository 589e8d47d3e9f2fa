"""Expected improvement where evaluations are noisy, as decision theory has it.

Who stops after ``n`` evaluations reports the evaluated point with the least posterior mean: noise forbids to report
the least value. One more evaluation at ``x`` is worth by how much that least mean is expected to fall:

    NEI(x) = E[min_{i <= n} mu_n(x_i) - min_{i <= n+1} mu_{n+1}(x_i)],    x_{n+1} = x

That is the knowledge gradient with the answer among the evaluated points, exact by the same polygon, plus
``max(min_i mu(x_i) - mu(x), 0)``: before its evaluation ``x`` could not be reported. Without noise ``mu(x_i)`` cannot
change, one line has a slope, and NEI is EI.

Frazier: A Tutorial on Bayesian Optimization, arXiv:1807.02811 (2018), section 5. Scott, Frazier, Powell: The Correlated
Knowledge Gradient for Simulation Optimization of Continuous Parameters, SIAM J. Optimization 2011.
"""

from dataclasses import dataclass

import numpy as np

from nearpeak.search.acquisitions.analytic import Acquisition
from nearpeak.search.acquisitions.knowledge_gradient import Correlated, correlated, lines, log_expected_decrease
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior


@dataclass(frozen=True)
class NoisyImprovement:
    """log NEI, the answer being an evaluated configuration.

    Attributes:
        most: evaluated points of least mean that may be the answer.
    """

    most: int = 200

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Take the evaluated points: the feasible ones, where there are any."""
        known = correlated(posterior, "noisy expected improvement")
        seen = space.encode(history.points[history.feasible if history.feasible.any() else history.succeeded])
        seen = seen[np.argsort(known.predict(seen)[0], kind="stable")[: self.most]]

        levels = known.predict(seen)[0]

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            return log_noisy_improvement(known, x, seen, levels)

        return score


def log_noisy_improvement(posterior: Correlated, x: Floats, seen: Floats, levels: Floats) -> Floats:
    """Log NEI of an evaluation at each row of features ``x [m, f]``, ``[m]``.

    Args:
        seen: features of the evaluated points, ``[n, f]``. levels: posterior means there, ``[n]``.
    """
    mean, sd = posterior.predict(x)
    decrease = log_expected_decrease(*lines(posterior, x, seen, mean, sd, levels))
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp(decrease, np.log(np.maximum(levels.min() - mean, 0.0))))
