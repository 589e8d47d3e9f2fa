"""Thompson sampling: each configuration is the minimiser of one function drawn from the posterior.

A draw must be a function that can be asked anywhere. A prior draw is a sum of random Fourier features; Matheron's rule
makes a posterior draw of it,

    (f | y)(x) = f(x) + k(x, X) (K + S)^-1 (y - f(X) - e),    e ~ N(0, S)

which is exact wherever the prior draw is: features are few where data are, and only blur the prior between them.

Rahimi, Recht: Random Features for Large-Scale Kernel Machines, NeurIPS 2007. Wilson et al.: Efficiently Sampling
Functions from Gaussian Process Posteriors, ICML 2020. Kandasamy et al.: Parallelised Bayesian Optimisation via Thompson
Sampling, AISTATS 2018.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.linalg import cho_solve

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import opening
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.kernels import Stationary
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP

FREEDOM: Final = {"matern12": 1.0, "matern32": 3.0, "matern52": 5.0}
"""Degrees of freedom of the multivariate t that a Matern kernel's frequencies follow; those of ``rbf`` are normal."""


def draw_path(gp: GP, rng: np.random.Generator, features: int = 512) -> Callable[[Floats], Floats]:
    """A function drawn from the posterior of a stationary GP: of features ``[m, f]``, ``[m]`` in the units of values.

    Raises:
        UsageError: the kernel is not stationary, and has no frequencies to draw.
    """
    kernel = gp.kernel
    if not isinstance(kernel, Stationary):
        raise UsageError(f"a path is drawn from a stationary kernel, not from {type(kernel).__name__}")
    lengths = kernel.lengthscales if kernel.groups is None else kernel.lengthscales[kernel.groups]
    frequencies = rng.standard_normal((len(lengths), features))
    if kernel.shape in FREEDOM:
        freedom = FREEDOM[kernel.shape]
        frequencies *= np.sqrt(freedom / rng.chisquare(freedom, features))
    frequencies /= lengths[:, None]
    phases = rng.uniform(0, 2 * np.pi, features)
    heights = np.sqrt(2 * kernel.scale / features) * rng.standard_normal(features)
    # Cosines of single precision take a tenth of the time; their error is far below that of the features' number.
    single = frequencies.astype(np.float32), phases.astype(np.float32), heights.astype(np.float32)

    def prior(x: Floats) -> Floats:
        return np.asarray(np.cos(x.astype(np.float32) @ single[0] + single[1]) @ single[2], dtype=np.float64)

    errors = np.sqrt(gp.noise) * rng.standard_normal(len(gp.x))
    correction = gp.weights - cho_solve((gp.factor, True), prior(gp.x) + errors, check_finite=False)

    def path(x: Floats) -> Floats:
        mean = 0.0 if gp.mean is None else gp.mean(x)
        return np.asarray(gp.centre + gp.spread * (prior(x) + correction @ kernel(gp.x, x)) + mean)

    return path


def sampled(space: Space, posterior: GP, history: History, rng: np.random.Generator) -> Floats:
    """The minimiser of one draw from the posterior, ``[width]``."""
    path = draw_path(posterior, rng)
    return maximize(space, lambda x: -path(x), history, rng)


@dataclass(frozen=True)
class Thompson:
    """Thompson sampling, one draw for each point of a batch.

    Attributes:
        initial: evaluations before the first surrogate.
    """

    surrogate: GPSurrogate = field(default_factory=RefittedGP)
    initial: int | None = None

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        posterior = self.surrogate(space, history, rng)
        for _ in range(count):
            history = history.waiting_for(sampled(space, posterior, history, rng)[None])
        return history.pending[-count:]
