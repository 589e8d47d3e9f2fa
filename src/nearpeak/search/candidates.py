"""Where an acquisition function is largest: over every configuration of a grid, or by rounds of improving candidates.

Candidates are random configurations and small changes of the best ones seen; the best few are then changed again and
again in shrinking steps. It works for every space and every score, with no gradient; all rows of a round are scored in
one call.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space

Score = Callable[[Floats], Floats]
"""Of features ``[m, f]``, larger is better, ``[m]``."""

WHOLE_GRID: Final = 20_000
"""Grids up to this size are scored whole; of larger ones a sample and the neighbours of the best."""
_RANDOM: Final = 1_024
_NEAR: Final = 256
_SURVIVORS: Final = 32
_ROUNDS: Final = 12


def initial_design(space: Space, count: int, rng: np.random.Generator) -> Floats:
    """A first sample that fills the space: scrambled Sobol points where all parameters are floats and unconstrained,
    else the draws of a larger sample that are farthest from each other (maximin), ``[count, width]``.
    """
    if space.floats and not space.constraints and not space.conditions:
        unit = qmc.Sobol(len(space.floats), seed=rng).random(1 << max(count - 1, 0).bit_length())[:count]
        return np.hstack([p.unscale(unit[:, [j]]) for j, p in enumerate(space.floats)])
    pool = space.sample(min(max(20 * count, 200), 4_000), rng)
    return pool[farthest(space.encode(pool), count)]


def farthest(features: Floats, count: int) -> NDArray[np.intp]:
    """Rows picked one by one, each the farthest from those before it (the first as it comes), ``[count]``."""
    chosen = np.zeros(min(count, len(features)), dtype=np.intp)
    away = np.full(len(features), np.inf)
    for i in range(1, len(chosen)):
        away = np.minimum(away, ((features - features[chosen[i - 1]]) ** 2).sum(1))
        chosen[i] = int(np.argmax(away))
    return chosen


def balanced(levels: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows of levels ``[n, parameters]`` picked one by one, each of values that were picked least, ``[count]``: a Latin
    hypercube of what there is.
    """
    kinds = levels.max(axis=0) + 2
    picked, chosen = np.zeros(kinds.sum()), np.zeros(min(count, len(levels)), dtype=np.intp)
    place = levels + 1 + np.cumsum(kinds) - kinds
    crowding = rng.random(len(levels))  # breaks ties
    for i in range(len(chosen)):
        chosen[i] = int(np.argmin(picked[place].sum(axis=1) + crowding))
        crowding[chosen[i]] = np.inf
        picked[place[chosen[i]]] += 1
    return chosen


def unseen(space: Space, points: Floats, history: History) -> Floats:
    """Those rows that were neither evaluated nor are being so."""
    if space.grid is None:
        known = {row.tobytes() for rows in (history.points, history.pending) for row in rows}
        return points[[row.tobytes() not in known for row in points]] if known else points
    seen = np.zeros(len(space.grid.points), dtype=bool)
    for rows in (history.points, history.pending):
        if len(rows):
            seen[space.grid.find(rows)] = True
    return points[~seen[space.grid.find(points)]]


def distinct(rows: Floats) -> Floats:
    """Each row once, in the order in which they come; inactive columns are alike, ``[k, width]``."""
    _, first = np.unique(np.nan_to_num(rows, nan=-np.inf), axis=0, return_index=True)
    return rows[np.sort(first)]


def maximize(space: Space, score: Score, history: History, rng: np.random.Generator, effort: float = 1.0) -> Floats:
    """The configuration with the largest score, ``[width]``; one not yet seen where the space is a grid and has one.

    ``effort``: share of the usual number of candidates, where the space is not scored whole.
    """
    grid = space.grid
    if grid is not None and len(grid.points) <= WHOLE_GRID:
        left = unseen(space, grid.points, history)
        left = left if len(left) else grid.points
        return np.asarray(left[int(np.argmax(score(space.encode(left))))])
    points = space.sample(round(effort * _RANDOM), rng)
    if history.best is not None:
        order = history.ranking[:8]
        near = history.points[order[rng.integers(0, len(order), round(effort * _NEAR))]]
        points = np.vstack([points, space.moved(near, rng, 0.05)])
    points = unseen(space, points, history) if grid is not None else points
    scores = score(space.encode(points))
    for i in range(_ROUNDS):
        top = np.argsort(-scores, kind="stable")[: round(effort * _SURVIVORS)]
        points, scores = points[top], scores[top]
        changed = space.moved(np.repeat(points, 8, axis=0), rng, 0.2 * 0.5**i)
        changed = unseen(space, changed, history) if grid is not None else changed
        if len(changed):
            points = np.vstack([points, changed])
            scores = np.append(scores, score(space.encode(changed)))
    return np.asarray(points[int(np.argmax(scores))])
