"""Labelled directed graphs, their Weisfeiler-Lehman subtree features, and a Gaussian process on these.

Every node starts with its label. In each round it takes a new one that stands for its label and the multiset of its
predecessors' labels of the round before, so that after h rounds a label stands for the tree of what feeds the node, h
steps deep. phi(G) counts the labels of all rounds to h; the kernel is ``k(G, G') = scale * phi(G) . phi(G')``. Depth,
scale and noise are those of largest marginal likelihood: with ``K = Q diag(lambda) Q'`` and ``z = Q' y``, for each
noise-to-scale ratio r the best scale is ``mean(z^2 / (lambda + r))``.

The kernel is linear in phi, so the posterior mean has one gradient by phi everywhere, ``scale * Phi' alpha``, alpha the
GP's weights: what one more subtree of a kind (a motif) is worth.

Shervashidze et al.: Weisfeiler-Lehman Graph Kernels, JMLR 2011. Ru, Wan, Dong, Osborne: Interpretable Neural
Architecture Search via Bayesian Optimisation with Weisfeiler-Lehman Kernels, ICLR 2021.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import GP, condition, standardised

DEPTHS = (0, 1, 2, 3)
"""Rounds among which the marginal likelihood chooses."""
_RATIOS = np.geomspace(1e-4, 1e2, 25)


@dataclass(frozen=True)
class Graphs:
    """Directed acyclic graphs on up to v labelled nodes.

    Attributes:
        labels: a number of ``names`` for each node, ``[n, v]``; -1: there is no such node. edges: from the second axis
            to the third, ``[n, v, v]``; none from or to nodes that are not there. names: of labels.
    """

    labels: NDArray[np.intp]
    edges: NDArray[np.bool_] = field(repr=False)
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Subtrees:
    """Weisfeiler-Lehman features of graphs.

    Attributes:
        counts: how often each subtree occurs, ``[n, f]``. depth: of each, the round that found it, ``[f]``.
        names: of each: a node's label with those of its predecessors in brackets, ``conv(input, pool(input))``.
    """

    counts: Floats = field(repr=False)
    depth: NDArray[np.intp]
    names: tuple[str, ...]

    def to(self, depth: int) -> Floats:
        """Counts of the rounds up to ``depth``; columns of later ones are 0, ``[n, f]``."""
        return np.where(self.depth <= depth, self.counts, 0.0)


def subtrees(graphs: Graphs, depth: int = max(DEPTHS)) -> Subtrees:
    """Features of all the graphs, with labels that they share."""
    n = len(graphs)
    there = graphs.labels >= 0
    labels, names = graphs.labels, list(graphs.names)
    counts, depths, every = [], [], []
    for round_ in range(depth + 1):
        if round_:
            labels, names = _relabelled(graphs, labels, names)
        count = np.zeros((n, len(names)))
        np.add.at(count, (np.nonzero(there)[0], labels[there]), 1.0)
        counts.append(count)
        depths.append(np.full(len(names), round_))
        every += names
    return Subtrees(np.hstack(counts), np.concatenate(depths), tuple(every))


def _relabelled(graphs: Graphs, labels: NDArray[np.intp], names: list[str]) -> tuple[NDArray[np.intp], list[str]]:
    """One round: labels ``[n, v]`` and what each stands for."""
    feeds = np.sort(np.where(graphs.edges.transpose(0, 2, 1), labels[:, None, :], -1), axis=2)
    there = graphs.labels >= 0
    signatures = np.column_stack([graphs.labels[there], feeds[there]])
    kinds, number = np.unique(signatures, axis=0, return_inverse=True)
    found = np.full_like(labels, -1)
    found[there] = number.ravel()
    texts = [
        graphs.names[own] + (f"({', '.join(sorted(names[p] for p in before if p >= 0))})" if before.max() >= 0 else "")
        for own, before in zip(kinds[:, 0], kinds[:, 1:], strict=True)
    ]
    return found, texts


@dataclass(frozen=True)
class DotProduct:
    """``scale * a . b``."""

    scale: float

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Covariances ``[n, m]``."""
        return np.asarray(self.scale * (a @ b.T))

    def diagonal(self, a: Floats) -> Floats:
        """Variances ``[n]``."""
        return np.asarray(self.scale * (a * a).sum(axis=1))


def fit(features: Subtrees, rows: NDArray[np.intp], values: Floats) -> tuple[GP, int]:
    """A GP on the features of some of the graphs, and its depth.

    Args:
        rows: which graphs were evaluated, ``[k]``. values: what they gave, ``[k]``.
    """
    y, _, _ = standardised(values)
    best: tuple[float, int, float, float] | None = None
    for depth in range(int(features.depth.max()) + 1):
        phi = features.to(depth)[rows]
        spectrum, vectors = np.linalg.eigh(phi @ phi.T)
        variance = np.maximum(spectrum, 0) + _RATIOS[:, None]
        scale = np.maximum(((vectors.T @ y) ** 2 / variance).mean(axis=1), 1e-12)
        evidence = -0.5 * (len(y) * np.log(scale) + np.log(variance).sum(axis=1))
        at = int(np.argmax(evidence))
        if best is None or evidence[at] > best[0]:
            best = (float(evidence[at]), depth, float(scale[at]), float(scale[at] * _RATIOS[at]))
    assert best is not None
    _, depth, scale_, noise = best
    return condition(DotProduct(scale_), features.to(depth)[rows], values, noise), depth


@dataclass(frozen=True)
class Motifs:
    """What subtrees are worth, by the posterior, the best (that lower the value most) first.

    Attributes:
        names: of the subtrees. gradient: of the posterior mean by one more of it, in the units of the values, ``[k]``.
        sd: posterior standard deviation of that, ``[k]``. seen: evaluated graphs that have it, ``[k]``.
        features: 1 for the features that each is (a tree that is complete after some rounds is found again in later
            ones), ``[k, f]``.
    """

    names: tuple[str, ...]
    gradient: Floats
    sd: Floats
    seen: NDArray[np.intp]
    features: Floats = field(repr=False)


def motifs(gp: GP, features: Subtrees, least: int = 2) -> Motifs:
    """The subtrees of at least ``least`` evaluated graphs, by the gradient of the posterior mean.

    A subtree's gradient is the sum over the rounds that find it: its features change together.
    """
    assert isinstance(gp.kernel, DotProduct)
    scale = gp.kernel.scale
    present = np.flatnonzero((gp.x > 0).any(axis=0))
    names, motif = np.unique(np.asarray(features.names, dtype=object)[present].astype(str), return_inverse=True)
    together = np.zeros((len(names), gp.x.shape[1]))
    together[motif, present] = 1.0
    counts = gp.x @ together.T
    seen = (counts > 0).sum(axis=0)
    kept = np.flatnonzero((seen >= least) & (np.ptp(counts, axis=0) > 0))
    gradient = gp.spread * scale * counts[:, kept].T @ gp.weights
    order = kept[np.argsort(gradient, kind="stable")]
    explained = solve_triangular(gp.factor, scale * counts[:, order], lower=True, check_finite=False)
    variance = np.maximum(scale * together[order].sum(axis=1) - (explained**2).sum(axis=0), 0)
    return Motifs(
        tuple(names[order].tolist()), np.sort(gradient), gp.spread * np.sqrt(variance), seen[order], together[order]
    )
