"""A Gaussian process posterior from a learned, weighted coreset (Ketenci, Perotte, Elhadad and Urteaga, A
Coreset-based, Tempered Variational Posterior for Accurate and Scalable Stochastic Gaussian Process Inference, 2023,
arXiv 2311.01409).

``M`` pseudo-rows ``(z_m, t_m)`` with weights ``b_m`` are observed as rows of the data are, each likelihood tempered by
its weight, and the posterior is what the prior makes of them:

    q(u) ~ p(u) prod_m N(t_m | u_m, noise)^b_m

which is Gaussian: a weight divides the noise. With ``D = diag(noise / b)``, ``A = K_zz + D`` and ``a = A^-1 t``

    mean = K_xz a        variance = k_xx - diag(K_xz A^-1 K_zx)
    KL(q(u) || p(u)) = 1/2 [t'a + log|A| - sum_m (log D_m + D_m a_m^2 + 1 - D_m (A^-1)_mm)]

A posterior so takes ``2 M`` numbers (``t`` and ``b``) beside its inputs, where a free covariance takes ``M (M + 3) /
2``; prior and kernel shape it, so that it follows when they change; and what is factorized, ``A``, has the noise on its
diagonal and needs no jitter. It is a narrower family than a free Gaussian: its precision is ``K^-1`` plus a diagonal.
The forms above are the paper's model with ``u`` integrated out; the divergence is derived here in terms of ``A`` alone.
"""

from typing import TYPE_CHECKING

from nearpeak.inference.sparse_gp import Family, Parameters, matern

if TYPE_CHECKING:
    from torch import Tensor


def start(kernel: Parameters, outputs: "Tensor", rows: "Tensor") -> Parameters:
    """Pseudo-outputs ``[M]`` as guessed, each weighing as the rows that it stands for."""
    return {**kernel, "outputs": outputs.clone(), "log_weight": rows.log()}


def posterior(at: Parameters, x: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """Mean and variance of ``f`` at ``x [b, d]`` and the divergence. One factor; the noise on its diagonal keeps ``A``
    so well conditioned that its inverse may be written out, and the rows of a batch meet only a product.
    """
    import torch

    noise = (at["log_noise"] - at["log_weight"]).exp()
    points = len(noise)
    covariance = matern(at, at["inputs"], torch.cat([at["inputs"], x]))
    cross = covariance[:, points:]
    factor = torch.linalg.cholesky(covariance[:, :points] + torch.diag(noise))
    inverse = torch.cholesky_inverse(factor)
    solved = inverse @ at["outputs"]
    divergence = (
        0.5 * (at["outputs"] @ solved)
        + factor.diagonal().log().sum()
        - 0.5 * (noise.log() + noise * solved**2 + 1 - noise * inverse.diagonal()).sum()
    )
    return solved @ cross, at["log_signal"].exp() - (cross * (inverse @ cross)).sum(0), divergence


CORESET = Family("coreset", ("outputs", "log_weight"), start, posterior)
"""``q(u)`` of a weighted coreset."""
