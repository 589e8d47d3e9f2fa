"""Least worst violation over discrete variables ("Discrete Optimization of Min-Max Violation and its Applications
Across Computational Sciences", 2025).

    minimise over x_j in L_j  the largest |(A x - b)_i|

A move sets one variable to another level. It changes the residual r = A x - b by one column of A, so that residuals
are carried along and no product with A is made again. Only a move that improves the worst rows can improve the
maximum: over the R worst rows W, max_W |r + A_j d| is a lower bound on what the move d of variable j leads to, and
cheap. The moves of smallest bound are evaluated on all rows and the best is made, better or not; the variable then
rests for some steps (tabu search), so that the search leaves local optima. All problems and restarts move at once.

Rounding a layer's weights so that the worst error of its outputs is least is one such problem an output: A are the
inputs that were seen, b the exact outputs, L_j the grid. Choosing the coefficients of a FIR filter in fixed point
so that its ripple is least is another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.topic import Explanation, Option, Table, Topic, numbers

Array = Any
"""A numpy array or a torch tensor; every argument of a call is of one kind, and so is what it returns."""

AT_ONCE: Final = 2**23
"""Bounds of moves in memory at once; more problems are solved in turns."""


@dataclass(frozen=True)
class Choice:
    """A level for each variable, by problem.

    Attributes:
        index: of the level, ``[p, n]``. x: its value, ``[p, n]``. violation: the largest |A x - b|, ``[p]``.
    """

    index: Array
    x: Array
    violation: Array


@dataclass(frozen=True)
class _Backend:
    """The few things that numpy and torch call by different names."""

    xp: Any
    take: Callable[[Array, Array], Array]
    largest: Callable[[Array, int], Array]
    put: Callable[[NDArray[Any]], Array]


def _backend(like: Array) -> _Backend:
    if isinstance(like, np.ndarray):
        return _Backend(
            np,
            lambda a, index: np.take_along_axis(a, index, -1),
            lambda a, k: np.argpartition(a, -k, axis=-1)[..., -k:],
            np.asarray,
        )
    import torch

    return _Backend(
        torch,
        lambda a, index: torch.take_along_dim(a, index, -1),
        lambda a, k: torch.topk(a, k, dim=-1, sorted=False).indices,
        lambda a: torch.as_tensor(a, device=like.device),
    )


def minimize_violation(
    a: Array,
    b: Array,
    levels: Array,
    *,
    start: Array | None = None,
    restarts: int = 1,
    steps: int = 500,
    reach: int | None = None,
    rows: int = 32,
    trials: int = 8,
    seed: int = 0,
) -> Choice:
    """Search for the levels of least worst violation.

    Args:
        a: ``[m, n]``, shared by all problems. b: ``[p, m]``.
        levels: ascending, ``[n, k]``, or ``[p, n, k]`` where problems differ.
        start: indices of levels to begin from, ``[p, n]``; without it the real minimum of ``relax``, rounded.
        restarts: of each problem; all but the first begin at random within reach of the start. steps: moves of each.
        reach: levels that a move may go up or down; any level without it.
        rows: worst rows that bound a move. trials: moves of smallest bound that are evaluated on all rows.
        seed: of random starts and rests.

    Raises:
        UsageError: shapes do not fit, or there is nothing to choose.
    """
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0] or tuple(levels.shape[-2:-1]) != (a.shape[1],):
        raise UsageError(
            f"A of {tuple(a.shape)} needs b of (problems, {a.shape[0]}) and levels of ({a.shape[1]}, count), "
            f"not {tuple(b.shape)} and {tuple(levels.shape)}"
        )
    if levels.shape[-1] < 2 or min(restarts, rows, trials) < 1 or steps < 0 or (reach is not None and reach < 1):
        raise UsageError("give two levels or more, and at least one restart, row, trial and level of reach")
    to = _backend(a)
    if not all(bool(to.xp.isfinite(given).all()) for given in (a, b, levels)):
        raise UsageError("A, b and levels must be finite; one of them holds an infinity or no number")
    problems, (m, n), k = b.shape[0], a.shape, levels.shape[-1]
    levels = to.xp.broadcast_to(levels, (problems, n, k))
    if start is None:
        start = _nearest(to, levels, relax(a, b)[0])
    rng = np.random.default_rng(seed)
    far = k - 1 if reach is None else min(reach, k - 1)
    moves = to.put(np.r_[-far:0, 1 : far + 1])
    each = min(rows, m) * n * len(moves) * restarts
    chunk = max(1, AT_ONCE // each)
    parts = []
    for first in range(0, problems, chunk):
        which = slice(first, first + chunk)
        size = start[which].shape[0]
        begin = to.xp.tile(start[which], (restarts, 1))
        begin[size:] = to.xp.clip(begin[size:] + to.put(rng.integers(-far, far + 1, size=begin[size:].shape)), 0, k - 1)
        # Restart i of problem p lies at i * size + p.
        index, violation = _search(
            to, a, to.xp.tile(b[which], (restarts, 1)), to.xp.tile(levels[which], (restarts, 1, 1)), begin, moves,
            steps, min(rows, m), trials, rng,
        )  # fmt: skip
        violation = violation.reshape(restarts, size)
        winner = to.xp.argmin(violation, axis=0)
        problem = to.put(np.arange(size))
        parts.append((index.reshape(restarts, size, n)[winner, problem], violation[winner, problem]))
    index = to.xp.concatenate([part[0] for part in parts])
    return Choice(index, _at(to, levels, index), to.xp.concatenate([part[1] for part in parts]))


def _search(
    to: _Backend, a: Array, b: Array, levels: Array, index: Array, moves: Array,
    steps: int, rows: int, trials: int, rng: np.random.Generator,
) -> tuple[Array, Array]:  # fmt: skip
    """Tabu search of all ``s`` starts at once: the best indices ``[s, n]`` and their violation ``[s]``."""
    xp, (s, n), k, columns = to.xp, index.shape, levels.shape[-1], a.T
    residual = _at(to, levels, index) @ columns - b
    best, least = index, xp.amax(xp.abs(residual), axis=-1)
    all_s, trials = to.put(np.arange(s)), min(trials, n * len(moves))
    # Rests of different lengths, lest the search goes in circles.
    rests = to.put(rng.integers(1 + n // 10, 2 + n // 3, size=(steps, s)))
    free_from = to.put(np.zeros((s, n), dtype=np.int64))
    for step in range(steps):
        worst = to.largest(xp.abs(residual), rows)
        target = index[:, :, None] + moves
        allowed = (target >= 0) & (target < k)
        target = xp.where(allowed, target, index[:, :, None])
        delta = to.take(levels, target) - _at(to, levels, index)[:, :, None]
        bound = xp.amax(
            xp.abs(to.take(residual, worst)[:, :, None, None] + a[worst][..., None] * delta[:, None]), axis=1
        )
        # A resting variable may move where that could be the best ever seen.
        may = allowed & ((free_from <= step)[:, :, None] | (bound < least[:, None, None]))
        bound = xp.where(may, bound, np.inf).reshape(s, -1)
        tried = to.largest(-bound, trials)
        variable, change = tried // len(moves), to.take(delta.reshape(s, -1), tried)
        # Where fewer may move than are tried, the bound is infinite and stays it.
        exact = xp.amax(xp.abs(residual[:, None] + columns[variable] * change[..., None]), axis=-1)
        exact = xp.where(xp.isinf(to.take(bound, tried)), np.inf, exact)
        made = xp.argmin(exact, axis=-1)[:, None]
        reached, tried = to.take(exact, made)[:, 0], to.take(tried, made)[:, 0]
        moved, d = xp.isfinite(reached), to.take(change, made)
        j = tried // len(moves)
        d = xp.where(moved[:, None], d, 0.0)
        residual = residual + columns[j] * d
        index = xp.where((to.put(np.arange(n)) == j[:, None]) & moved[:, None],
                         to.take(target.reshape(s, -1), tried[:, None]), index)  # fmt: skip
        free_from[all_s, j] = step + 1 + rests[step]
        better = reached < least
        best, least = xp.where(better[:, None], index, best), xp.where(better, reached, least)
    # Steps add rounding errors to the residual; what is returned is measured anew.
    return best, xp.amax(xp.abs(_at(to, levels, best) @ columns - b), axis=-1)


def _at(to: _Backend, levels: Array, index: Array) -> Array:
    """Values ``[p, n]`` of the levels ``index [p, n]``."""
    return to.take(levels, index[..., None])[..., 0]


def _nearest(to: _Backend, levels: Array, x: Array) -> Array:
    return to.xp.argmin(to.xp.abs(levels - x[..., None]), axis=-1)


def relax(a: Array, b: Array, iterations: int = 60) -> tuple[Array, Array]:
    """Real ``x [p, n]`` of nearly least worst violation, and a bound ``[p]`` that no ``x`` is below.

    Lawson's iteration (1961): least squares under weights that grow where the residual is large. Weights that sum to 1
    average squares, and no average is above the largest, so that sqrt(sum_i w_i r_i^2) is such a bound.
    """
    xp = _backend(a).xp
    weights = xp.ones_like(b) / b.shape[1]
    least, x, bound = xp.inf * xp.ones_like(b[:, 0]), 0 * (b @ a), xp.zeros_like(b[:, 0])
    for _ in range(iterations):
        weighted = weights[:, :, None] * a
        normal = xp.linalg.pinv(xp.swapaxes(weighted, 1, 2) @ a, hermitian=True)
        found = (normal @ (xp.swapaxes(weighted, 1, 2) @ b[..., None]))[..., 0]
        residual = xp.abs(found @ a.T - b)
        bound = xp.maximum(bound, xp.sqrt(xp.sum(weights * residual**2, axis=-1)))
        worst = xp.amax(residual, axis=-1)
        x, least = xp.where((worst < least)[:, None], found, x), xp.minimum(worst, least)
        weights = weights * (residual + 1e-12)
        weights = weights / xp.sum(weights, axis=-1)[:, None]
    return x, xp.minimum(bound, least)


def uniform_grid(weight: Array, bits: int, group: int | None = None) -> Array:
    """Levels ``[p, n, 2 ** bits]`` of round-to-nearest: evenly over each group's weights and zero.

    Args:
        weight: ``[p, n]``. bits: of a weight. group: neighbouring inputs that share a grid; a whole row without it.

    Raises:
        UsageError: ``bits`` is not between 1 and 8, or groups do not divide the inputs.
    """
    p, n = weight.shape
    group = group or n
    if not 1 <= bits <= 8 or n % group:
        raise UsageError(f"bits must be 1 to 8 and the group divide {n} inputs, not {bits} and {group}")
    xp = _backend(weight).xp
    grouped = weight.reshape(p, n // group, group)
    # A zero point must lie within the range, as integer formats store it.
    low = xp.clip(xp.amin(grouped, axis=-1), None, 0)
    high = xp.clip(xp.amax(grouped, axis=-1), 0, None)
    step = (high - low) / (2**bits - 1)
    count = xp.arange(2**bits) if xp is np else xp.arange(2**bits, device=weight.device)
    table = low[..., None] + step[..., None] * count
    return xp.broadcast_to(table[:, :, None], (p, n // group, group, 2**bits)).reshape(p, n, 2**bits)


def round_to_grid(
    weight: Array, inputs: Array, levels: Array, steps: int = 500, seed: int = 0
) -> tuple[Choice, Choice]:
    """Weights of least worst output error over ``inputs``, and round-to-nearest's.

    Args:
        weight: ``[outputs, inputs]``. inputs: that were seen, ``[m, inputs]``. levels: ``[outputs, inputs, k]``.
        steps, seed: of ``minimize_violation``, one level up or down a move.
    """
    to = _backend(weight)
    nearest = _nearest(to, levels, weight)
    exact = weight @ inputs.T
    x = _at(to, levels, nearest)
    plain = Choice(nearest, x, to.xp.amax(to.xp.abs(x @ inputs.T - exact), axis=-1))
    return minimize_violation(inputs, exact, levels, start=nearest, steps=steps, reach=1, seed=seed), plain


def fir(taps: int, passband: float, stopband: float, points: int = 512) -> tuple[NDArray[Any], NDArray[Any]]:
    """Amplitude of a symmetric low-pass filter as ``A [points, (taps + 1) // 2]``, and its target, ``b [points]``.

    Band edges are shares of the sampling rate; between them anything goes. ``x`` are the first half of the taps.

    Raises:
        UsageError: not 0 < passband < stopband < 0.5, or fewer than 2 taps.
    """
    if not 0 < passband < stopband < 0.5 or taps < 2:
        raise UsageError(f"need 0 < passband < stopband < 0.5 and 2 taps, not {passband:g}, {stopband:g} and {taps}")
    wide = passband / (passband + 0.5 - stopband)
    inside = max(2, round(points * wide))
    at = np.r_[np.linspace(0, passband, inside), np.linspace(stopband, 0.5, points - inside)]
    half = np.arange((taps + 1) // 2)
    a = 2 * np.cos(2 * np.pi * at[:, None] * ((taps - 1) / 2 - half))
    if taps % 2:
        a[:, -1] /= 2
    return a, (at <= passband).astype(float)


def _explain(
    taps: int, passband: float, stopband: float, bits: int, matrix: str, target: str, levels: tuple[float, ...],
    restarts: int, steps: int, seed: int,
) -> Explanation:  # fmt: skip
    if bool(matrix) != bool(target):
        raise UsageError("a matrix needs a target and a target a matrix; give both --matrix and --target, or neither")
    if matrix:
        a, b, allowed = _load(matrix, 2), _load(target, 1), np.unique(levels)
    else:
        if not 2 <= bits <= 16:
            raise UsageError(f"coefficients have 2 to 16 bits, not {bits}")
        a, b = fir(taps, passband, stopband)
        allowed = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) / 2 ** (bits - 1)
    grid = np.broadcast_to(allowed, (a.shape[1], allowed.size))
    # Many levels lie close together: neighbours are moves enough.
    reach = None if allowed.size <= 16 else 2
    found = minimize_violation(a, b[None], grid, restarts=restarts, steps=steps, reach=reach, seed=seed)
    squares = np.linalg.lstsq(a, b, rcond=None)[0]
    rounded = allowed[np.abs(squares[:, None] - allowed).argmin(axis=1)]
    worst, before = float(found.violation[0]), float(np.abs(a @ rounded - b).max())
    bound = float(relax(a, b[None])[1][0])
    what = "the violation" if matrix else "the ripple"
    return Explanation(
        {
            "worst_violation": worst,
            "worst_violation_of_rounded_least_squares": before,
            "bound_over_real_numbers": bound,
        },
        (
            Table.of(
                "Values" if matrix else f"First half of the {taps} symmetric taps",
                variable=np.arange(a.shape[1]),
                least_squares=squares,
                rounded=rounded,
                chosen=found.x[0],
            ),
        ),
        (
            f"The chosen levels make {what} at most {worst:.4g}, {100 * (1 - worst / before):.3g} % below least "
            f"squares rounded to the same levels. No real numbers at all bring it below {bound:.4g}.",
        ),
    )


def _load(path: str, dimensions: int) -> NDArray[Any]:
    try:
        array = np.asarray(np.load(path, allow_pickle=False), dtype=float)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read an array from {path!r} ({error}); write it with numpy.save") from None
    if array.ndim != dimensions or not array.size or not np.isfinite(array).all():
        raise UsageError(f"{path!r} must hold finite figures in {dimensions} dimensions, not {array.shape}")
    return array


TOPIC = Topic(
    "min-max",
    "Which levels of discrete variables make the worst violation of A x = b least?",
    "Discrete Optimization of Min-Max Violation and its Applications Across Computational Sciences, 2025",
    (
        Option("taps", int, "Taps of the low-pass FIR filter that is designed where no matrix is given.", 20),
        Option("passband", float, "End of its passband, as a share of the sampling rate.", 0.1),
        Option("stopband", float, "Begin of its stopband, as a share of the sampling rate.", 0.2),
        Option("bits", int, "Bits of its fixed-point coefficients, between -1 and 1.", 8),
        Option("matrix", str, "A .npy file with A, rows by variables.", ""),
        Option("target", str, "A .npy file with b.", ""),
        Option("levels", numbers, "Levels of every variable of the matrix.", (0.0, 1.0)),
        Option("restarts", int, "Starts of the search.", 16),
        Option("steps", int, "Moves of each.", 500),
        Option("seed", int, "Seed of random starts and rests.", 0),
    ),
    _explain,
    "--taps 20 --bits 8 --passband 0.1 --stopband 0.2",
)
