"""Fit the constants of each engine on closed-loop serving runs, and write ``cost/data/engines.json``.

Usage: python tools/fit_engines.py ../shared/measurements/serving/closed_loop.parquet

For each engine, six constants minimize the absolute log errors of TTFT and TPOT of its aggregated runs (runs with
separate pools do not say how many workers they had). Intervals are the 10 % and 90 % quantiles of measured over
predicted where the model was left out of the fit. Without measurements of the device they are widened by what the
operators' own calibration loses when a device is left out.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from nearpeak.cost import runs, step
from nearpeak.cost.calibration import shipped
from nearpeak.cost.engine import Engine, engines
from nearpeak.cost.evidence import platform_of
from nearpeak.cost.files import read_table
from nearpeak.cost.serving import Times, occupied, shared, stage_seconds
from nearpeak.hardware import node_of
from nearpeak.setup import Setup
from nearpeak.workload import read

Array = NDArray[np.float64]
CONSTANTS = ("step", "sequence", "graph", "layer", "request", "waves")
START = (1e-3, 1e-5, 0.9, 3e-4, 2e-2, 0.3)
BOUNDS = ((0, 0, 0.5, 0, 0, 0), (2e-2, 1e-3, 1.0, 5e-3, 1.0, 1.0))
FIGURES = ("ttft", "tpot", "latency", "power")
LOWEST, HIGHEST = 0.1, 0.9


def main() -> None:
    """Read the runs, fit every engine, write the constants."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("runs", type=Path)
    arguments.add_argument("--out", type=Path, default=Path("src/nearpeak/cost/data/engines.json"))
    options = arguments.parse_args()
    table = read_table(options.runs)
    fitted: dict[str, Engine] = dict(engines())
    for name in np.unique(table["backend"].astype(str)):
        rows = np.flatnonzero((table["backend"] == name) & (table["mode"] == "agg"))
        groups = [group for group in _groups(table, rows)]
        host = _fit(groups, name)
        residuals = _left_out(groups, name)
        fitted[str(name)] = replace(host, intervals={"agg": intervals(residuals)})
        print(name, len(rows), {c: float(f"{getattr(host, c):.3g}") for c in CONSTANTS})
        for figure, r in residuals.items():
            print(f"  {figure}: median APE with the model left out {np.median(np.abs(np.expm1(-r))):.3f}")
    for served, residuals in _disaggregated(table, fitted).items():
        print(
            served,
            {f: (len(r), np.quantile(r, [LOWEST, 0.5, HIGHEST]).round(2).tolist()) for f, r in residuals.items()},
        )
        for engine in map(str, np.unique(table["backend"].astype(str))):
            fitted[engine].intervals[served] = intervals(residuals)
    text = msgspec.json.format(msgspec.json.encode({k: asdict(v) for k, v in fitted.items()}), indent=2)
    options.out.write_bytes(text + b"\n")


class Group(msgspec.Struct):
    """Runs of one model on one device: their Setups, their steps, and what was measured."""

    model: str
    setup: Setup
    prefill: step.Step
    ttft: Array
    tpot: Array
    decodes: dict[float, step.Step]

    def decode(self, graph: float) -> step.Step:
        """The decode step with this share of the kernels' times, priced once."""
        if graph not in self.decodes:
            setup, lengths = self.setup, np.asarray(self.setup.isl, float) + np.asarray(self.setup.osl, float) / 2
            replayed = platform_of(setup).in_graph(graph)
            batch = np.asarray(setup.decode.batch, float)
            self.decodes[graph] = step.decode(replayed, setup, setup.decode, batch, lengths)
        return self.decodes[graph]


def _groups(table: dict[str, Any], rows: NDArray[np.intp]) -> list[Group]:
    keys = np.array([f"{table['model'][i]}\t{table['gpu'][i]}" for i in rows])
    found = []
    for key in np.unique(keys):
        at = rows[keys == key]
        model, gpu = key.split("\t")
        setup = runs.setup_of(table, at, read(model), node_of(gpu), str(table["backend"][at[0]]))
        prefill = step.prefill(platform_of(setup), setup, setup.decode, np.ones(()), np.asarray(setup.isl, float))
        ttft, tpot = (np.asarray(table[name][at], float) for name in ("ttft", "tpot"))
        found.append(Group(model, setup, prefill, ttft, tpot, {}))
    return found


def _residuals(host: Engine, group: Group) -> tuple[Array, Array, Array]:
    """Logarithms of measured over predicted: ttft, tpot, latency."""
    batch, osl = np.asarray(group.setup.decode.batch, float), np.asarray(group.setup.osl, float)
    overhead = host.step + host.sequence * batch
    prompt = stage_seconds(group.setup, host, group.prefill.total)
    decode = group.decode(host.graph)
    busy = occupied(group.setup, group.setup.decode, prompt)
    times = Times(group.prefill, decode, overhead, prompt, busy, decode.total + overhead)
    ttft, tpot, _ = shared(times, host, batch, osl, host.waves)
    measured = group.ttft + (osl - 1) * group.tpot
    return np.log(group.ttft / ttft), np.log(group.tpot / tpot), np.log(measured / (ttft + (osl - 1) * tpot))


def _fit(groups: list[Group], name: str) -> Engine:
    def error(x: Array) -> Array:
        host = _engine(x)
        # Every model counts alike, however many runs it has.
        parts = [np.concatenate(_residuals(host, g)) / np.sqrt(len(g.ttft)) for g in groups]
        return np.concatenate(parts)

    scale = np.array(START)
    found = least_squares(error, START, bounds=BOUNDS, x_scale=scale, loss="soft_l1", f_scale=0.05)
    if not found.success:
        raise SystemExit(f"the fit of {name} did not converge: {found.message}")
    # Three digits: the rest is noise, and what vanishes is zero.
    return _engine(np.array([float(f"{c:.3g}") if c > 1e-9 else 0.0 for c in found.x]))


def _engine(constants: Array) -> Engine:
    return Engine(**dict(zip(CONSTANTS, constants.tolist(), strict=True)), intervals={})


def _left_out(groups: list[Group], name: str) -> dict[str, Array]:
    """Residuals of each model under the constants fitted on the others."""
    parts: dict[str, list[Array]] = {"ttft": [], "tpot": [], "latency": []}
    for model in {g.model for g in groups}:
        others = [g for g in groups if g.model != model] or groups
        host = _fit(others, name)
        for group in (g for g in groups if g.model == model):
            for figure, r in zip(parts, _residuals(host, group), strict=True):
                parts[figure].append(r)
    return {figure: np.concatenate(r) for figure, r in parts.items()}


def _disaggregated(table: dict[str, Any], hosts: dict[str, Engine]) -> dict[str, dict[str, Array]]:
    """Residuals of the disaggregated runs of all engines, whose constants they had no part in."""
    found: dict[str, dict[str, list[float]]] = {}
    rows = np.flatnonzero(table["mode"] == "disagg")
    keys = np.array([f"{table['model'][i]}\t{table['gpu'][i]}\t{table['backend'][i]}" for i in rows])
    for key in np.unique(keys):
        at = rows[keys == key]
        model, gpu, engine = key.split("\t")
        setup = runs.setup_of(table, at, read(model), node_of(gpu), engine)
        said = np.ma.filled(table["concurrency"].astype(float), np.nan)[at]
        there = runs.closed_loop(setup, np.where(np.isfinite(said), said, setup.decode.in_flight), hosts[engine])
        ttft, tpot = (np.asarray(table[name][at], float) for name in ("ttft", "tpot"))
        osl = np.asarray(setup.osl, float)
        logs = {
            "ttft": np.log(ttft / there.ttft),
            "tpot": np.log(tpot / there.tpot),
            "latency": np.log((ttft + (osl - 1) * tpot) / (there.ttft + (osl - 1) * there.tpot)),
        }
        for row, served in enumerate(runs.served_as(table, at, "disagg")):
            for figure, log in logs.items():
                found.setdefault(served, {}).setdefault(figure, []).append(float(log[row]))
    return {served: {figure: np.array(r) for figure, r in parts.items()} for served, parts in found.items()}


def intervals(residuals: dict[str, Array]) -> dict[str, dict[str, tuple[float, float]]]:
    """Factors on each figure for each evidence, from logarithms of measured over predicted."""
    measured: dict[str, Array] = {f: np.quantile(r, [LOWEST, HIGHEST]) for f, r in residuals.items()}
    # Power follows from utilization, which the time model gives; its own spread is calibrated with power measurements.
    measured["power"] = np.array([-0.25, 0.25])
    # Memory is counted, not fitted: what engines hold beyond the ledger is assumed to stay within these.
    measured["memory"] = np.log([0.9, 1.3])
    gemm = shipped().operators["gemm"]
    wider = {"measured": (1.0, 1.0), "transferred": gemm.transferred, "datasheet": gemm.datasheet}
    return {
        kind: {
            figure: (
                float(np.exp(-np.hypot(min(low, 0.0), np.log(factors[0])))),
                float(np.exp(np.hypot(max(high, 0.0), np.log(factors[1])))),
            )
            for figure, (low, high) in measured.items()
        }
        for kind, factors in wider.items()
    }


if __name__ == "__main__":
    main()
