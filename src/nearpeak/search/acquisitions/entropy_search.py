"""Max-value entropy search: how many nats does an evaluation tell about the least value of the function.

For draws ``f*`` of the least value and ``g = (mean - f*) / sd``, an evaluation without noise tells

    MES(x) = E_f*[ g phi(g) / (2 Phi(g)) - log Phi(g) ]

since knowing ``f*`` cuts the normal belief off below it (Wang, Jegelka: Max-value Entropy Search for Efficient Bayesian
Optimization, ICML 2017). With noise, the observation given ``f*`` has the variance ``1 - rho^2 q(g)`` in units of its
own, ``rho^2 = sd^2 / (sd^2 + noise)``, ``q = r (g + r)``, ``r = phi(g) / Phi(g)``, and a normal has the most entropy of
that variance:

    MES(x) >= E_f*[ -log(1 - rho^2 q(g)) / 2 ]

(Moss, Leslie, Gonzalez, Rayson: GIBBON, JMLR 2021). It is kept as a logarithm. Draws of ``f*`` are the least values of
joint draws of the posterior over configurations that stand for the space.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from nearpeak.search.acquisitions.analytic import Acquisition
from nearpeak.search.acquisitions.knowledge_gradient import representatives
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import Posterior

_LOG_ROOT_2PI = 0.5 * float(np.log(2 * np.pi))
_LEAST = 1e-300


def max_value_information(mean: Floats, sd: Floats, minima: Floats, noise: float = 0.0) -> Floats:
    """Nats that an observation tells about the minimum, ``[m]``; with noise a lower bound.

    Args:
        mean, sd: beliefs about the function at points, ``[m]`` each. minima: draws of its least value, ``[k]``.
        noise: variance of the observation about the function.
    """
    above = (mean[:, None] - minima) / sd[:, None]
    log_below = log_ndtr(above)
    ratio = np.exp(-0.5 * above**2 - _LOG_ROOT_2PI - log_below)
    if noise <= 0:
        return np.asarray((0.5 * above * ratio - log_below).mean(axis=1))
    share = (sd**2 / (sd**2 + noise))[:, None]
    shrunk = np.clip(ratio * (above + ratio), 0.0, 1.0)
    return np.asarray((-0.5 * np.log1p(-share * shrunk)).mean(axis=1))


@dataclass(frozen=True)
class MaxValueEntropy:
    """log of ``max_value_information``.

    Attributes:
        draws: of the least value. noisy: whether the surrogate's noise of an observation counts.
    """

    draws: int = 32
    noisy: bool = True

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Draw least values."""
        features = space.encode(representatives(space, history, rng))
        minima = posterior.sample(features, self.draws, rng).min(axis=1)
        noise = float(getattr(posterior, "observation_variance", 0.0)) if self.noisy else 0.0

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            mean, sd = posterior.predict(x)
            return np.log(np.maximum(max_value_information(mean, sd, minima, noise), _LEAST))

        return score
