"""A Gaussian process posterior with a free mean and covariance at ``M`` inputs (Hensman, Matthews and Ghahramani,
Scalable Variational Gaussian Process Classification, AISTATS 2015): what ``coreset_gp`` is measured against.

With ``K_zz = L L'`` the posterior is of the whitened ``w = L^-1 u``, ``q(w) = N(m, S S')``, so that steps of an
optimizer mean the same whatever the kernel; with ``W = L^-1 K_zx``

    mean = W'm        variance = k_xx - diag(W'W) + diag(W'S S'W)
    KL(q(w) || N(0, I)) = 1/2 [tr S S' + m'm - M - 2 log|S|]

``S`` is triangular: ``M (M + 1) / 2`` numbers beside the ``M`` of the mean. It starts at the posterior of the coreset
that the other family starts from.
"""

from typing import TYPE_CHECKING

from nearpeak.inference.sparse_gp import Family, Parameters, matern

if TYPE_CHECKING:
    from torch import Tensor

JITTER = 1e-6
"""Added to the diagonal of the inputs' covariance, as a share of it, so that inputs may come close."""


def _factor(at: Parameters, covariance: "Tensor") -> "Tensor":
    import torch

    jitter = JITTER * at["log_signal"].exp() * torch.eye(len(covariance), dtype=covariance.dtype)
    factor: Tensor = torch.linalg.cholesky(covariance + jitter)
    return factor


def start(kernel: Parameters, outputs: "Tensor", rows: "Tensor") -> Parameters:
    """The mean and covariance of the coreset with these pseudo-outputs and weights, whitened."""
    import torch

    prior = matern(kernel, kernel["inputs"], kernel["inputs"])
    factor = _factor(kernel, prior)
    observed = torch.linalg.inv(prior + torch.diag(kernel["log_noise"].exp() / rows))
    spread = torch.linalg.cholesky(torch.eye(len(prior), dtype=prior.dtype) - factor.T @ observed @ factor)
    low = torch.tril_indices(len(prior), len(prior), -1)
    return {
        **kernel,
        "mean": factor.T @ observed @ outputs,
        "log_diagonal": spread.diagonal().log(),
        "lower": spread[low[0], low[1]],
    }


def posterior(at: Parameters, x: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """Mean and variance of ``f`` at ``x [b, d]`` and the divergence; one factor and one triangular solve."""
    import torch

    points = len(at["mean"])
    covariance = matern(at, at["inputs"], torch.cat([at["inputs"], x]))
    factor = _factor(at, covariance[:, :points])
    white = torch.linalg.solve_triangular(factor, covariance[:, points:], upper=False)
    spread = torch.diag(at["log_diagonal"].exp())
    spread[tuple(torch.tril_indices(points, points, -1))] = at["lower"]
    variance = at["log_signal"].exp() - (white**2).sum(0) + ((spread.T @ white) ** 2).sum(0)
    divergence = 0.5 * ((spread**2).sum() + (at["mean"] ** 2).sum() - points) - at["log_diagonal"].sum()
    return at["mean"] @ white, variance, divergence


SVGP = Family("svgp", ("mean", "log_diagonal", "lower"), start, posterior)
"""A free Gaussian ``q(u)``."""
