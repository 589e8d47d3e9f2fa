"""An exact GP whose hyperparameters are learnt anew only when the evaluations have grown by a share.

Fitting hyperparameters costs some fifty factorizations, conditioning on data one. Between two fits a tenth more
evaluations hardly move the hyperparameters, so a search that fits at 4, 5, 6, ... 100, 110, 121, ... evaluations pays
for ``log n`` fits and not for n. They are learnt from the first so many evaluations, hence a function of the history
alone: a search that resumes finds the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, condition, fit, standardised

GPSurrogate = Callable[[Space, History, np.random.Generator], GP]
"""A surrogate that is a GP: it can be told of pending points, and has covariances."""


def learning_count(seen: int, growth: float, most: int) -> int:
    """How many of the first ``seen`` evaluations hyperparameters are learnt from: the last of 4, 4 (1 + growth), ..."""
    count = min(seen, 4)
    while (following := max(int(np.ceil(count * (1 + growth))), count + 1)) <= min(seen, most):
        count = following
    return count


@dataclass(frozen=True)
class RefittedGP:
    """The surrogate.

    Attributes:
        growth: share by which evaluations grow from one fit to the next; 0.0 fits at every evaluation.
        most: evaluations beyond which hyperparameters stay. iterations: of a fit. shapes: of ``kernels.SHAPES``; of
            several, the one whose fit has the largest evidence.
    """

    growth: float = 0.1
    most: int = 256
    iterations: int = 50
    shapes: tuple[str, ...] = ("matern52",)
    _learnt: dict[bytes, GP] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> GP:
        """An ARD GP given every evaluation that succeeded."""
        good = history.succeeded
        x, y, variances = space.encode(history.points[good]), history.values[good], history.variances[good]
        noise = variances if np.isfinite(variances).all() else None
        learnt = self.learnt(space, x, y, noise)
        _, _, spread = standardised(y)
        noises = np.mean(learnt.noise) if noise is None else noise / spread**2
        return condition(learnt.kernel, x, y, np.maximum(noises, 1e-6))

    def learnt(self, space: Space, x: Floats, y: Floats, noise: Floats | None = None) -> GP:
        """The GP fitted to the first of features ``x`` and values ``y``; its hyperparameters hold for all."""
        count = learning_count(len(y), self.growth, self.most)
        key = b"".join(a[:count].tobytes() for a in (x, y, *([] if noise is None else [noise])))
        if key not in self._learnt:
            known = None if noise is None else noise[:count]
            fitted = [
                fit(x[:count], y[:count], shape=shape, groups=space.groups, noise=known, iterations=self.iterations)
                for shape in self.shapes
            ]
            self._learnt.clear()
            self._learnt[key] = max(fitted, key=lambda gp: gp.evidence)
        return self._learnt[key]
