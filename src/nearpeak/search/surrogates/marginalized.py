"""Gaussian processes whose hyperparameters are not one guess but what the data leave possible.

A few observations fit many length scales. Instead of one theta, several are drawn from its posterior

    p(theta | D) ~ p(y | X, theta) p(theta),    theta = [log lengthscales, log scale, log noise]

and the posterior of the function is the mixture of the GPs of the draws. Five ways:

- ``ml2``: no draws; the theta of largest likelihood p(y | X, theta) alone (type II maximum likelihood).
- ``map``: no draws; the most probable theta alone.
- ``laplace``: a normal about it, of the curvature there.
- ``variational``: the normal that has the least KL divergence from the posterior, its covariance full or diagonal: the
  expectation over fixed standard normal draws (z, -z), ascended by L-BFGS (Kucukelbir et al., JMLR 2017; fixed draws:
  Giordano, Ingram, Broderick, JMLR 2024).
- ``mcmc``: Hamiltonian Monte Carlo (``inference.hmc``), started from Laplace's normal and scaled by it.

An acquisition function is averaged over the draws: EI and its like as values (kept as logarithms), a bound as itself.

De Ath, Everson, Fieldsend: How Bayesian Should Bayesian Optimisation Be?, GECCO 2021 companion (arXiv:2105.00894): EI
with an ARD kernel and full Bayes is best without noise, over 200 evaluations; with noise there is little between the
ways; UCB explores too much with full Bayes. Over 24 evaluations we see that full Bayes predicts held-out values better
but its EI explores longer, and ends behind both single thetas on most functions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from nearpeak.errors import UnknownName, UsageError
from nearpeak.inference import hmc
from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.bayesian import Bayesian, Preparation, prepared
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.evidence import Density, log_density
from nearpeak.search.surrogates.gp import GP, Hyperparameters, Posterior, condition, most_probable, standardised
from nearpeak.topic import Explanation, Option, Table, Topic

Way = Literal["ml2", "map", "laplace", "variational", "mcmc"]
WAYS: Final = ("ml2", "map", "laplace", "variational", "mcmc")

NOISY: Final = 0.05
"""Standard deviation of the noise, as a share of the observations', from which on full Bayes is not worth its time:
the paper's least level of noise above none."""
RESTARTS: Final = 5
"""Starts of a search for the largest likelihood, which unlike the posterior is flat and has several tops."""
_TEMPERED: Final = 2.0
"""No direction of Laplace's normal is wider than this many of the prior's units: where the data say nothing."""


@dataclass(frozen=True)
class Mixture:
    """A posterior that is the mixture of equally likely ones.

    Attributes:
        components: of the draws of the hyperparameters. thetas: the draws, ``[k, size]``.
    """

    components: tuple[GP, ...]
    thetas: Floats

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the mixture at features ``[m, f]``."""
        means, sds = np.transpose([c.predict(x) for c in self.components], (1, 0, 2))
        mean = means.mean(axis=0)
        return mean, np.sqrt((sds**2 + (means - mean) ** 2).mean(axis=0))

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws ``[count, m]``, each of a component picked at random."""
        picked = rng.integers(0, len(self.components), count)
        draws = np.empty((count, len(x)))
        for k in np.unique(picked):
            draws[picked == k] = self.components[k].sample(x, int((picked == k).sum()), rng)
        return draws

    def log_density(self, x: Floats, y: Floats) -> Floats:
        """Log predictive density of observations ``y [m]`` at features ``[m, f]``, noise included, ``[m]``."""
        found = []
        for c in self.components:
            mean, sd = c.predict(x)
            variance = sd**2 + c.observation_variance
            found.append(-0.5 * (y - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance))
        return np.asarray(logsumexp(found, axis=0) - np.log(len(self.components)))


@dataclass(frozen=True)
class Averaged:
    """An acquisition function averaged over a mixture's components; of another posterior, the function itself.

    Attributes:
        acquisition: of one component. logarithm: whether it gives the logarithm of what is averaged.
    """

    acquisition: Acquisition | Preparation = log_expected_improvement
    logarithm: bool = True

    def prepare(self, space: Space, history: History, posterior: Posterior, rng: np.random.Generator) -> Acquisition:
        """Prepare the function for each component."""
        if not isinstance(posterior, Mixture):
            return prepared(self.acquisition, space, history, posterior, rng)
        each = [(c, prepared(self.acquisition, space, history, c, rng)) for c in posterior.components]

        def score(posterior: Posterior, x: Floats, best: float) -> Floats:
            scores = np.asarray([function(component, x, best) for component, function in each])
            if self.logarithm:
                return np.asarray(logsumexp(scores, axis=0) - np.log(len(each)))
            return np.asarray(scores.mean(axis=0))

        return score


@dataclass(frozen=True)
class Marginal:
    """A surrogate: an ARD GP with marginalized hyperparameters.

    Attributes:
        way: of ``WAYS``; None: ``default_marginalization`` of the noise that is declared. draws: of theta.
        shape: of the kernel. diagonal: whether the variational normal is (mean-field).
    """

    way: Way | None = None
    draws: int = 16
    shape: str = "matern52"
    diagonal: bool = False

    def __call__(self, space: Space, history: History, rng: np.random.Generator) -> Mixture:
        """The mixture, from the evaluations that succeeded."""
        good = history.succeeded
        y, variances = history.values[good], history.variances[good]
        known = variances if np.isfinite(variances).all() else None
        return marginalize(
            space.encode(history.points[good]), y, self.way or default_marginalization(_noise_share(y, known)), rng,
            groups=space.groups, noise=known, draws=self.draws, shape=self.shape, diagonal=self.diagonal,
        )  # fmt: skip


def default_marginalization(noise: float | None) -> Way:
    """The way that pays for a declared noise: full Bayes without noise or where it is not known, one theta with it.

    Args:
        noise: standard deviation of the noise over that of the observations; None: not declared.

    Raises:
        UsageError: it is negative or no number.
    """
    if noise is None:
        return "mcmc"
    if not noise >= 0:
        raise UsageError(f"noise must be 0 or more, not {noise:g}")
    return "mcmc" if noise < NOISY else "map"


def default_method(noise: float | None = None) -> Bayesian:
    """EI with an ARD kernel, hyperparameters marginalized as the declared noise asks for; None: by the history's."""
    way = None if noise is None else default_marginalization(noise)
    return Bayesian(Marginal(way), Averaged(log_expected_improvement))


def marginalize(
    x: Floats,
    y: Floats,
    way: Way,
    rng: np.random.Generator,
    *,
    groups: NDArray[np.intp] | None = None,
    noise: Floats | float | None = None,
    draws: int = 16,
    shape: str = "matern52",
    diagonal: bool = False,
) -> Mixture:
    """The mixture of GPs given values ``y [n]`` at features ``x [n, f]``.

    Args:
        groups, noise: as ``gp.fit`` takes them. draws: of theta; ``ml2`` and ``map`` have one.

    Raises:
        UnknownName: ``way`` is none of ``WAYS``.
    """
    if way not in WAYS:
        raise UnknownName("way of marginalizing", way, WAYS)
    targets, _, spread = standardised(y)
    every = np.arange(x.shape[1]) if groups is None else groups
    known = None if noise is None else np.broadcast_to(np.asarray(noise) / spread**2, len(y)).clip(min=1e-6)
    problem = Hyperparameters(x, targets, shape, every, known)
    thetas = draw_thetas(problem, way, draws, rng, diagonal)
    parts = [problem.split(theta) for theta in thetas]
    return Mixture(tuple(condition(kernel, x, y, noises) for kernel, noises in parts), thetas)


def draw_thetas(
    problem: Hyperparameters, way: Way, draws: int, rng: np.random.Generator, diagonal: bool = False
) -> Floats:
    """Hyperparameters ``[draws, size]`` (``[1, size]`` of ``ml2`` and ``map``), within the bounds of the problem."""
    low, high = np.transpose(problem.bounds)
    if way == "ml2":
        starts = problem.start + _spread_normal(RESTARTS - 1, problem.size, rng)
        return _mode(problem, log_density(problem, prior=False), [problem.start, *starts])[None]
    density = log_density(problem)
    mode = _mode(problem, density, [problem.start])
    if way == "map":
        return mode[None]
    factor = laplace_factor(density, mode)
    if way == "variational":
        mode, factor = variational(density, mode, factor, rng, diagonal)
    if way != "mcmc":
        return np.clip(mode + _spread_normal(draws, len(mode), rng) @ factor.T, low, high)

    def whitened(z: Floats) -> tuple[Floats, Floats]:
        values, gradients = density(mode + z @ factor.T)
        return values, gradients @ factor

    chains = max(min(8, draws), 1)
    start = 0.7 * rng.standard_normal((chains, len(mode)))
    start[~np.isfinite(whitened(start)[0])] = 0.0
    kept = -(-draws // chains)
    found = hmc.sample(whitened, start, 2 * kept, 20, int(rng.integers(2**31)))[:, 1::2]
    return np.clip(mode + found.reshape(-1, len(mode))[:draws] @ factor.T, low, high)


def _mode(problem: Hyperparameters, density: Density, starts: Iterable[Floats]) -> Floats:
    def of_one(theta: Floats) -> tuple[float, Floats]:
        values, gradients = density(theta[None])
        return (float(values[0]), gradients[0]) if np.isfinite(values[0]) else (-1e25, np.zeros(len(theta)))

    return most_probable(of_one, starts, problem.bounds, maxiter=50, maxcor=20)[0]


def laplace_factor(density: Density, mode: Floats) -> Floats:
    """A factor of the covariance of the normal with the curvature at the mode, ``[size, size]``.

    The Hessian is the central difference of gradients. Where it is flat or curved the wrong way (a mode at a bound)
    the normal is as wide as ``_TEMPERED``.
    """
    step, size = 1e-3, len(mode)
    moved = np.vstack([mode + step * np.eye(size), mode - step * np.eye(size)])
    gradients = density(moved)[1]
    hessian = (gradients[:size] - gradients[size:]) / (2 * step)
    curvature, axes = np.linalg.eigh(-0.5 * (hessian + hessian.T))
    return np.asarray(axes / np.sqrt(np.maximum(curvature, 1 / _TEMPERED**2)))


def variational(
    density: Density,
    mode: Floats,
    factor: Floats,
    rng: np.random.Generator,
    diagonal: bool = False,
    draws: int = 16,
) -> tuple[Floats, Floats]:
    """Mean and factor of the normal ``mean + factor z`` that has the largest evidence lower bound.

    In the coordinates of Laplace's normal, which it starts from; ``diagonal`` in theta's own.

    Args:
        draws: of z, half of them the negatives of the others, whitened so that their second moments are exact.
    """
    size = len(mode)
    if diagonal:
        factor = np.diag(np.sqrt((factor**2).sum(axis=1)))
    half = max(draws // 2, size + 1)
    z = rng.standard_normal((half, size))
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / half)).T
    z = np.vstack([z, -z])
    lower = np.diag_indices(size) if diagonal else np.tril_indices(size)
    on_diagonal = lower[0] == lower[1]

    def unpacked(packed: Floats) -> tuple[Floats, Floats]:
        triangle = np.zeros((size, size))
        triangle[lower] = np.where(on_diagonal, np.exp(np.where(on_diagonal, packed[size:], 0.0)), packed[size:])
        return packed[:size], triangle

    def loss(packed: Floats) -> tuple[float, Floats]:
        shift, triangle = unpacked(packed)
        values, gradients = density(mode + (shift + z @ triangle.T) @ factor.T)
        if not np.isfinite(values).all():
            return 1e25, np.zeros(len(packed))
        pulls = gradients @ factor
        by_triangle = (pulls.T @ z / len(z))[lower]
        by_packed = np.where(on_diagonal, by_triangle * triangle[lower] + 1, by_triangle)
        bound = values.mean() + packed[size:][on_diagonal].sum()
        return -float(bound), -np.concatenate([pulls.mean(axis=0), by_packed])

    start = np.concatenate([np.zeros(size), np.where(on_diagonal, np.log(0.7), 0.0)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 50}).x
    shift, triangle = unpacked(np.asarray(found))
    return mode + factor @ shift, factor @ triangle


def _spread_normal(count: int, size: int, rng: np.random.Generator) -> Floats:
    """Standard normal draws in pairs of opposite sign: their mean is exact where the count is even."""
    half = rng.standard_normal((-(-count // 2), size))
    return np.vstack([half, -half])[:count]


def _noise_share(y: Floats, variances: Floats | None) -> float | None:
    return None if variances is None else float(np.sqrt(variances.mean())) / standardised(y)[2]


def _explain(problem: str, observations: int, noise: float, seed: int) -> Explanation:
    from nearpeak.search.problems import PROBLEMS

    if problem not in PROBLEMS:
        raise UnknownName("problem", problem, PROBLEMS)
    asked, rng = PROBLEMS[problem], np.random.default_rng(seed)
    x, held = rng.random((observations, asked.dimension)), rng.random((1_000, asked.dimension))
    sd = noise * float(asked.function(held).std())
    y = asked.function(x) + sd * rng.standard_normal(observations)
    truth = asked.function(held) + sd * rng.standard_normal(len(held))
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        found = marginalize(x, y, way, np.random.default_rng(seed), noise=sd**2, draws=32)
        lengths = np.exp(found.thetas[:, : asked.dimension])
        rows.append(
            {
                "way": way,
                "held_out_nll": float(-found.log_density(held, truth).mean()),
                "least_lengthscale": float(lengths.min()),
                "median_lengthscale": float(np.median(lengths)),
                "largest_lengthscale": float(lengths.max()),
            }
        )
    best = min(rows, key=lambda row: float(row["held_out_nll"]))
    chosen = default_marginalization(noise)
    return Explanation(
        {"default": chosen, "best": best["way"]},
        (Table("Hyperparameters and held-out negative log likelihood (nats a point)", tuple(rows)),),
        (
            f"With {observations} observations of {problem}, {best['way']} predicts held-out values best.",
            f"The default for noise of {noise:g} of the values' standard deviation is EI, an ARD kernel and {chosen}.",
        ),
    )


TOPIC = Topic(
    "hyperparameters",
    "How sure can one be of a Gaussian process's hyperparameters, and does it matter?",
    "De Ath, Everson, Fieldsend, How Bayesian Should Bayesian Optimisation Be?, GECCO 2021 (arXiv 2105.00894)",
    (
        Option("problem", str, "A test problem.", "branin"),
        Option("observations", int, "Random evaluations that the process is fitted to.", 15),
        Option("noise", float, "Standard deviation of the noise over that of the values.", 0.0),
        Option("seed", int, "Of the draws.", 0),
    ),
    _explain,
    "--problem hartmann-6 --observations 20",
)
