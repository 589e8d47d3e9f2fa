"""A hierarchical model of repeated runs of several algorithms on many problems, and draws from its posterior.

    eta_ij = alpha_j + u_i + v_ij        u_i ~ N(0, between^2)    v_ij ~ N(0, within^2)

``alpha_j`` is what algorithm ``j`` does on a typical problem, ``u_i`` how hard problem ``i`` is for all of them and
``v_ij`` how well the two suit each other (the random interaction). A run's value given ``eta`` is Gaussian with a
deviation of its algorithm, negative-binomial with mean ``exp(eta)`` and a shape, or a success with log odds ``eta``
(Goswami, Bayesian hierarchical models for quantitative estimates for performance metrics applied to saddle search
algorithms, AIP Advances 2025, arXiv 2505.13621; its models are of this form). A log-normal time is the Gaussian of its
logarithm. Priors are weak and stated in ``Cells``.

Sampling. All runs of one cell ``(i, j)`` share ``eta_ij``, so that a cell's sums are sufficient. Let ``N(center_ij |
eta_ij, 1 / weight_ij)`` be a Gaussian likelihood of a cell. Under it the effects of a problem integrate out in closed
form (``_evidence``), and given ``z ~ N(0, I)`` they are a smooth map of ``z`` and the few parameters (``_effects``).
For Gaussian runs this is exact: Hamiltonian Monte Carlo walks the parameters alone and the effects are drawn after it.
For the others it walks ``(parameters, z)`` under the same density times the ratio of the cells' true likelihood to
their Gaussian one. That too is the exact posterior, in coordinates in which it is nearly a unit Gaussian whether a cell
has seen one run or a thousand: there is no funnel. The map, its gradient and the ratio are derived here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.special import digamma, expit, gammaln

from nearpeak.inference.diagnostics import effective_size, r_hat
from nearpeak.inference.hmc import explore

Array = NDArray[np.float64]
FREEDOM = 3.0
"""Degrees of freedom of the half-t prior of every deviation (brms' default)."""


@dataclass(frozen=True)
class Cells:
    """Runs by problem and algorithm, and the scales of the priors.

    Attributes:
        family: ``gaussian``, ``negative-binomial`` or ``bernoulli``.
        count: runs of a cell ``[problems, algorithms]``. total: sum of their values; for Gaussian runs the mean.
        squares: Gaussian: sum of squares about the cell's mean. histogram: negative-binomial: values, and how often.
        center, weight: a Gaussian likelihood of each cell; weight 0 where nothing ran. Of Gaussian runs the weight is
            a function of the parameters and this one is not read.
        spread: scale of the half-t prior of ``between``; ``fine``: of ``within`` and of the runs' deviation.
            Differences of ``alpha`` are N(0, (2.5 spread)^2) a priori, their mean N(mean of centers, (10 spread)^2).
        floor: Gaussian: variance below which the spread of repeats is not believed.
    """

    family: str
    count: Array
    total: Array
    squares: Array
    histogram: tuple[Array, Array]
    center: Array
    weight: Array
    spread: float
    fine: float
    floor: float


def _sums(problem: NDArray[np.intp], algorithm: NDArray[np.intp], shape: tuple[int, int], value: Array) -> Array:
    return np.asarray(np.bincount(problem * shape[1] + algorithm, value, shape[0] * shape[1]).reshape(shape))


def cells(problem: NDArray[np.intp], algorithm: NDArray[np.intp], value: Array, family: str) -> Cells:
    """Sums of runs ``[n]`` by cell; ``problem`` and ``algorithm`` count from 0 without gaps."""
    shape = int(problem.max()) + 1, int(algorithm.max()) + 1
    count = _sums(problem, algorithm, shape, np.ones_like(value))
    total = _sums(problem, algorithm, shape, value)
    seen, runs = count > 0, np.maximum(count, 1)
    none = np.zeros(shape)
    if family == "gaussian":
        mean = total / runs
        squares = _sums(problem, algorithm, shape, (value - mean[problem, algorithm]) ** 2)
        spread = float(np.std(value))
        held = np.bincount(problem)
        inside = value - (np.bincount(problem, value) / held)[problem]
        # Scale of the priors of what varies inside a problem: what did, over the runs that were free to.
        fine = float(np.sqrt((inside**2).sum() / max(len(value) - shape[0], 1)))
        floor = (1e-3 * fine) ** 2
        squares = squares + np.maximum(count - 1, 0) * floor
        return Cells(family, count, mean, squares, (none, none), mean, count, spread, fine, floor)
    if family == "negative-binomial":
        mean = (total + 0.5) / (runs + 0.5 / max(value.mean(), 0.5))
        squares = _sums(problem, algorithm, shape, (value - mean[problem, algorithm]) ** 2)
        # Moments: a variance of mean + mean^2 / shape, pooled over the cells that repeat.
        extra = float(((squares - (count - 1) * mean) * (count > 1)).sum() / max((mean**2 * (count - 1)).sum(), 1e-9))
        inverse = max(extra, 1e-3) if (count > 1).any() else 0.1
        weight = np.where(seen, count * mean / (1 + mean * inverse), 0.0)
        values, often = np.unique(value, return_counts=True)
        center = np.log(mean)
        return Cells(
            family,
            count,
            total,
            none,
            (values, often.astype(float)),
            center,
            weight,
            max(1.0, float(center[seen].std())),
            1.0,
            0.0,
        )
    share = (total + 0.5) / (runs + 1)
    # Runs that all succeeded, or all failed, bound eta on one side only: no Gaussian is like that, so they weigh none.
    weight = np.where((total > 0) & (total < count), count * share * (1 - share), 0.0)
    return Cells(family, count, total, none, (none, none), np.log(share / (1 - share)), weight, 2.5, 1.0, 0.0)


@dataclass(frozen=True)
class Alike:
    """Problems whose cells weigh the same, taken together.

    Attributes:
        count: runs of a cell ``[patterns, algorithms]``. size: problems ``[patterns]``. mean: of their centers
            ``[patterns, algorithms]``. scatter: sum of squares about it ``[patterns, algorithms, algorithms]``.
    """

    count: Array
    size: Array
    mean: Array
    scatter: Array


def _alike(data: Cells) -> Alike:
    """Gaussian cells weigh the same where they hold as many runs; others each have a weight of their own."""
    if data.family != "gaussian":
        problems, algorithms = data.count.shape
        return Alike(data.count, np.ones(problems), data.center, np.zeros((1, algorithms, algorithms)))
    count, which = np.unique(data.count, axis=0, return_inverse=True)
    which = which.reshape(-1)
    size = np.bincount(which).astype(float)
    mean = np.zeros_like(count)
    np.add.at(mean, which, data.center)
    mean /= size[:, None]
    off = data.center - mean[which]
    scatter = np.zeros((len(count), count.shape[1], count.shape[1]))
    np.add.at(scatter, which, off[:, :, None] * off[:, None])
    return Alike(count, size, mean, scatter)


@dataclass(frozen=True)
class Posterior:
    """Draws: ``alpha [draws, algorithms]``, ``eta [draws, problems, algorithms]``, ``between``, ``within [draws]``;
    ``extra [draws, ...]``: the runs' deviation by algorithm, or the negative-binomial shape. ``r_hat`` and ``size`` are
    the worst R-hat and effective sample size among the parameters and the differences of ``alpha``.
    """

    alpha: Array
    eta: Array
    between: Array
    within: Array
    extra: Array
    r_hat: float
    size: float
    divergences: int


def _basis(count: int) -> Array:
    """Orthonormal columns ``[count, count]``, the mean and Helmert contrasts: nearly uncorrelated a posteriori."""
    return np.asarray(helmert(count, full=True).T)


def _half_t(log_variance: Array, scale: float) -> tuple[Array, Array]:
    """Log prior of a log variance whose root is half-t, up to a constant, and its slope."""
    ratio = np.exp(log_variance) / (FREEDOM * scale**2)
    odds = ratio / (1 + ratio)
    return 0.5 * log_variance - (FREEDOM + 1) / 2 * np.log1p(ratio), 0.5 - (FREEDOM + 1) / 2 * odds


@dataclass(frozen=True)
class _Shrunk:
    """A problem's effects under the Gaussian cells, given parameters; arrays over ``[chains, problems, algorithms]``.

    ``u | data ~ N(mean, var)`` ``[chains, problems]``; ``eta | u, data ~ N((1 - keep) center + keep (alpha + u),
    keep within^2)``; ``pull = 1 / (within^2 + 1 / weight)``; ``off = center - alpha``.
    """

    mean: Array
    var: Array
    keep: Array
    pull: Array
    off: Array


def _shrink(center: Array, weight: Array, alpha: Array, between: Array, within: Array) -> _Shrunk:
    """``between``, ``within``: variances ``[chains]``; ``alpha [chains, algorithms]``; ``weight`` of all or 1 chain."""
    keep = 1 / (1 + weight * within[:, None, None])
    pull = weight * keep
    off = center - alpha[:, None]
    var = 1 / (1 / between[:, None] + pull.sum(axis=2))
    return _Shrunk(var * (pull * off).sum(axis=2), var, keep, pull, off)


def _evidence(
    alike: Alike, weight: Array, alpha: Array, between: Array, within: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Log N(center | parameters) of all problems ``[chains]`` and its slopes: by ``alpha``, ``log between`` and ``log
    within`` (variances), and by ``1 / weight`` of the cells, ``[chains, patterns, algorithms]``.

    A problem's centers have covariance ``S = between 11' + diag(1 / pull)``, whose inverse is ``diag(pull) - var pull
    pull'``; problems whose cells weigh the same need it once, with the sum ``C`` of their squares ``off off'``.
    """
    at = _shrink(alike.mean, weight, alpha, between, within)
    pull, var, size, total = at.pull, at.var, alike.size, at.pull.sum(axis=2)
    seen = (at.off * pull).sum(axis=2)
    crossed = np.matmul(alike.scatter, pull[..., None])[..., 0] + (size * seen)[:, :, None] * at.off  # C pull
    squared = alike.scatter.diagonal(axis1=-2, axis2=-1) + size[:, None] * at.off**2  # diag C
    both = (pull * crossed).sum(axis=2)  # pull' C pull
    logs = np.log(np.where(pull > 0, pull, 1.0)).sum(axis=2) - np.log1p(between[:, None] * total)
    value = 0.5 * (size * logs - (pull * squared).sum(axis=2) + var * both).sum(axis=1)
    by_alpha = (size[:, None] * pull * (at.off - at.mean[:, :, None])).sum(axis=1)
    by_between = 0.5 * (var**2 * both / between[:, None] - size * total * var).sum(axis=1)
    apart = squared - (2 * var)[:, :, None] * crossed + (var**2 * both)[:, :, None]
    diagonal = 0.5 * (pull**2 * (apart + (size * var)[:, :, None]) - size[:, None] * pull)
    return value, by_alpha, by_between, within * diagonal.sum(axis=(1, 2)), diagonal


def _effects(at: _Shrunk, alpha: Array, within: Array, z: Array) -> tuple[Array, Array]:
    """``u [chains, problems]``, ``eta [chains, problems, algorithms]`` of ``z [chains, problems, 1 + algorithms]``."""
    u = at.mean + np.sqrt(at.var) * z[:, :, 0]
    level = alpha[:, None] + u[:, :, None]
    return u, level + (1 - at.keep) * (at.off - u[:, :, None]) + np.sqrt(at.keep * within[:, None, None]) * z[:, :, 1:]


def _effects_back(
    at: _Shrunk, u: Array, between: Array, within: Array, z: Array, slope: Array
) -> tuple[Array, Array, Array, Array]:
    """Slopes by ``alpha``, ``log between``, ``log within`` and ``z``, of a function with ``slope`` by ``eta``."""
    tau = within[:, None, None]
    kept = slope * at.keep
    by_u = kept.sum(axis=2)
    deviation = np.sqrt(at.keep * tau)
    by_alpha = kept.sum(axis=1) - ((by_u * at.var)[:, :, None] * at.pull).sum(axis=1)
    root = np.sqrt(at.var)
    ratio = at.var / between[:, None]
    by_between = (by_u * ratio * (at.mean + 0.5 * root * z[:, :, 0])).sum(axis=1)
    squared = at.pull**2 * tau
    mean_by_within = at.var * (at.mean * squared.sum(axis=2) - (squared * at.off).sum(axis=2))
    root_by_within = 0.5 * root * at.var * squared.sum(axis=2)
    through_u = (by_u * (mean_by_within + root_by_within * z[:, :, 0])).sum(axis=1)
    keep_by_within = -at.keep * (1 - at.keep)
    own = slope * (keep_by_within * (u[:, :, None] - at.off) + 0.5 * deviation * at.keep * z[:, :, 1:])
    by_z = np.concatenate([(by_u * root)[:, :, None], slope * deviation], axis=2)
    return by_alpha, by_between, through_u + own.sum(axis=(1, 2)), by_z


class _Target:
    """The log posterior of rows ``[coordinates of alpha, log between^2, log within^2, extra, z]`` and its gradient."""

    def __init__(self, data: Cells) -> None:
        self.data, self.alike, self.basis = data, _alike(data), _basis(data.count.shape[1])
        problems, algorithms = data.count.shape
        self.free, self.squares = np.maximum(data.count - 1, 0).sum(axis=0), data.squares.sum(axis=0)
        self.extra = {"gaussian": algorithms, "negative-binomial": 1, "bernoulli": 0}[data.family]
        self.fixed = algorithms + 2 + self.extra
        self.width = self.fixed + (0 if data.family == "gaussian" else problems * (1 + algorithms))
        seen = data.count > 0
        self.anchor = self.basis[:, 0] @ np.full(algorithms, data.center[seen].mean())
        self.prior_scale = np.r_[10.0 * np.sqrt(algorithms), np.full(algorithms - 1, 2.5 / np.sqrt(2))] * data.spread

    def parts(self, rows: Array) -> tuple[Array, Array, Array, Array, Array]:
        """``alpha``, variances ``between`` and ``within``, ``extra`` as walked, ``z``."""
        problems, algorithms = self.data.count.shape
        at = rows[:, : self.fixed]
        z = rows[:, self.fixed :].reshape(len(rows), problems, (self.width - self.fixed) // problems)
        alpha = at[:, :algorithms] @ self.basis.T
        return alpha, np.exp(at[:, algorithms]), np.exp(at[:, algorithms + 1]), at[:, algorithms + 2 :], z

    def weight(self, count: Array, extra: Array) -> Array:
        """Of the Gaussian likelihood of cells with ``count [..., algorithms]`` runs, ``[chains or 1, ...]``."""
        if self.data.family == "gaussian":
            return np.asarray(count * np.exp(-extra)[:, None])
        return self.data.weight[None]

    def start(self, chains: int, rng: np.random.Generator) -> Array:
        """Rows about the moments, wider than the posterior."""
        data, algorithms = self.data, self.data.count.shape[1]
        seen = data.count > 0
        typical = np.array([data.center[seen[:, j], j].mean() for j in range(algorithms)])
        rows = rng.standard_normal((chains, self.width))
        rows[:, :algorithms] = typical @ self.basis + 0.1 * data.fine * rows[:, :algorithms]
        rows[:, algorithms] = 2 * np.log(data.spread) + 0.5 * rows[:, algorithms]
        rows[:, algorithms + 1 : self.fixed] = 2 * np.log(0.3 * data.fine) + 0.5 * rows[:, algorithms + 1 : self.fixed]
        if data.family == "negative-binomial":
            rows[:, self.fixed - 1] = np.log(10) + 0.3 * rows[:, self.fixed - 1]
        return rows

    def __call__(self, rows: Array) -> tuple[Array, Array]:
        """Log density ``[chains]`` and gradient ``[chains, d]``."""
        data, algorithms = self.data, self.data.count.shape[1]
        alpha, between, within, extra, z = self.parts(rows)
        weight = self.weight(self.alike.count, extra)
        value, by_alpha, by_between, by_within, diagonal = _evidence(self.alike, weight, alpha, between, within)
        by_extra, by_z = np.zeros_like(extra), np.zeros((len(rows), 0))
        if data.family == "gaussian":
            variance = np.exp(extra)
            noise, noise_slope = _half_t(extra, data.fine)
            value = value - 0.5 * (self.free * extra + self.squares / variance).sum(axis=1) + noise.sum(axis=1)
            share = np.where(self.alike.count > 0, 1 / np.maximum(self.alike.count, 1), 0.0)
            by_extra = (
                variance * (diagonal * share).sum(axis=1) - 0.5 * (self.free - self.squares / variance) + noise_slope
            )
        else:
            at = _shrink(data.center, weight, alpha, between, within)
            u, eta = _effects(at, alpha, within, z)
            true, slope, by_extra = self._likelihood(eta, extra)
            off = data.center - eta
            value = value + true + 0.5 * (weight * off**2).sum(axis=(1, 2)) - 0.5 * (z**2).sum(axis=(1, 2))
            back = _effects_back(at, u, between, within, z, slope - weight * off)
            by_alpha, by_between, by_within = by_alpha + back[0], by_between + back[1], by_within + back[2]
            by_z = (back[3] - z).reshape(len(rows), -1)
        place = rows[:, :algorithms].copy()
        place[:, 0] -= self.anchor
        wide, wide_slope = _half_t(rows[:, algorithms], data.spread)
        fine, fine_slope = _half_t(rows[:, algorithms + 1], data.fine)
        value = value - 0.5 * ((place / self.prior_scale) ** 2).sum(axis=1) + wide + fine
        gradient = np.column_stack(
            [by_alpha @ self.basis - place / self.prior_scale**2, by_between + wide_slope, by_within + fine_slope,
             by_extra, by_z]
        )  # fmt: skip
        return value, gradient

    def _likelihood(self, eta: Array, extra: Array) -> tuple[Array, Array, Array]:
        """True log likelihood ``[chains]``, its slope by ``eta``, and by ``extra`` with the prior of ``extra``."""
        data = self.data
        if data.family == "bernoulli":
            value = (data.total * eta - data.count * np.logaddexp(0, eta)).sum(axis=(1, 2))
            return value, data.total - data.count * expit(eta), np.zeros_like(extra)
        # extra is the log of the shape; 1 / sqrt(shape), the runs' relative deviation, is half-t with scale 1.
        log_shape = extra[:, 0]
        shape = np.exp(log_shape)
        ratio = np.logaddexp(eta, log_shape[:, None, None])  # log(shape + mean)
        values, often = data.histogram
        runs = data.total + data.count * shape[:, None, None]
        arguments = values + shape[:, None]
        value = (data.total * eta - runs * ratio).sum(axis=(1, 2)) + data.count.sum() * (
            shape * log_shape - gammaln(shape)
        )
        value = value + (often * gammaln(arguments)).sum(axis=1)
        slope = data.total - runs * np.exp(eta - ratio)
        by_shape = (
            (often * digamma(arguments)).sum(axis=1)
            + data.count.sum() * (log_shape + 1 - digamma(shape))
            - (data.count * ratio + runs * np.exp(-ratio)).sum(axis=(1, 2))
        )
        prior, prior_slope = _half_t(-log_shape, 1.0)
        return value + prior, slope, (shape * by_shape - prior_slope)[:, None]


def posterior(data: Cells, seed: int, chains: int = 12, draws: int = 400, warmup: int = 200) -> Posterior:
    """Draws of the model given ``data``; one seed gives one posterior.

    Args:
        data: of ``cells``. chains, draws, warmup: of the sampler; ``chains * draws`` draws come back.
    """
    target, rng = _Target(data), np.random.default_rng(seed)
    found = explore(target, target.start(chains, rng), draws, warmup, seed)
    rows = found.draws.reshape(-1, target.width)
    alpha, between, within, extra, z = target.parts(rows)
    if data.family == "gaussian":
        z = rng.standard_normal((len(rows), data.count.shape[0], 1 + data.count.shape[1]))
    _, eta = _effects(_shrink(data.center, target.weight(data.count, extra), alpha, between, within), alpha, within, z)
    watched = found.draws[:, :, : target.fixed]
    made = np.exp(-0.5 * extra) if data.family == "negative-binomial" else np.exp(0.5 * extra)
    return Posterior(
        alpha, eta, np.sqrt(between), np.sqrt(within), made**-2 if data.family == "negative-binomial" else made,
        float(r_hat(watched).max()), float(effective_size(watched).min()), found.divergences,
    )  # fmt: skip
