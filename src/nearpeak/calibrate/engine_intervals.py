"""Intervals of served figures from left-out runs, and whether they hold as many new runs as they say.

Intervals are conformal: quantiles of measured over predicted, where the whole configuration was left out of the fit.
Without measurements of the device they are widened by what the operators' own calibration loses when a device is left
out. Coverage is checked with a second level of leaving out: quantiles set on some configurations, scored on others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import shipped
from nearpeak.cost.evidence import KINDS

Array = NDArray[np.float64]
Column = NDArray[Any]

FIGURES = ("ttft", "tpot", "latency")
LOWEST, HIGHEST = 0.1, 0.9
KNOWN = 20
"""Runs that an interval of one kind of evidence takes; with fewer, that of all evidence is widened."""
NEGLIGIBLE = 0.01
"""Log error that no interval is stretched for."""
WAYS = ("agg", "disagg", "unknown_workers")
ASSUMED = {"memory": (0.9, 1.3)}
"""Factors of figures that serving runs do not hold: memory is counted, not fitted."""


def conformal(found: dict[str, Column], name: str) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Factors on each figure, for each way of serving that occurs and each evidence, that hold 80 % of left-out runs.

    Disaggregated runs are few and of few configurations: those of all engines are pooled, and of all evidence.

    Args:
        found: as from ``left_out``. name: the engine's.
    """
    served: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for how in WAYS:
        runs_so = found["served"] == how
        if how == "agg":
            runs_so = runs_so & (found["backend"] == name)
        if not runs_so.any():
            continue
        served[how] = {}
        for kind in KINDS:
            same = runs_so & (found["evidence"] == kind)
            seen = int(same.sum()) >= KNOWN
            pool = same if seen and how == "agg" else runs_so
            served[how][kind] = {f: _factors(found, pool, f, "measured" if seen else kind) for f in FIGURES}
            served[how][kind] |= {f: _widened(np.log(ends), kind) for f, ends in ASSUMED.items()}
    return served


def _factors(found: dict[str, Column], pool: NDArray[np.bool_], figure: str, kind: str) -> tuple[float, float]:
    """Factors between which 80 % of measured over predicted lay, widened for the kind of evidence."""
    logs = np.log(found[f"measured_{figure}"][pool].astype(float) / found[figure][pool].astype(float))
    return _widened(interval(logs, found["group"][pool]), kind)


def _widened(logs: Array, kind: str) -> tuple[float, float]:
    """An interval of log errors as factors, wider by what operators lose where there is less evidence than measured."""
    gemm = shipped().operators["gemm"]
    wider = {"measured": (1.0, 1.0), "transferred": gemm.transferred, "datasheet": gemm.datasheet}[kind]
    if kind == "measured":
        return float(np.exp(logs[0])), float(np.exp(logs[1]))
    ends = np.hypot(np.clip([-logs[0], logs[1]], 0.0, None), np.log(wider))
    return float(np.exp(-ends[0])), float(np.exp(ends[1]))


def interval(logs: Array, part: Column) -> Array:
    """The 10 % and 90 % quantiles, stretched about the median until those of the other parts hold 80 % of each part.

    Runs of one configuration err alike, so plain quantiles hold fewer runs of a new one. How far a run lies from the
    median, over how far the quantile on its side does, is the score of a split conformal interval (Lei et al. 2018).
    """

    def quantiles(values: Array) -> Array:
        return np.asarray(np.quantile(values, [LOWEST, 0.5, HIGHEST]))

    scores = np.zeros(len(logs))
    names = np.unique(part.astype(str))
    for name in names if len(names) > 1 else ():
        scored = part == name
        low, middle, high = quantiles(logs[~scored])
        side = np.where(logs[scored] < middle, middle - low, high - middle)
        scores[scored] = np.abs(logs[scored] - middle) / np.maximum(side, NEGLIGIBLE)
    stretch = max(1.0, float(np.quantile(scores, HIGHEST - LOWEST)))
    low, middle, high = quantiles(logs)
    return np.array([middle - stretch * (middle - low), middle + stretch * (high - middle)])


def coverage(found: dict[str, Column]) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Share of runs inside intervals that their own part had no say in, by way of serving, evidence and figure."""
    inside: dict[tuple[str, str, str], list[Column]] = {}
    for part in np.unique(found["group"].astype(str)):
        scored = found["group"] == part
        others = {name: column[~scored] for name, column in found.items()}
        for name in np.unique(found["backend"][scored].astype(str)):
            factors = conformal(others, name)
            for how in factors:
                for kind in KINDS:
                    mine = scored & (found["backend"] == name) & (found["served"] == how) & (found["evidence"] == kind)
                    for figure in FIGURES if mine.any() else ():
                        low, high = factors[how][kind][figure]
                        ratio = found[f"measured_{figure}"][mine].astype(float) / found[figure][mine].astype(float)
                        inside.setdefault((how, kind, figure), []).append((low <= ratio) & (ratio <= high))
    joined = {key: np.concatenate(hits) for key, hits in inside.items()}
    return {key: (len(hits), float(hits.mean())) for key, hits in joined.items()}
