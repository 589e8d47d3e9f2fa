"""Fit ``cost/data/power.json`` and ``cost/data/power_samples.json`` to watts measured during operators.

    python -m nearpeak.calibrate.power MEASUREMENTS/power/b200_sxm.parquet [--write src/nearpeak/cost/data]

The physics (``nearpeak.cost.power``) is fitted by robust least squares on logarithms, from measured seconds, every
operator counting alike. ``awake`` is a low quantile of rows that reach hardly anything: a sensor that still holds the
kernels before can only add to those. The forests are gradient boosted trees (absolute error) over shapes alone, so that
they do not change with the model of time.

The report gives median absolute percentage errors in sample, with whole sites left out (five folds), from predicted and
from measured seconds, with a whole operator left out, and of a plain baseline: ``idle + (tdp - idle) x utilization``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from nearpeak.calibrate.cells import positive
from nearpeak.calibrate.samples import SITES, Table, site_numbers
from nearpeak.cost import power
from nearpeak.cost.files import read_table
from nearpeak.cost.forest import Forest
from nearpeak.cost.platform import Evidence, Work, seconds, variant_name
from nearpeak.cost.power import ANY, Activity, PowerModel
from nearpeak.cost.tables import READINGS, groups, operator_tables, platform_named
from nearpeak.errors import UsageError
from nearpeak.hardware import Device

Array = NDArray[np.float64]
FOLDS = 5
TREES: dict[str, Any] = {
    "n_estimators": 60,
    "num_leaves": 127,
    "learning_rate": 0.25,
    "min_child_samples": 15,
    "max_depth": 10,
}
SHORTEST = 3e-5
"""Seconds of a kernel below which the sensor tells more of what ran before than of the kernel."""
RESTING, AT_REST = 0.05, 0.05
"""What a device draws that does nothing: of rows below this utilization, this quantile."""
FULL = 0.95
"""Share of the limit above which a device throttles; their median is where it throttles to."""
MOST, ENOUGH = 30_000, 50
"""Rows that the physics is fitted to (it has some fifteen constants), and those that give a format its own."""
LOWEST, HIGHEST = 0.1, 0.9
SOURCE = "published measurements of vLLM's operators on a B200, watts as the card's sensor shows them"


@dataclass(frozen=True)
class Rows:
    """Measurements of one operator: its physics, columns by name, watts over the limit; arrays ``[rows]``.

    ``site``: a number of the row's site. ``row``: where it is in its table.
    """

    device: Device
    work: Work
    columns: dict[str, Array]
    measured: Array
    predicted: Array
    share: Array
    limit: Array
    site: NDArray[np.int64]
    row: NDArray[np.intp]

    def where(self, keep: NDArray[Any]) -> "Rows":
        """Some of the rows."""
        physics: dict[str, Any] = {f: getattr(self.work, f)[keep] for f in PHYSICS}
        work = replace(self.work, **physics)
        columns = {name: column[keep] for name, column in self.columns.items()}
        return replace(self, work=work, columns=columns, **{f: getattr(self, f)[keep] for f in PLAIN})


PHYSICS = ("variant", "compute", "traffic", "floor")
PLAIN = ("measured", "predicted", "share", "limit", "site", "row")


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows in one; of several operators, without the columns that they do not share."""
    first = parts[0]
    physics: dict[str, Any] = {f: np.concatenate([getattr(r.work, f) for r in parts]) for f in PHYSICS}
    work = replace(first.work, **physics)
    shared = [name for name in first.columns if all(name in r.columns for r in parts)]
    columns = {name: np.concatenate([r.columns[name] for r in parts]) for name in shared}
    plain: dict[str, Any] = {f: np.concatenate([getattr(r, f) for r in parts]) for f in PLAIN}
    return replace(first, work=work, columns=columns, **plain)


def read(table: Table) -> dict[str, Rows]:
    """Rows of a power table by operator.

    Raises:
        UsageError: columns are missing, watts are no share of the limit, a row cannot be read, or there is more than
            one device.
    """
    if missing := [c for c in ("gpu", "watts", "watts_limit", "seconds") if c not in table]:
        raise UsageError(f"the table has no column {', '.join(missing)}, which a fit of power needs")
    limit, measured = positive(table["watts_limit"]), positive(table["seconds"])
    share = positive(table["watts"]) / limit
    if (wrong := ~((share < 1.5) & (measured > 0))).any():
        raise UsageError(f"{wrong.sum()} rows have no time above 0 or no watts between 0 and 1.5 of their limit")
    if len(gpus := np.unique(table["gpu"].astype(str))) > 1:
        raise UsageError(f"the table is of {', '.join(gpus)}; power is fitted to one device")
    found = {}
    for op, at in operator_tables(table, "power", share.size):
        part = {name: column[at] for name, column in table.items()}
        errors = np.full(at.size, "", object)
        sites = site_numbers(part, SITES[op])
        parts = []
        for group in groups(part, op, errors):
            p, rows = platform_named(group.gpu, group.engine), group.rows
            work = READINGS[op].work(p, group.kinds, group.numbers)
            physics: dict[str, Any] = {f: np.broadcast_to(getattr(work, f), rows.shape) for f in PHYSICS}
            here, predicted = at[rows], np.broadcast_to(seconds(p, work), rows.shape)
            plain = measured[here], predicted, share[here], limit[here], sites[rows], here
            parts.append(Rows(p.device, replace(work, **physics, coordinates=()), dict(group.numbers), *plain))
        if (errors != "").any():
            raise UsageError(f"{(errors != '').sum()} rows of {op} cannot be read: {errors[errors != ''][0]}")
        found[op] = joined(parts)
    return found


def folds(rows: Rows) -> NDArray[np.intp]:
    """The fold of every row; a site is in one of them."""
    return np.asarray(rows.site % FOLDS, np.intp)


def fit_physics(tables: dict[str, Rows]) -> PowerModel:
    """The constants of ``nearpeak.cost.power``, from rows of at least ``SHORTEST``.

    A byte from memory costs the same in every operator: ``traffic`` is one number, ``running`` one of each operator,
    ``compute`` one of each of its formats. For operators that were not measured, all rows give one of each.

    Raises:
        UsageError: too few rows to tell what a device draws at rest, at its limit, or under an operator.
    """
    device = next(iter(tables.values())).device
    low = power.idle(device) / device.tdp
    resting = np.concatenate([r.share[_reached(r) < RESTING] for r in tables.values()])
    full = np.concatenate([r.share for r in tables.values()])
    full = full[full > FULL]
    if not (resting.size and full.size):
        raise UsageError(
            f"{resting.size} rows use less than {RESTING:.0%} of the device and {full.size} draw more than {FULL:.0%} "
            "of its limit; a fit of power needs some of both"
        )
    awake, ceiling = (float((np.quantile(x, q) - low) / (1 - low)) for x, q in ((resting, AT_REST), (full, 0.5)))
    blank = PowerModel(SOURCE, device.name, awake, ceiling, {}, {}, {})
    long = {op: _thinned(r.where(r.measured >= SHORTEST), MOST // len(tables)) for op, r in tables.items()}
    whole = joined(list(long.values()))
    operator = np.repeat(np.arange(len(long)), [r.share.size for r in long.values()])
    names = np.concatenate([np.char.add(f"{op}:", _formats(r)) for op, r in long.items()])
    held, kind, count = np.unique(names, return_inverse=True, return_counts=True)
    often = np.flatnonzero(count >= ENOUGH)
    if few := long.keys() - {str(name).partition(":")[0] for name in held[often]}:
        raise UsageError(
            f"no format of {', '.join(sorted(few))} has {ENOUGH} rows of {SHORTEST * 1e6:.0f} us or more, which a fit "
            "of power needs"
        )
    keep = np.isin(kind, often)
    fitted = _solve(blank, low, whole.where(keep), np.searchsorted(often, kind[keep]), operator[keep])
    activities = {str(held[k]): a for k, a in zip(often, fitted, strict=True)}
    for op in long:
        own = [a for name, a in activities.items() if name.startswith(f"{op}:")]
        activities[f"{op}:{ANY}"] = msgspec.structs.replace(own[0], compute=float(np.median([a.compute for a in own])))
    one = np.zeros(whole.share.size, np.intp)
    activities[f"{ANY}:{ANY}"] = _solve(blank, low, whole, one, one)[0]
    return msgspec.structs.replace(blank, activities=activities)


def _solve(m: PowerModel, low: float, rows: Rows, kind: NDArray[np.intp], operator: NDArray[np.intp]) -> list[Activity]:
    """Activity of every kind (operator and format, a number for each row)."""
    kinds, operators = int(kind.max()) + 1, int(operator.max()) + 1
    compute, traffic = (np.minimum(x / rows.measured, 1.0) for x in (rows.work.compute, rows.work.traffic))

    def residual(x: Array) -> Array:
        demand = x[kind] * compute + x[kinds] * traffic + x[kinds + 1 + operator]
        return np.asarray(np.log(_share(m, low, demand) / rows.share))

    first = np.r_[np.full(kinds, 2.0), 0.3, np.full(operators, 0.1)]
    solved = least_squares(residual, first, bounds=(0.0, 20.0), loss="soft_l1", f_scale=0.03).x
    values = [float(f"{v:.3g}") if v > 1e-6 else 0.0 for v in solved]
    of = [int(operator[kind == k][0]) for k in range(kinds)]
    return [Activity(values[k], values[kinds], values[kinds + 1 + o]) for k, o in enumerate(of)]


def _share(m: PowerModel, low: float, demand: Array) -> Array:
    """Share of the limit that is drawn at a demand by a device that idles at ``low``."""
    return np.asarray(low + (1 - low) * (m.awake + (m.ceiling - m.awake) * power.soft(demand)))


def _formats(rows: Rows) -> NDArray[np.str_]:
    codes = power.product_of(rows.work.variant)
    return np.array([variant_name(int(c)) for c in codes])


def _reached(rows: Rows) -> Array:
    return np.asarray(np.maximum(rows.work.compute, rows.work.traffic) / rows.measured)


def _thinned(rows: Rows, most: int) -> Rows:
    return rows.where(np.random.default_rng(0).permutation(rows.share.size)[:most])


def physics(m: PowerModel, rows: Rows, at: Array) -> Array:
    """Share of the limit that the physics gives, from seconds."""
    core, memory = power.demands(rows.work, at, m)
    return _share(m, power.idle(rows.device) / rows.device.tdp, core + memory)


def fit_forest(rows: Rows, variants: tuple[str, ...]) -> Forest:
    """Gradient boosted trees on the shapes."""
    import lightgbm

    names = (*rows.columns, "compute", "traffic")
    table = power.features(names, variants, rows.columns, rows.work).astype(np.float32)
    settings = {"objective": "l1", "num_threads": 1, "verbosity": -1, "seed": 0, "deterministic": True, **TREES}
    trees = lightgbm.train(settings, lightgbm.Dataset(table, np.log(rows.share))).dump_model()["tree_info"]
    return _packed([tree["tree_structure"] for tree in trees], names, variants)


def _packed(trees: list[dict[str, Any]], names: tuple[str, ...], variants: tuple[str, ...]) -> Forest:
    """Nodes of all trees in flat arrays, a node's left child after it."""
    feature: list[int] = []
    number: list[float] = []
    right: list[int] = []
    roots, deepest = [], 0
    for tree in trees:
        roots.append(len(feature))
        stack: list[tuple[dict[str, Any], int, int]] = [(tree, -1, 0)]
        while stack:
            node, parent, depth = stack.pop()
            here, deepest = len(feature) - roots[-1], max(deepest, depth)
            if parent >= 0:
                right[roots[-1] + parent] = here
            right.append(0)
            if "leaf_value" in node:
                feature.append(-1)
                number.append(node["leaf_value"])
                continue
            feature.append(node["split_feature"])
            # In single precision a threshold must not fall below the value that it was cut at.
            number.append(float(np.nextafter(np.float32(node["threshold"]), np.float32(np.inf))))
            stack += [(node["right_child"], here, depth + 1), (node["left_child"], -1, depth + 1)]
    arrays = np.array(feature, np.int8), np.array(number, "<f4"), np.array(right, "<u2")
    flat = [a.tobytes() for a in arrays]
    return Forest(names, variants, flat[0], flat[1], flat[2], tuple(roots), deepest)


def grown(forest: Forest, rows: Rows) -> Array:
    """Share of the limit that a forest gives."""
    return np.asarray(np.exp(forest.values(power.features(forest.columns, forest.variants, rows.columns, rows.work))))


def baseline(rows: Rows, at: Array) -> Array:
    """The plain one: idle power, and the rest in proportion to the larger of both utilizations."""
    low = power.idle(rows.device) / rows.device.tdp
    used = np.minimum(np.maximum(rows.work.compute, rows.work.traffic) / at, 1.0)
    return np.asarray(low + (1 - low) * used)


def score(tables: dict[str, Rows]) -> dict[str, dict[str, Array]]:
    """Predicted over measured watts of every row, by operator and by how the prediction was made."""
    found: dict[str, dict[str, Array]] = {op: {} for op in tables}
    whole = fit_physics(tables)
    parts = {op: folds(r) for op, r in tables.items()}
    for op, r in tables.items():
        found[op]["baseline"] = baseline(r, r.predicted) / r.share
        found[op]["physics, in sample"] = physics(whole, r, r.measured) / r.share
        found[op]["sampled, in sample"] = grown(fit_forest(r, _variants(r)), r) / r.share
        rest = fit_physics({o: t for o, t in tables.items() if o != op})
        found[op]["operator left out"] = physics(rest, r, r.predicted) / r.share
        for name in ("physics, measured time", "physics"):
            found[op][name] = np.full(r.share.size, np.nan)
        found[op]["sampled"] = _sites_out(r) / r.share
    for k in range(FOLDS):
        rest = fit_physics({op: r.where(parts[op] != k) for op, r in tables.items()})
        for op, r in tables.items():
            out = parts[op] == k
            left = r.where(out)
            found[op]["physics, measured time"][out] = physics(rest, left, left.measured) / left.share
            found[op]["physics"][out] = physics(rest, left, left.predicted) / left.share
    return found


def _variants(rows: Rows) -> tuple[str, ...]:
    return tuple(sorted(set(power.variants(rows.work, rows.share.size).tolist())))


def error(ratio: Array) -> float:
    """Median absolute percentage error of predicted over measured."""
    return float(100 * np.median(np.abs(ratio - 1)))


def factors(ratio: Array) -> tuple[float, float]:
    """Measured over predicted, 10 % and 90 % quantiles."""
    low, high = np.quantile(1 / ratio, [LOWEST, HIGHEST])
    return round(float(low), 3), round(float(high), 3)


def coverage(ratio: Array, site: NDArray[np.int64]) -> float:
    """Share of rows inside the interval that the other half of the sites sets."""
    half = site // FOLDS % 2
    inside = []
    for k in (0, 1):
        low, high = factors(ratio[half != k])
        inside.append((1 / ratio[half == k] >= low) & (1 / ratio[half == k] <= high))
    return float(np.concatenate(inside).mean())


def fit_power(table: Table) -> tuple[PowerModel, dict[str, Forest]]:
    """The physics and the forests of a power table, with the factors of rows whose site was left out.

    Raises:
        UsageError: as ``read`` and ``fit_physics``, or there is one operator alone.
    """
    tables = read(table)
    if len(tables) < 2:
        raise UsageError(f"the table holds watts of {', '.join(tables)} alone; a fit of power needs two operators")
    return _fitted(tables, score(tables))


def left_out(table: Table, by: str = "site") -> Array:
    """Watts of every row as ``fit_power`` predicts them where the row's site was left out.

    Raises:
        UsageError: as ``read``, or ``by`` is not ``site``.
    """
    if by != "site":
        raise UsageError(f"power was measured on one device: leave out 'site', not {by!r}")
    tables = read(table)
    predicted = np.full(len(table["watts"]), np.nan)
    for r in tables.values():
        predicted[r.row] = _sites_out(r) * r.limit
    return predicted


def _sites_out(rows: Rows) -> Array:
    """Share of the limit from forests that the row's site had no part in."""
    fold, variants, shown = folds(rows), _variants(rows), np.full(rows.share.size, np.nan)
    for k in np.unique(fold):
        shown[fold == k] = grown(fit_forest(rows.where(fold != k), variants), rows.where(fold == k))
    return shown


def _fitted(tables: dict[str, Rows], scored: dict[str, dict[str, Array]]) -> tuple[PowerModel, dict[str, Forest]]:
    pooled = {k: np.concatenate([s[k] for s in scored.values()]) for k in ("physics", "operator left out")}
    measured, transferred = factors(pooled["physics"]), factors(pooled["operator left out"])
    # What was measured neither here nor elsewhere: both spreads, as if they were independent.
    wide = np.hypot(*np.log([measured, transferred]))
    spread: dict[Evidence, tuple[float, float]] = {
        "measured": measured,
        "transferred": transferred,
        "datasheet": (round(float(np.exp(-wide[0])), 3), round(float(np.exp(wide[1])), 3)),
    }
    sampled = {op: factors(s["sampled"]) for op, s in scored.items()}
    found = msgspec.structs.replace(fit_physics(tables), factors=spread, sampled=sampled)
    return found, {op: fit_forest(r, _variants(r)) for op, r in tables.items()}


def report(tables: dict[str, Rows], scored: dict[str, dict[str, Array]]) -> None:
    """One line for each way of predicting: error by operator, of all rows, and coverage."""
    names = list(next(iter(scored.values())))
    print(f"{'median error, %':28s}" + "".join(f"{op:>20s}" for op in tables) + f"{'all':>10s}{'coverage':>10s}")
    site = np.concatenate([r.site for r in tables.values()])
    for name in names:
        ratios = [s[name] for s in scored.values()]
        line = "".join(f"{error(r):20.1f}" for r in ratios)
        together = np.concatenate(ratios)
        print(f"{name:28s}{line}{error(together):10.1f}{coverage(together, site):10.3f}")


def main() -> None:
    """Fit, report, and with ``--write`` replace the shipped files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="a .parquet or .csv file of one device")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="put power.json and power_samples.json there")
    given = parser.parse_args()
    tables = read(read_table(given.table))
    scored = score(tables)
    report(tables, scored)
    found, forests = _fitted(tables, scored)
    if given.write:
        given.write.joinpath("power.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        given.write.joinpath("power_samples.json").write_bytes(msgspec.json.encode(forests) + b"\n")


if __name__ == "__main__":
    main()
