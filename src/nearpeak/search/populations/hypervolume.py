"""The volume that a set of points dominates below a reference point: how much of the objectives a search has won.

Exact in one to three objectives: a sweep along the first objective that keeps the area dominated in the other two
(Beume et al., IEEE Transactions on Evolutionary Computation 13, 2009). With more objectives it is estimated: the share
of samples of the box between the ideal and the reference point that a point dominates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.errors import UsageError
from nearpeak.search.populations.dominance import ascending, compiled, nondominated, padded
from nearpeak.search.populations.evolution import Array, chunk_of, generator, like, namespace, uniform


@dataclass(frozen=True)
class Estimate:
    """A volume and the standard error of its estimate; 0 where it is exact."""

    value: float
    error: float = 0.0


def hypervolume(values: Array, reference: ArrayLike, samples: int = 100_000, seed: int = 0) -> Estimate:
    """The volume dominated by ``values [n, m]`` below ``reference [m]``; rows that are not below it add nothing.

    Raises:
        UsageError: ``reference`` is not finite or has another number of objectives.
    """
    xp = namespace(values)
    corner = np.asarray(reference, float)
    if corner.shape != values.shape[1:] or not np.isfinite(corner).all():
        raise UsageError(
            f"the reference point must be {values.shape[1]} finite numbers, one for each objective, not {corner}"
        )
    inside = values[xp.all(values < like(corner, values), 1)]
    if not len(inside):
        return Estimate(0.0)
    if inside.shape[1] > 3:
        return _sampled(inside, like(corner, values), samples, seed)
    # Objectives that are not there are 0, below a reference of 1: they multiply the volume by 1.
    wide = padded(inside)
    last = np.concatenate([corner, np.ones(3 - len(corner))])
    sweeps = compiled() if xp is np else None
    if sweeps is None:
        return Estimate(_swept(wide[nondominated(wide)], like(last, values)))
    order = ascending(wide)
    return Estimate(float(sweeps.volume(np.ascontiguousarray(wide[order], float), last)))


def _swept(points: Array, reference: Array) -> float:
    """Slab by slab of the first objective; the area of each from the stairs of the rows so far, chunks at a time."""
    xp = namespace(points)
    by_y, by_x = points[xp.argsort(points[:, 1], axis=0, stable=True)], xp.argsort(points[:, 0], axis=0, stable=True)
    x = points[by_x, 0]
    thick = xp.concatenate([x[1:], reference[:1]]) - x
    across = xp.concatenate([by_y[1:, 1], reference[1:2]]) - by_y[:, 1]
    total, step = 0.0, max(1, chunk_of(points) // len(points))
    for start in range(0, len(points), step):
        met = by_y[None, :, 0] <= x[start : start + step, None]
        height = xp.where(met, by_y[None, :, 2], reference[2])
        least = np.minimum.accumulate(height, 1) if xp is np else xp.cummin(height, 1).values
        area = xp.sum((reference[2] - least) * across, 1)
        total += float(xp.sum(area * thick[start : start + step]))
    return total


def _sampled(points: Array, reference: Array, samples: int, seed: int) -> Estimate:
    """The share of samples of the box that are dominated, times its volume."""
    xp = namespace(points)
    rng = generator(seed, None if xp is np else str(points.device))
    ideal = xp.amin(points, 0)
    step, hits = max(1, chunk_of(points) // (len(points) * points.shape[1])), 0
    drawn = ideal + uniform(rng, samples, points.shape[1]) * (reference - ideal)
    for start in range(0, samples, step):
        beaten = xp.any(xp.all(points <= drawn[start : start + step, None], 2), 1)
        hits += int(beaten.sum())
    box, share = float(xp.prod(reference - ideal)), hits / samples
    return Estimate(box * share, box * float(np.sqrt(share * (1 - share) / samples)))
