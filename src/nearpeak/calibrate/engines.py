"""Fits the constants of each engine and of its versions on closed-loop serving runs: ``cost/data/engines.json``.

Usage: python -m nearpeak.calibrate.engines ../shared/measurements/serving/closed_loop.parquet

For each engine, seven constants minimize the absolute log errors of TTFT, TPOT and latency of its aggregated runs, each
version counting alike. A version with enough runs gets constants of its own, drawn towards the engine's by a penalty on
how far they move. Tables do not say where multi-token prediction was on: a version whose runs used it shows as a small
``graph``. Disaggregated runs take no part: most of them do not say how many workers they had.

Intervals come from what is off where the whole configuration was left out of the fit (``engine_intervals``).
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from nearpeak.calibrate.engine_intervals import FIGURES, WAYS, conformal, coverage
from nearpeak.cost import runs
from nearpeak.cost.engine import Engine, engines, of_version
from nearpeak.cost.evidence import evidence, platform_of
from nearpeak.cost.files import read_table
from nearpeak.cost.serving import Kernels, priced, shared, timed
from nearpeak.cost.step import Step
from nearpeak.hardware import node_of
from nearpeak.setup import Setup
from nearpeak.workload import read

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Column = NDArray[Any]
Table = Mapping[str, NDArray[Any]]
By = Literal["configuration", "model", "gpu"]

CONSTANTS = ("step", "sequence", "graph", "layer", "request", "waves", "together")
START = np.array((1e-3, 1e-5, 0.9, 3e-4, 2e-2, 0.1, 0.5))
LEAST = np.array((0, 0, 0.5, 0, 0, 0, 0))
MOST = np.array((2e-2, 1e-3, 1.15, 5e-3, 1.0, 0.5, 8.0))
MOVE = np.array((1e-3, 1e-5, 0.1, 2e-4, 3e-2, 0.1, 1.0))
"""How far a version's constants may plausibly be from its engine's: one unit of the penalty each."""
PENALTY = 0.1
"""Weight of a unit of ``MOVE`` against the log errors of the runs."""
WEIGHTS = np.array([0.7, 1.0, 1.0])[:, None]
"""Of TTFT, TPOT and latency: TTFT scatters more from run to run."""
ENOUGH = 4
"""Runs that a version needs to have constants of its own."""
FOLDS = 8
SEED = 0


def main() -> None:
    """Read the runs, fit every engine, write the constants, and print how far off they are."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("runs", type=Path)
    arguments.add_argument("--out", type=Path, default=Path("src/nearpeak/cost/data/engines.json"))
    options = arguments.parse_args()
    table = read_table(options.runs)
    fitted = fit_engines(table)
    text = msgspec.json.format(msgspec.json.encode({k: asdict(v) for k, v in fitted.items()}), indent=2)
    options.out.write_bytes(text + b"\n")
    print("\n".join(report(table)))


def fit_engines(table: Table) -> dict[str, Engine]:
    """The engines of a table of closed-loop runs, with their versions and intervals, beside those that it has not.

    Args:
        table: columns by name, as in the serving tables, with ``ttft`` and ``tpot`` (seconds).
    """
    everything = left_out(table, "configuration")
    fitted = dict(engines())
    for name, own in gathered(table).items():
        host = fit(name, own)
        # What the table holds no runs of keeps the intervals that it has.
        fitted[name] = replace(host, intervals=fitted[name].intervals | conformal(everything, name))
    return fitted


@dataclass(frozen=True)
class Loops:
    """Aggregated runs of one engine; arrays ``[runs]``. ``row``: in the table. ``kernels``: of their steps.

    ``crowd``: requests of the loop over those that run at once; what is beyond one waits for a place.
    """

    row: Rows
    kernels: Kernels
    crowd: Array
    ttft: Array
    tpot: Array
    version: Column

    def where(self, chosen: Column) -> "Loops":
        """Some of the runs."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        picked = {name: part[chosen] for name, part in parts.items() if name != "kernels"}
        return Loops(kernels=_pick(self.kernels, chosen), **picked)


def gathered(table: Table) -> dict[str, Loops]:
    """The aggregated runs of each engine, their kernels priced once."""
    found: dict[str, list[Loops]] = {}
    for rows, setup in _setups(table):
        if setup.prefill is not None:
            continue
        name, _, version = setup.engine.partition("@")
        host = engines()[name]
        said = runs.column_numbers(table, "concurrency", rows, np.nan)
        concurrency = np.where(np.isfinite(said), said, setup.decode.in_flight)
        admitted, crowd = runs.admit(setup, concurrency, host)
        kernels = priced(platform_of(admitted), admitted, host.mixes)
        flat = _pick(kernels, np.arange(len(rows)), len(rows))
        ttft, tpot = (np.asarray(table[figure][rows], float) for figure in ("ttft", "tpot"))
        versions = np.full(len(rows), version, dtype=object)
        found.setdefault(name, []).append(Loops(rows, flat, crowd, ttft, tpot, versions))
    return {name: _joined(parts) for name, parts in found.items()}


def _setups(table: Table) -> Iterable[tuple[Rows, Setup]]:
    """Rows that share model, device, engine, version and mode, and their Setup."""
    every = np.arange(len(table["model"]))
    columns = [runs.column_text(table, name, every) for name in runs.SHARED]
    keys = np.array(["\t".join(row) for row in zip(*columns, strict=True)])
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        model, gpu, backend, version, _ = key.split("\t")
        engine = f"{backend}@{version}" if version else backend
        yield rows, runs.setup_of(table, rows, read(model), node_of(gpu), engine)


ARRAYS = [f.name for f in fields(Kernels) if f.name not in ("mixed", "serial")]


def _pick(kernels: Kernels, chosen: Column, size: int | None = None) -> Kernels:
    """Some of the runs' kernels, each step as its total. ``size``: of the runs, where arrays still broadcast."""
    picked: dict[str, Any] = {}
    for name in ARRAYS:
        part = getattr(kernels, name)
        values = part.total if isinstance(part, Step) else np.asarray(part)
        values = (values if size is None else np.broadcast_to(values, size))[chosen]
        picked[name] = Step(matrices=values) if isinstance(part, Step) else values
    return replace(kernels, **picked)


def _joined(parts: list[Loops]) -> Loops:
    def together(owners: Sequence[Loops | Kernels], names: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            pieces = [getattr(owner, name) for owner in owners]
            if isinstance(pieces[0], Step):
                found[name] = Step(matrices=np.concatenate([p.matrices for p in pieces]))
            else:
                found[name] = np.concatenate(pieces)
        return found

    kernels = [part.kernels for part in parts]
    joined = replace(kernels[0], **together(kernels, ARRAYS))
    return Loops(kernels=joined, **together(parts, [f.name for f in fields(Loops) if f.name != "kernels"]))


def fit(name: str, own: Loops) -> Engine:
    """The constants of an engine and of its versions. ``name``: whose policies they are (``mixes``, ``reserves``)."""
    counts = {version: int((own.version == version).sum()) for version in np.unique(own.version.astype(str))}
    weight = np.array([counts[str(v)] ** -0.25 for v in own.version])
    policies = replace(engines()[name], intervals={}, versions={})
    center = _solve(own, policies, START, weight)
    versions = {}
    for version, count in counts.items():
        if version and count >= ENOUGH:
            of_it = own.where(own.version == version)
            moved = _solve(of_it, policies, center, np.ones(count), toward=center)
            versions[version] = dict(zip(CONSTANTS, moved.tolist(), strict=True))
    return replace(_host(policies, center), versions=versions)


def _solve(own: Loops, policies: Engine, start: Array, weight: Array, toward: Array | None = None) -> Array:
    """The constants that minimize the runs' log errors, and the distance from ``toward`` if there is any."""

    def error(constants: Array) -> Array:
        logs = residuals(own, _host(policies, constants)) * WEIGHTS * weight
        pull = np.zeros(0) if toward is None else PENALTY * (constants - toward) / MOVE
        return np.concatenate([logs.ravel(), pull])

    inside = np.clip(start, LEAST + 1e-9 * (MOST - LEAST), MOST - 1e-9 * (MOST - LEAST))
    bounds, settings = (LEAST, MOST), {"loss": "soft_l1", "f_scale": 0.05, "max_nfev": 200}
    found = least_squares(error, inside, bounds=bounds, x_scale=MOVE, **settings)
    # Three digits: the rest is noise, and what vanishes is zero.
    return np.array([float(f"{c:.3g}") if c > 1e-9 else 0.0 for c in found.x])


def _host(policies: Engine, constants: Array) -> Engine:
    values: dict[str, Any] = dict(zip(CONSTANTS, constants.tolist(), strict=True))
    return replace(policies, **values)


def predicted(own: Loops, host: Engine) -> Array:
    """TTFT, TPOT and latency ``[3, runs]`` under one set of constants."""
    ttft, tpot, _ = shared(own.kernels, timed(own.kernels, host, True), host, True)
    latency = ttft + (own.kernels.osl - 1) * tpot
    waiting = (1 - host.waves) * (own.crowd - 1) * latency
    return np.stack([ttft + waiting, tpot, latency + waiting])


def residuals(own: Loops, host: Engine) -> Array:
    """Logarithms of measured over predicted TTFT, TPOT and latency, ``[3, runs]``."""
    measured = np.stack([own.ttft, own.tpot, own.ttft + (own.kernels.osl - 1) * own.tpot])
    return np.log(measured / predicted(own, host))


def left_out(table: Table, by: By = "configuration") -> dict[str, Column]:
    """Predictions of every run by constants that were fitted without its configuration, its model or its device.

    A configuration is an architecture on a device under an engine, in its formats and layout, however the table names
    them: all its lengths and concurrencies are left out together, and so is a run that stands in the table twice.
    Configurations are left out in ``FOLDS`` parts; architectures and devices one at a time.

    Returns:
        Columns ``[rows]``: ``ttft``, ``tpot``, ``latency`` (seconds, as predicted), ``measured_ttft`` and so on,
        ``served``, ``evidence``, ``backend``, ``group`` (what was left out together) and ``configuration``.
    """
    size = len(table["model"])
    out: dict[str, Column] = {figure: np.full(size, np.nan) for figure in FIGURES}
    texts = ("served", "evidence", "backend", "version", "group", "configuration")
    out |= {name: np.full(size, "", dtype=object) for name in texts}
    osl = runs.column_numbers(table, "osl", np.arange(size), np.nan)
    ttft, tpot = (np.asarray(table[figure], float) for figure in ("ttft", "tpot"))
    out |= {"measured_ttft": ttft, "measured_tpot": tpot, "measured_latency": ttft + (osl - 1) * tpot}
    setups = list(_setups(table))
    for rows, setup in setups:
        model = setup.model
        out["backend"][rows], _, version = setup.engine.partition("@")
        out["version"][rows] = version
        out["served"][rows] = runs.served_as(table, rows, setup.mode)
        out["evidence"][rows] = np.broadcast_to(evidence(platform_of(setup), setup), rows.shape)
        same = f"{model.family} {model.layers}x{model.hidden}"
        out["configuration"][rows] = [f"{same} {setup.node.device.name} {text}" for text in _layouts(setup, len(rows))]
        out["group"][rows] = {"model": same, "gpu": setup.node.device.name}.get(by, "")
    if by == "configuration":
        out["group"] = _parts(out["configuration"], np.stack([ttft, tpot], axis=1))
    own = gathered(table)
    for group in np.unique(out["group"].astype(str)):
        held = out["group"] == group
        for name in np.unique(out["backend"][held].astype(str)):
            if name not in own:
                continue
            inside = held[own[name].row]
            rest = own[name].where(~inside) if not inside.all() else own[name]
            host = fit(name, rest)
            _answer(table, setups, own[name].where(inside), host, held & (out["backend"] == name), out)
    return out


def _answer(
    table: Table,
    setups: list[tuple[Rows, Setup]],
    scored: Loops,
    host: Engine,
    held: NDArray[np.bool_],
    out: dict[str, Column],
) -> None:
    """Predict the runs that were held out of a fit into ``out``."""
    for version in np.unique(scored.version.astype(str)):
        chosen = scored.version == version
        answers = predicted(scored.where(chosen), of_version(host, version))
        for figure, values in zip(FIGURES, answers, strict=True):
            out[figure][scored.row[chosen]] = values
    for rows, setup in setups:
        if setup.prefill is None or not held[rows].any():
            continue
        mine = rows[held[rows]]
        part = runs.setup_of(table, mine, setup.model, setup.node, setup.engine)
        found = runs.closed_loop_of(table, mine, part, of_version(host, setup.engine.partition("@")[2]))
        out["ttft"][mine], out["tpot"][mine] = found.ttft, found.tpot
        out["latency"][mine] = found.ttft + (np.asarray(part.osl, float) - 1) * found.tpot


def _layouts(setup: Setup, size: int) -> list[str]:
    """Engine, formats and layout of each row, as text."""
    formats = [getattr(setup, name) for name in ("attention", "ffn", "experts", "kv")]
    sizes = [getattr(p, n) for p in setup.pools for n in ("tp", "pp", "dp", "moe_tp", "moe_ep")]
    columns = [np.broadcast_to(np.asarray(a, float), size) for a in (*formats, *sizes)]
    name = f"{setup.engine.partition('@')[0]} {setup.mode}"
    return [f"{name} {' '.join(f'{v:g}' for v in row)}" for row in zip(*columns, strict=True)]


def _parts(configuration: Column, figures: Array) -> Column:
    """Which of ``FOLDS`` parts each row is left out with: whole configurations, joined where they share a run."""
    names, index = np.unique(configuration.astype(str), return_inverse=True)
    root = np.arange(len(names))

    def find(i: int) -> int:
        while root[i] != i:
            i = int(root[i])
        return i

    _, run = np.unique(figures, axis=0, return_inverse=True)
    for together in (index[run == r] for r in np.flatnonzero(np.bincount(run.ravel()) > 1)):
        for other in together[1:]:
            root[find(int(other))] = find(int(together[0]))
    clusters = np.array([find(i) for i in range(len(names))])
    of_cluster = {c: i for i, c in enumerate(np.random.default_rng(SEED).permutation(np.unique(clusters)).tolist())}
    return np.array([f"part {of_cluster[int(clusters[i])] % FOLDS}" for i in index], dtype=object)


def rank_correlation(table: Table, found: dict[str, Column], figure: str = "tpot") -> float:
    """Mean Spearman correlation of a figure within model, device and lengths, weighted by runs (5 at least)."""
    every = np.arange(len(table["model"]))
    keys = np.array(["\t".join(r) for r in zip(*(runs.column_text(table, n, every) for n in LENGTHS), strict=True)])
    parts = [np.flatnonzero(keys == key) for key in np.unique(keys)]
    parts = [p for p in parts if len(p) >= 5]
    ranks = [spearmanr(found[figure][p], found[f"measured_{figure}"][p]).statistic for p in parts]
    return float(np.average(ranks, weights=[len(p) for p in parts]))


LENGTHS = ("model", "gpu", "isl", "osl")


def report(table: Table) -> list[str]:
    """Lines of figures: errors with configurations, models and devices left out, rank correlation, coverage."""
    lines = []
    for by in ("configuration", "model", "gpu"):
        found = left_out(table, by)
        answered = np.isfinite(found["tpot"].astype(float))
        lines.append(f"{by} left out: {answered.mean():.1%} of {len(answered)} runs answered; median APE of")
        of = {"all": answered, **{how: found["served"] == how for how in WAYS}}
        of |= {f"agg {name}": (found["backend"] == name) & of["agg"] for name in sorted(set(found["backend"]))}
        for name, rows in of.items():
            errors = (
                np.median(np.abs(found[f][rows].astype(float) / found[f"measured_{f}"][rows].astype(float) - 1))
                for f in FIGURES
            )
            told = ", ".join(f"{figure} {error:.1%}" for figure, error in zip(FIGURES, errors, strict=True))
            lines.append(f"  {name} ({int(rows.sum())}): {told}")
        if by == "configuration":
            lines.append(
                f"  rank correlation of TPOT within model, device, lengths: {rank_correlation(table, found):.3f}"
            )
            for (how, kind, figure), (count, share) in sorted(coverage(found).items()):
                lines.append(f"  80 % interval, {how}, {kind}, {figure}: {share:.1%} of {count}")
    return lines


if __name__ == "__main__":
    main()
