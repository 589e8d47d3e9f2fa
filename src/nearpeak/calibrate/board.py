"""The accuracy board: predictions beside measurements, by device, operator, engine and evidence.

Every kind of table becomes ``Scored`` rows; ``lines`` are their figures by group. Rows that the calibration was fitted
on are told apart from others, and never shown without what is predicted of them when they are left out of the fit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Column = NDArray[Any]

GROUPINGS = ("gpu", "operator", "engine", "evidence")
NEW, SEEN = "not in the fit", "in sample"
"""How rows relate to the calibration; others say what was left out."""
LABELS = {"site": "site left out", "gpu": "GPU left out", "model": "model left out"}
FEWEST_RANKED = 6
"""Rows of a cell that a rank correlation needs."""


@dataclass(frozen=True)
class Scored:
    """Predictions beside measurements; arrays ``[rows]``, nan and empty text without an answer.

    Attributes:
        gpu, operator, engine, evidence: what the rows are of. fit: how they relate to the calibration.
        measured, predicted, low, high: in the operator's unit, with the 80 % interval.
        ideal: what a roofline without constants says. cell: rows that are ranked together.
        error: why there is no answer, else empty.
    """

    gpu: Column
    operator: Column
    engine: Column
    evidence: Column
    fit: Column
    measured: Array
    predicted: Array
    low: Array
    high: Array
    ideal: Array
    cell: NDArray[np.int64]
    error: Column

    def where(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "Scored":
        """Some of the rows."""
        return Scored(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Line:
    """Figures of a group of rows.

    Attributes:
        group: its value of each grouping. fit: how its rows relate to the calibration.
        rows, answered: how many. median, mean: absolute percentage error. bias: median of predicted over measured, as
            percent above 1. rank: Spearman's correlation, the median over cells. coverage: percent of measurements in
            the 80 % interval. roofline, roofline_mean: errors of a roofline with two constants fitted on these rows.
    All nan where nothing is answered.
    """

    group: Mapping[str, str]
    fit: str
    rows: int
    answered: int
    median: float
    mean: float
    bias: float
    rank: float
    coverage: float
    roofline: float
    roofline_mean: float


def joined(parts: Sequence[Scored]) -> Scored:
    """Rows of several tables in one."""
    return Scored(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scored)})


def lines(scored: Scored, by: Sequence[str] = GROUPINGS) -> list[Line]:
    """Figures by group, and in each by how rows relate to the calibration: as it is first, then what was left out.

    The roofline's constants are fitted for each device and operator on the very rows: it is its best case.
    """
    plain = _rooflines(scored)
    found = [
        _line(dict(zip(by, names, strict=True)), fit, scored.where(rows), plain[rows])
        for (*names, fit), rows in _grouped([*(getattr(scored, name) for name in by), scored.fit])
    ]
    known = [name for name in by if name != "evidence"]
    # A left-out row may rest on other evidence than the same row in sample; they still stand together.
    return sorted(
        found, key=lambda x: ([x.group[n] for n in known], x.fit not in (SEEN, NEW), x.fit, *x.group.values())
    )


def errors(scored: Scored) -> dict[str, int]:
    """Why rows have no answer, and how many, the most frequent first."""
    reasons, counts = np.unique(scored.error[scored.error != ""].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(reasons[i]): int(counts[i]) for i in order}


def _line(group: Mapping[str, str], fit: str, s: Scored, plain: Array) -> Line:
    known = np.isfinite(s.predicted) & np.isfinite(s.measured)
    if not known.any():
        nan = float("nan")
        return Line(group, fit, s.measured.size, 0, nan, nan, nan, nan, nan, nan, nan)
    ape = 100 * np.abs(s.predicted[known] / s.measured[known] - 1)
    bias = 100 * np.expm1(np.median(np.log(s.predicted[known] / s.measured[known])))
    bounded = known & np.isfinite(s.low) & np.isfinite(s.high)
    inside = (s.low[bounded] <= s.measured[bounded]) & (s.measured[bounded] <= s.high[bounded])
    coverage = 100 * float(np.mean(inside)) if inside.size else float("nan")
    rank = rank_within(s.predicted[known], s.measured[known], s.cell[known])
    straight = 100 * np.abs(plain / s.measured - 1)
    straight = straight[np.isfinite(straight)]
    middle, mean = (float(f(straight)) if straight.size else float("nan") for f in (np.median, np.mean))
    return Line(
        group, fit, s.measured.size, int(known.sum()), float(np.median(ape)), float(np.mean(ape)), float(bias), rank,
        coverage, middle, mean,
    )  # fmt: skip


def _grouped(columns: Sequence[Column]) -> Iterator[tuple[tuple[str, ...], NDArray[np.intp]]]:
    """Values of each distinct combination, sorted, and its rows."""
    key = np.zeros(columns[0].size, np.int64)
    for column in columns:
        distinct, inverse = np.unique(column.astype(str), return_inverse=True)
        key = key * distinct.size + inverse
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if order.size else []:
        yield tuple(str(column[rows[0]]) for column in columns), rows


def _rooflines(s: Scored) -> Array:
    """A roofline's predictions ``[rows]``; nan where the table's kind has none."""
    plain = np.full(s.measured.size, np.nan)
    for _, rows in _grouped([s.gpu, s.operator, s.fit]):
        known = rows[np.isfinite(s.ideal[rows]) & np.isfinite(s.measured[rows])]
        if known.size:
            share, latency = two_constants(s.ideal[known], s.measured[known])
            plain[known] = s.ideal[known] / share + latency
    return plain


def two_constants(ideal: Array, measured: Array, most: int = 4000) -> tuple[float, float]:
    """Share of the roofline and latency (in the unit of ``measured``) of ``ideal / share + latency``.

    They minimize the median absolute percentage error, searched on ever finer grids over evenly spread rows.
    """
    few = slice(None, None, -(-ideal.size // most))
    x, y = ideal[few], measured[few]
    ratio = np.log(np.maximum(y / np.maximum(x, 1e-300), 1e-300))
    low, high = np.quantile(ratio, [0.0, 1.0])
    shares = np.linspace(low, high, 24)
    latencies = np.concatenate([[0.0], np.geomspace(max(float(y.min()) * 1e-2, 1e-300), float(y.max()), 24)])
    best = (float(np.exp(-np.median(ratio))), 0.0)
    least = np.inf
    for _ in range(4):
        errors = np.array([[np.median(np.abs((x * np.exp(a) + b) / y - 1)) for b in latencies] for a in shares])
        i, j = divmod(int(np.argmin(errors)), latencies.size)
        if errors[i, j] < least:
            least, best = float(errors[i, j]), (float(np.exp(-shares[i])), float(latencies[j]))
        step = shares[1] - shares[0]
        shares = np.linspace(shares[i] - step, shares[i] + step, 12)
        latencies = np.linspace(latencies[max(j - 1, 0)], latencies[min(j + 1, latencies.size - 1)], 12)
    return best


def rank_within(a: Array, b: Array, cell: NDArray[np.int64]) -> float:
    """Spearman's correlation of two columns within each cell of enough rows, the median over cells; nan without any."""
    found = [spearman(a[rows], b[rows]) for _, rows in _grouped([cell]) if rows.size >= FEWEST_RANKED]
    found = [f for f in found if np.isfinite(f)]
    return float(np.median(found)) if found else float("nan")


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; nan where one column is constant."""
    x, y = (_ranks(v) - (v.size + 1) / 2 for v in (a, b))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
