"""Fit ``src/nearpeak/cost/data/calibration.json`` to measured operators, and say how good it is.

    nearpeak calibrate MEASUREMENTS/operators

Every (device, engine, variant) gets three constants (launch, achieved fractions of peak and bandwidth), by robust least
squares on the logarithm of the time, and correction tables by penalized least squares on what is left. So does a
kernel of an engine where that pays. What was never measured is predicted by a mean of entries (``platform``).

Scores are of rows in the fit; with whole sites left out (one (n, k) of a product, one family of heads or of experts;
five folds); and with a whole device left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import least_squares

from nearpeak.calibrate.samples import Sample
from nearpeak.cost.calibration import Axis, Calibration, Entry, OperatorCalibration, correction, join, knots
from nearpeak.cost.platform import Work, kin, seconds, variant_code
from nearpeak.cost.tables import platform_named
from nearpeak.hardware import device

Array = NDArray[np.float64]
FOLDS = 5
SPREAD = 7919
"""A prime that deals neighbouring sites to different folds."""
ENOUGH = 60
"""Rows below which a (device, engine, variant) gets no entry of its own."""


WORTH = 0.75
"""A kernel gets an entry of its own where that lowers its error, sites left out, to this share of its engine's."""


@dataclass(frozen=True)
class Layout:
    """The corrections of an operator: axes of its coordinates, what each table spans, how stiff the tables are.

    ``shared``: entries start from corrections that all of them have in common, and add their own. It pays where an
    entry has few sites: families of experts are as many as models.
    """

    axes: tuple[Axis, ...]
    tables: tuple[tuple[int, ...], ...]
    smoothness: float = 1.0
    ridge: float = 0.02
    shared: bool = False


LAYOUTS: dict[str, Layout] = {
    "gemm": Layout((Axis("m", 0, 0, 1.5, 11), Axis("n", 1, 5, 1.6, 8), Axis("k", 2, 5, 1.6, 8)), ((0, 1, 2),), 0.3),
    "attention_prefill": Layout(
        (
            Axis("isl", 0, 0, 2, 8),
            Axis("batch x heads", 1, 0, 2, 8),
            Axis("group", 2, 0, 1.5, 6),
            Axis("head_dim", 3, 6, 1, 4),
            Axis("window", 4, -2, 1, 3),
        ),
        ((0, 1, 3), (0, 1, 2), (0, 1, 4)),
        0.3,
    ),
    "attention_decode": Layout(
        (
            Axis("span", 0, 0, 1, 18),
            Axis("batch x kv_heads", 1, 0, 1, 17),
            Axis("group", 2, 0, 0.5, 15),
            Axis("head_dim", 3, 6, 0.5, 5),
            Axis("window", 4, -2, 1, 3),
            Axis("span, coarse", 0, 1, 2, 9),
            Axis("batch x kv_heads, coarse", 1, 0, 2, 9),
            Axis("group, coarse", 2, 0, 1.5, 6),
        ),
        ((0, 1), (2, 3), (5, 6, 7), (5, 6, 3), (6, 7, 4), (5, 7, 4)),
        0.3,
    ),
    "moe": Layout(
        (
            Axis("rows an expert", 0, -7, 2, 11),
            Axis("experts here", 1, 0, 2, 6),
            Axis("ep", 2, 0, 2, 5),
            Axis("inter", 3, 4, 1.5, 8),
            Axis("skew", 4, 0, 1.01, 3),
            Axis("cycles of traffic", 5, 7, 2, 11),
        ),
        ((0, 1, 3), (0, 2, 4), (1, 2), (0, 5, 4)),
        0.1,
        shared=True,
    ),
}
HEADS = Axis("heads", 1, 0, 1.75, 5)
LATENT_HEADS = Axis("heads", 2, 0, 2.3333333, 4)
WIDTH = Axis("heads or channels", 2, 0, 2, 5)
RING = Layout((Axis("traffic over latency", 0, -7, 1, 14), Axis("ranks", 1, 1, 1, 3)), ((0, 1),), 0.05)
LATENT_PREFILL = Layout((Axis("isl", 0, 0, 2.5, 7), Axis("batch", 1, 0, 2.6666667, 4), LATENT_HEADS), ((0, 1, 2),), 0.3)
LATENT_DECODE = Layout((Axis("context", 0, 1, 2.5, 8), Axis("batch", 1, 0, 2.5, 5), LATENT_HEADS), ((0, 1, 2),), 0.3)
ABSORBED = Layout((Axis("tokens", 0, 0, 1.5, 11), HEADS), ((0, 1),), 0.3)
SCAN = Layout((Axis("tokens", 0, 0, 2, 9), Axis("batch", 1, 0, 2, 6), WIDTH), ((0, 1), (0, 2), (1, 2)), 0.3)
STEP = Layout((Axis("tokens", 0, 0, 1, 2), Axis("batch", 1, 0, 1, 11), WIDTH), ((1, 2),), 0.3)
LAYOUTS |= dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "allreduce_custom"), RING)
LAYOUTS |= dict.fromkeys(("mla_prefill", "mla_prefill_module"), LATENT_PREFILL)
LAYOUTS |= dict.fromkeys(("mla_decode", "mla_decode_module"), LATENT_DECODE)
LAYOUTS |= dict.fromkeys(("mla_bmm_pre", "mla_bmm_post"), ABSORBED)
LAYOUTS |= dict.fromkeys(("recurrence_context", "convolution_context"), SCAN)
LAYOUTS |= dict.fromkeys(("recurrence_generation", "convolution_generation"), STEP)


@dataclass(frozen=True)
class Fit:
    """Constants and tables of one entry, before rounding."""

    constants: Array
    tables: tuple[Array, ...]

    def log_seconds(self, layout: Layout, s: Sample) -> Array:
        """Predicted logarithms."""
        only = np.zeros((), np.intp)
        corrected = correction(layout.axes, layout.tables, self.tables, only, s.coordinates)
        return np.asarray(np.maximum(np.log(uncorrected(self.constants, s)) + corrected, np.log(s.floor)))


def uncorrected(constants: Array, s: Sample) -> Array:
    """Seconds by launch and achieved fractions alone."""
    launch, compute, traffic = constants
    return np.asarray(launch + join(s.compute / compute, s.traffic / traffic))


def fit(layout: Layout, s: Sample, start: tuple[Array, ...] | None = None) -> Fit:
    """Constants first, then the tables on what they leave; ``start``: tables that the entry's own are added to."""
    constants = fit_constants(s)
    residual = np.log(s.seconds / uncorrected(constants, s))
    if start is None:
        return Fit(constants, fit_tables(layout, s.coordinates, residual))
    residual = residual - correction(layout.axes, layout.tables, start, np.zeros((), np.intp), s.coordinates)
    own = fit_tables(layout, s.coordinates, residual)
    return Fit(constants, tuple(a + b for a, b in zip(start, own, strict=True)))


def in_common(layout: Layout, s: Sample, parts: Iterable[NDArray[np.intp]]) -> tuple[Array, ...]:
    """Tables fitted to what the constants of all entries leave. ``parts``: the rows of each entry."""
    thin = [thinned(rows, COMMON) for rows in parts if rows.size >= ENOUGH]
    left = [np.log(s.seconds[rows] / uncorrected(fit_constants(s.where(rows)), s.where(rows))) for rows in thin]
    rows = np.concatenate(thin)
    return fit_tables(layout, tuple(c[rows] for c in s.coordinates), np.concatenate(left))


COMMON = 1000
"""Rows of each entry that the corrections in common are fitted to: all count alike, however often they were timed."""


def fit_constants(s: Sample, most: int = 4000) -> Array:
    """Launch seconds and achieved fractions, least squares on logarithms with Cauchy's loss."""
    step = max(1, s.rows // most)
    few = s.where(np.arange(0, s.rows, step))
    quickest = float(np.quantile(few.seconds, 0.02))

    def residual(x: Array) -> Array:
        return np.asarray(np.log(uncorrected(np.exp(x), few) / few.seconds))

    start = np.log([quickest * 0.7, 0.6, 0.7])
    bounds = (np.log([1e-7, 0.005, 0.005]), np.log([2 * quickest, 3.0, 3.0]))
    start = np.clip(start, bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(residual, start, bounds=bounds, loss="cauchy", f_scale=0.1)
    return np.asarray(np.exp(found.x))


def fit_tables(layout: Layout, coordinates: tuple[Array, ...], residual: Array) -> tuple[Array, ...]:
    """All tables at once: least squares with penalties on curvature and size, rows far off weighted down (Huber)."""
    blocks, penalties, sizes = [], [], []
    for spans in layout.tables:
        shape = [layout.axes[a].count for a in spans]
        size = int(np.prod(shape))
        pieces = corners(layout.axes, spans, coordinates)
        columns = np.concatenate([np.broadcast_to(i, residual.shape) for i, _ in pieces])
        weights = np.concatenate([np.broadcast_to(w, residual.shape) for _, w in pieces])
        rows = np.tile(np.arange(residual.size), len(pieces))
        blocks.append(sparse.csr_matrix((weights, (rows, columns)), (residual.size, size)))
        penalties.append(_penalty(shape, layout.smoothness) + layout.ridge * sparse.identity(size))
        sizes.append(size)
    design, penalty = sparse.hstack(blocks).tocsr(), sparse.block_diag(penalties).toarray()
    target, weight = residual, np.ones(residual.size)
    solved = np.zeros(sum(sizes))
    for _ in range(3):
        weighted = sparse.diags(weight) @ design
        normal = (design.T @ weighted).toarray() + penalty
        solved = np.linalg.solve(normal, design.T @ (weight * target))
        off = np.abs(target - design @ solved)
        scale = max(1.5 * float(np.median(off)), 0.01)
        weight = np.minimum(1.0, 1.5 * scale / np.maximum(off, 1e-9))
    return tuple(np.split(solved, np.cumsum(sizes)[:-1]))


def corners(
    axes: tuple[Axis, ...], table: tuple[int, ...], coordinates: tuple[Array, ...]
) -> list[tuple[NDArray[np.intp], Array]]:
    """The knots around each point: (flat index in the table, weight), ``2 ** len(table)`` of them."""
    low = [knots(axes[a], coordinates) for a in table]
    found = []
    for corner in product((0, 1), repeat=len(table)):
        index: NDArray[np.intp] = np.zeros((), np.intp)
        weight: Array = np.ones(())
        for a, (knot, part), up in zip(table, low, corner, strict=True):
            index = index * axes[a].count + (knot + up)
            weight = weight * (part if up else 1.0 - part)
        found.append((index, weight))
    return found


def _penalty(shape: list[int], smoothness: float) -> sparse.spmatrix:
    """Sum of squared second differences along each axis."""
    total = sparse.csr_matrix((int(np.prod(shape)),) * 2)
    for axis, count in enumerate(shape):
        if count < 3:
            continue
        second = sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
        before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        full = sparse.kron(sparse.kron(sparse.identity(before), second), sparse.identity(after))
        total = total + smoothness * (full.T @ full)
    return total


def error(log_ratio: Array) -> float:
    """Median absolute percentage error of predictions, from logarithms of predicted over measured."""
    return float(100 * np.median(np.abs(np.expm1(log_ratio)))) if log_ratio.size else float("nan")


def chosen(s: Sample) -> NDArray[np.bool_]:
    """Rows of kernels that an engine would run: of two that were timed on the same shapes, only the faster.

    Tables hold kernels that an engine has besides its choice (Triton beside TensorRT-LLM's, eager beside captured).
    """
    keep = np.ones(s.rows, bool)
    for gpu, engine, variant in {*zip(s.gpu, s.engine, s.variant, strict=True)}:
        rows = np.flatnonzero((s.gpu == gpu) & (s.engine == engine) & (s.variant == variant))
        kernels = np.unique(s.kernel[rows])
        shapes = np.round(np.stack([c[rows] for c in s.coordinates]), 6)
        _, shape = np.unique(shapes, axis=1, return_inverse=True)
        fastest = {k: _by_shape(shape[s.kernel[rows] == k], s.seconds[rows[s.kernel[rows] == k]]) for k in kernels}
        for slow, fast in product(kernels, kernels):
            shared = fastest[slow].keys() & fastest[fast].keys()
            ratios = [fastest[slow][i] / fastest[fast][i] for i in shared]
            if len(ratios) >= ENOUGH / 2 and np.median(ratios) > 1.05:
                keep[rows[s.kernel[rows] == slow]] = False
    return keep


def _by_shape(shape: NDArray[np.intp], seconds: Array) -> dict[int, float]:
    return dict(zip(shape.tolist(), seconds.tolist(), strict=True))


@dataclass(frozen=True)
class Key:
    """What an entry is for, and the rows it is fitted on."""

    gpu: str
    engine: str
    variant: str
    rows: NDArray[np.intp]


def keys(s: Sample, keep: NDArray[np.bool_]) -> Iterator[Key]:
    """Every entry to fit, an engine's before its kernels'. ``keep``: rows of kernels that an engine runs by itself."""
    for gpu, variant in product(np.unique(s.gpu), np.unique(s.variant)):
        here = (s.gpu == gpu) & (s.variant == variant)
        for engine in np.unique(s.engine[here]):
            rows = here & (s.engine == engine)
            if np.sum(rows & keep) >= ENOUGH:
                yield Key(gpu, engine, variant, np.flatnonzero(rows & keep))
            several = np.unique(s.kernel[rows])
            for kernel in several if several.size > 1 else ():
                own = rows & (s.kernel == kernel)
                if np.sum(own) >= ENOUGH:
                    yield Key(gpu, f"{engine}/{kernel}", variant, np.flatnonzero(own))


def thinned(rows: NDArray[np.intp], most: int = 20_000) -> NDArray[np.intp]:
    """At most so many rows, evenly spread."""
    return rows[:: max(1, -(-rows.size // most))]


@dataclass(frozen=True)
class Scores:
    """Logarithms of predicted over measured, ``[rows]``, by what was kept from the fit; nan: no prediction.

    ``within``: nothing. ``site``: the row's site. ``device``: its device.
    """

    within: Array
    site: Array
    device: Array


def calibrate(op: str, s: Sample) -> tuple[OperatorCalibration, Scores]:
    """All entries of one operator, and how good they are."""
    layout, keep = LAYOUTS[op], chosen(s)
    truth = np.log(s.seconds)
    within, site = np.full(s.rows, np.nan), np.full(s.rows, np.nan)
    wanted = list(keys(s, keep))
    start, starts, fold = None, None, None
    if layout.shared and wanted:
        fold = np.unique(s.site, return_inverse=True)[1] * SPREAD % FOLDS
        start = in_common(layout, s, [key.rows for key in wanted])
        starts = [in_common(layout, s, [k.rows[fold[k.rows] != part] for k in wanted]) for part in range(FOLDS)]
    found = []
    for key in wanted:
        part = s.where(key.rows)
        left_out = site_out(layout, part, None if fold is None else fold[key.rows], starts)
        before = site[key.rows]
        if np.all(np.isfinite(before)) and error(left_out) > WORTH * error(before):
            continue
        whole = fit(layout, s.where(thinned(key.rows)), start)
        within[key.rows] = whole.log_seconds(layout, part) - truth[key.rows]
        site[key.rows] = left_out
        found.append(_entry(key, whole, _factors(left_out)))
    wide = (UNKNOWN, UNKNOWN)
    device_out = gpu_out(op, s, OperatorCalibration(layout.axes, layout.tables, *wide, tuple(found)))
    transferred, datasheet = _of_transfers(s, device_out)
    # Of one site alone the error elsewhere is unknown; that of a transfer is the honest stand-in.
    judged = tuple(e if e.factors[0] else msgspec.structs.replace(e, factors=transferred) for e in found)
    calibration = OperatorCalibration(layout.axes, layout.tables, transferred, datasheet, judged)
    return calibration, Scores(within, site, device_out)


def _of_transfers(s: Sample, ratio: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Factors for devices left out: of those with a device of their kind among the others, and of those with none.

    Every device errs in its own way: an interval spans those of all devices that were left out so.
    """
    gpus = np.unique(s.gpu.astype(str))
    each = {g: f for g in gpus if (f := _factors(ratio[s.gpu == g]))[0]}
    if not each:
        return UNKNOWN, UNKNOWN
    near = [g for g in each if kin(device(g), set(gpus))]

    def span(names: Iterable[str]) -> tuple[float, float]:
        return min(each[g][0] for g in names), max(each[g][1] for g in names)

    # A device like none that was measured is known no better than one that is.
    return span(near or each), span(each)


UNKNOWN = (0.25, 4.0)
"""Factors of an interval where a single device was measured, and nothing tells how far it speaks for others."""


def _factors(log_ratio: Array) -> tuple[float, float]:
    """Measured over predicted, 10 % and 90 % quantiles; (0, 0) where there is nothing to judge by."""
    if np.all(np.isnan(log_ratio)):
        return 0.0, 0.0
    low, high = np.exp(-np.nanquantile(log_ratio, [0.9, 0.1]))
    return round(float(low), 3), round(float(high), 3)


def site_out(
    layout: Layout,
    s: Sample,
    fold: NDArray[np.intp] | None = None,
    starts: Sequence[tuple[Array, ...]] | None = None,
) -> Array:
    """Logarithms of predicted over measured where every row's site was left out of its fit.

    ``starts``: of each fold, tables in common that were fitted without the fold's sites in any entry.
    """
    if fold is None:
        fold = np.unique(s.site, return_inverse=True)[1]
        fold = (fold * SPREAD) % FOLDS if fold.max() >= FOLDS else fold
    ratio = np.full(s.rows, np.nan)
    for k in np.unique(fold):
        test = fold == k
        if np.sum(~test) >= ENOUGH / 2:
            rest = fit(layout, s.where(thinned(np.flatnonzero(~test))), None if starts is None else starts[k])
            ratio[test] = rest.log_seconds(layout, s.where(test)) - np.log(s.seconds[test])
    return ratio


def gpu_out(op: str, s: Sample, operator: OperatorCalibration) -> Array:
    """Logarithms of predicted over measured where the row's device was not among those measured; nan if it is alone."""
    ratio = np.full(s.rows, np.nan)
    for gpu in np.unique(s.gpu):
        others = tuple(e for e in operator.entries if e.gpu != gpu)
        if not others:
            continue
        calibration = Calibration("", {op: msgspec.structs.replace(operator, entries=others)})
        for engine, kernel in sorted({*zip(s.engine[s.gpu == gpu], s.kernel[s.gpu == gpu], strict=True)}):
            rows = np.flatnonzero((s.gpu == gpu) & (s.engine == engine) & (s.kernel == kernel))
            part = s.where(rows)
            names, index = np.unique(part.variant.astype(str), return_inverse=True)
            variant = np.array([variant_code(name) for name in names], np.intp)[index]
            work = Work(op, variant, part.compute, part.traffic, part.floor, part.coordinates)
            ratio[rows] = np.log(seconds(platform_named(str(gpu), f"{engine}/{kernel}", calibration), work))
    return ratio - np.log(s.seconds)


def _entry(key: Key, found: Fit, factors: tuple[float, float]) -> Entry:
    scale = max(max(float(np.max(np.abs(t))) for t in found.tables) / 127.0, 1e-6)
    tables = tuple(np.round(t / scale).astype(np.int8).tobytes() for t in found.tables)
    launch, compute, traffic = (float(f"{c:.4g}") for c in found.constants)
    scale, low, high = (float(f"{v:.5g}") for v in (scale, *factors))
    return Entry(
        key.gpu, key.engine, key.variant, launch, compute, traffic, tables, scale, (low, high), int(key.rows.size)
    )
