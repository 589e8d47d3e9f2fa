"""Mixtures of training data, found on small models and confirmed on large ones.

How much of each domain should a language model read? The loss of a small proxy on a mixture tells much about the loss
of the large model, for a fraction of its FLOPs. One GP over mixture ``w`` (on the simplex) and model size ``s``,

    k((w, s), (w', s')) = a k_size(s, s') + b k_mixture(sqrt w, sqrt w') k_transfer(s, s')

carries it: the first part is what a size changes for all mixtures alike, the second what mixtures change, alike at near
sizes as ``k_transfer`` learns. Square roots of weights measure distances as Hellinger's does: the first hundredth of a
domain matters more than a hundredth of a third. What is trained next tells the most about the least loss of the largest
size, ``f*``, for its cost: by a lower bound of the information between ``f*`` and the loss of mixture w at size s,

    I >= E_f*[ -log(1 - rho^2 q((m(w) - f*) / sd(w))) / 2 ] / cost(s)

with mean ``m`` and standard deviation ``sd`` at the largest size, ``rho`` the correlation of the observation with the
loss there, and q as in ``entropy_search``.

Chen et al.: ADMIRE-BayesOpt: Accelerated Data MIxture RE-weighting for Language Models with Bayesian Optimization, 2025
(arXiv 2508.11551). Takeno et al.: Multi-fidelity Bayesian Optimization with Max-value Entropy Search, ICML 2020. Moss,
Leslie, Gonzalez, Rayson: GIBBON, JMLR 2021 (the bound). Kaplan et al., arXiv 2001.08361 (6 FLOPs a weight and token).
"""

from dataclasses import dataclass, field
from math import comb
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_ndtr

from nearpeak.errors import UsageError
from nearpeak.search.candidates import farthest
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats, Ordinal, Simplex
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, condition
from nearpeak.search.surrogates.kernels import SHAPES, squared_distances
from nearpeak.search.surrogates.refitted import learning_count
from nearpeak.search.trials.multi_fidelity import Cost, learned_cost
from nearpeak.topic import require_positive

_LATTICE: Final = 20_000
"""Mixtures of a lattice that are all scored; with more domains, draws are."""
_BLOCK: Final = 256


def mixture_space(domains: int, sizes: tuple[float, ...]) -> Space:
    """Weights of domains, and the sizes (weights of a model) that can be trained, the target last.

    Raises:
        UsageError: sizes do not rise from above 0.
    """
    require_positive(sizes=sizes)
    if list(sizes) != sorted(set(sizes)):
        raise UsageError(f"sizes rise from the smallest proxy to the target, not {', '.join(f'{s:g}' for s in sizes)}")
    return Space({"mixture": Simplex(domains), "size": Ordinal(sizes)})


def training_flops(weights: ArrayLike, tokens: ArrayLike) -> Floats:
    """FLOPs of a training: 6 for each weight and token."""
    return np.asarray(6.0 * np.asarray(weights, dtype=float) * np.asarray(tokens, dtype=float))


def lattice(parts: int, steps: int) -> Floats:
    """All weights that are multiples of ``1 / steps`` and 1 together, ``[n, parts]``."""
    rows = np.zeros((1, 0), dtype=np.intp)
    for _ in range(parts - 1):
        left = steps - rows.sum(axis=1)
        added = np.concatenate([np.arange(some + 1) for some in left])
        rows = np.column_stack([np.repeat(rows, left + 1, axis=0), added])
    return np.column_stack([rows, steps - rows.sum(axis=1)]) / steps


@dataclass(frozen=True)
class MixtureKernel:
    """The covariance above; features are weights of domains, then the size's.

    Attributes:
        lengths: of the square roots of weights, ``[domains]``. transfer: length scale of the size in what mixtures
            change. scale, offset: variance of what mixtures change, and of what a size changes.
    """

    lengths: Floats
    transfer: float
    scale: float
    offset: float

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        roots = [np.sqrt(x[:, :-1].clip(min=0)) / self.lengths for x in (a, b)]
        apart = (a[:, -1:] - b[:, -1]) ** 2
        mixed = SHAPES["matern52"](squared_distances(*roots))[0]
        return (
            self.offset * SHAPES["matern52"](apart)[0] + self.scale * mixed * SHAPES["rbf"](apart / self.transfer**2)[0]
        )

    def diagonal(self, a: Floats) -> Floats:
        """The same variance everywhere."""
        return np.full(len(a), self.scale + self.offset)


def compressed(losses: Floats, level: Floats) -> Floats:
    """Losses ``[n]`` whose excess over the least of their size grows as its logarithm where it is large, ``[n]``.

    A mixture without a domain may cost ten nats and the choice among the good ones a hundredth: unless the first is
    made small, a GP sees nothing else. Excess much below the lower quartile stays as it is.

    Args:
        level: number of the size of each, ``[n]``.
    """
    _, size = np.unique(level, return_inverse=True)
    least = np.full(int(size.max()) + 1, np.inf)
    np.minimum.at(least, size, losses)
    excess = losses - least[size]
    usual = float(np.quantile(excess[excess > 0], 0.25)) if (excess > 0).any() else 1.0
    return np.asarray(least[size] + usual * np.log1p(excess / usual))


def fit_mixtures(x: Floats, y: Floats, iterations: int = 40) -> GP:
    """A GP over mixtures and sizes with the most probable hyperparameters.

    Args:
        x: features, ``[n, domains + 1]``. y: losses, ``[n]``.
    """
    domains = x.shape[1] - 1
    location = np.concatenate([np.zeros(domains), [np.log(2.0), 0.0, 0.0, -7.0]])
    width = np.concatenate([np.full(domains, 0.7), [1.0, 1.5, 1.5, 1.5]])

    def posterior(theta: Floats) -> GP:
        lengths, (transfer, scale, offset, noise) = np.exp(theta[:domains]), np.exp(theta[domains:])
        return condition(MixtureKernel(lengths, transfer, scale, offset), x, y, noise)

    def loss(theta: Floats) -> float:
        off = (theta - location) / width
        return 0.5 * float(off @ off) - posterior(theta).evidence

    bounds = list(zip(location - 4 * width, location + 4 * width, strict=True))
    found = minimize(loss, location, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    return posterior(np.asarray(found.x))


@dataclass(frozen=True)
class MixtureSearch:
    """The method; its space is one of ``mixture_space``.

    Attributes:
        cost: of a size (weights of the model): FLOPs, GPU hours, any unit; None: learned from the seconds that
            trainings took. steps: mixtures are multiples of ``1 / steps``. draws: of the least loss.
        initial: trainings of the smallest size before the model is asked, of which the best quarter is trained at the
            next size, and so on; None: two for each domain.
        growth: share by which trainings grow between two fits of the hyperparameters.
    """

    cost: Cost | None = None
    steps: int = 10
    draws: int = 64
    initial: int | None = None
    growth: float = 0.1
    _fitted: dict[bytes, GP] = field(default_factory=dict, repr=False, compare=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next mixtures and sizes, ``[at most count, width]``; fewer where all were tried."""
        parts, sizes = checked(space)
        before = len(history.pending)
        for _ in range(count):
            mixtures = self._mixtures(parts, history, rng)
            point = self._opening(mixtures, len(sizes), history)
            if point is None and history.succeeded.sum() >= 2:
                point = self._best(space, sizes, mixtures, history, rng)
            if point is None:
                break
            history = history.waiting_for(point[None])
        return history.pending[before:]

    def posterior(self, space: Space, history: History) -> GP:
        """What the trainings that ended say; those that run are believed to end as expected."""
        good = history.succeeded
        x, y = space.encode(history.points[good]), compressed(history.values[good], history.points[good, -1])
        count = learning_count(len(y), self.growth, len(y))
        key = x[:count].tobytes() + history.values[good][:count].tobytes()
        if key not in self._fitted:
            self._fitted.clear()
            self._fitted[key] = fit_mixtures(x[:count], compressed(history.values[good][:count], x[:count, -1]))
        learnt = self._fitted[key]
        gp = condition(learnt.kernel, x, y, learnt.noise[0])
        if len(history.pending) == 0:
            return gp
        waiting = space.encode(history.pending)
        return gp.told(waiting, gp.expectation(waiting))

    def recommended(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        """The mixture with the least expected loss at the target size, ``[domains]``."""
        parts, _ = checked(space)
        mixtures = self._mixtures(parts, history, rng)
        features = np.column_stack([mixtures, np.ones(len(mixtures))])
        return np.asarray(mixtures[int(np.argmin(self.posterior(space, history).expectation(features)))])

    def _mixtures(self, parts: int, history: History, rng: np.random.Generator) -> Floats:
        """Mixtures that could be next: a whole lattice, or draws and small changes of the best."""
        if comb(self.steps + parts - 1, parts - 1) <= _LATTICE:
            return lattice(parts, self.steps)
        drawn = np.random.default_rng(history.seed).dirichlet(np.ones(parts), 1_000)
        if history.best is None:
            return drawn
        near, simplex = np.repeat(history.points[[history.best], :-1], 1_000, axis=0), Simplex(parts)
        return np.vstack([drawn, simplex.moved(near, rng, 0.2)])

    def _opening(self, mixtures: Floats, sizes: int, history: History) -> Floats | None:
        """The next of the first sample, which goes from the smallest size to the largest; None at its end."""
        levels = np.append(history.points[:, -1], history.pending[:, -1])
        wanted = self.initial or 2 * mixtures.shape[1]
        shuffled = np.random.default_rng(history.seed).permutation(mixtures, axis=0)
        nearest = int(np.argmin(((shuffled - shuffled.mean(axis=0)) ** 2).sum(axis=1)))
        design = np.vstack([shuffled[[nearest]], np.delete(shuffled, nearest, axis=0)])
        design = design[farthest(np.sqrt(design), wanted)]
        for level in range(sizes):
            begun = int((levels == level).sum())
            if begun < len(design):
                return np.append(design[begun], level)
            told = history.succeeded & (history.points[:, -1] == level)
            best = np.argsort(history.values[told], kind="stable")[: -(-wanted // 4 ** (level + 1))]
            design = history.points[told][best, :-1]
        return None

    def _best(
        self, space: Space, sizes: Floats, mixtures: Floats, history: History, rng: np.random.Generator
    ) -> Floats | None:
        """The mixture and size that tell the most for their cost, among those not begun."""
        gp = self.posterior(space, history)
        rows = np.column_stack([np.tile(mixtures, (len(sizes), 1)), np.repeat(np.arange(len(sizes)), len(mixtures))])
        begun = np.vstack([history.points, history.pending])
        left = rows[(squared_distances(rows, begun) > 1e-9).all(axis=1)]
        if len(left) == 0:
            return None
        target = np.column_stack([mixtures, np.full(len(mixtures), len(sizes) - 1.0)])
        some = rng.permutation(len(target))[:2_000]
        minima = gp.sample(space.encode(target[some]), self.draws, rng).min(axis=1)
        cost = self.cost or learned_cost(sizes[history.points[:, -1].astype(int)], history.costs)
        features, real = space.encode(left), space.encode(left)
        real[:, -1] = space.encode(target[:1])[0, -1]
        told = information(gp, features, real, minima)
        return np.asarray(left[int(np.argmax(np.log(told) - np.log(cost(sizes[left[:, -1].astype(int)]))))])


def checked(space: Space) -> tuple[int, Floats]:
    """Number of domains, and the sizes ``[k]``.

    Raises:
        UsageError: the space is not one of ``mixture_space``.
    """
    kinds = list(space.parameters.values())
    if len(kinds) == 2 and isinstance(kinds[0], Simplex) and isinstance(kinds[1], Ordinal):
        return kinds[0].parts, np.asarray(kinds[1].choices, dtype=float)
    raise UsageError(
        f"a search of mixtures has a Simplex and then an Ordinal of model sizes, not {', '.join(space.parameters)}: "
        "see mixture_space"
    )


def information(gp: GP, x: Floats, real: Floats, minima: Floats) -> Floats:
    """Nats that a training tells about the least loss of the target size, ``[m]``; a lower bound, above 0.

    Args:
        x: features of trainings, ``[m, f]``. real: of the same mixtures at the target size, ``[m, f]``.
        minima: draws of the least loss there, ``[k]``.
    """
    _, sd = gp.predict(x)
    mean, real_sd = gp.predict(real)
    together = np.concatenate(
        [np.diagonal(gp.covariance(x[i : i + _BLOCK], real[i : i + _BLOCK])) for i in range(0, len(x), _BLOCK)]
    )
    share = (together**2 / ((sd**2 + gp.observation_variance) * real_sd**2)).clip(0, 1 - 1e-9)
    above = (mean[:, None] - minima) / real_sd[:, None]
    ratio = np.exp(-0.5 * above**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(above))
    shrunk = np.clip(ratio * (above + ratio), 0, 1)
    return np.asarray(np.maximum((-0.5 * np.log1p(-share[:, None] * shrunk)).mean(axis=1), 1e-300))
