"""Searches on a table of measurements: a kernel's configurations with what each took, revealed one at a time.

A table is a Parquet file with a column for each parameter, ``seconds`` (NaN: the configuration failed) and perhaps
``evaluation_seconds`` (what measuring it cost). Its metadata may hold ``parameters``, the ordered values of each;
without, they are the sorted values that occur.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.log import Outcome
from nearpeak.search.loop import Method, Search
from nearpeak.search.methods import method_named
from nearpeak.search.parameters import Categorical, Floats, Ordinal
from nearpeak.search.space import Space


@dataclass(frozen=True)
class Table:
    """A measured space.

    Attributes:
        name: of the file. about: its metadata. space: the configurations, all that are listed. values: seconds of
            each, NaN where it failed, ``[N]``. costs: seconds that evaluating each took, ``[N]``; 0: not known.
    """

    name: str
    about: Mapping[str, str]
    space: Space
    values: Floats
    costs: Floats

    @cached_property
    def optimum(self) -> float:
        """The least value."""
        return float(np.nanmin(self.values))

    def evaluate(self, point: Floats) -> Outcome:
        """What the table says of one configuration ``[width]``."""
        assert self.space.grid is not None
        row = int(self.space.grid.find(point[None])[0])
        return Outcome(
            float(self.values[row]),
            float(self.costs[row]),
            why="" if np.isfinite(self.values[row]) else "failed in the table",
        )


def read_table(path: Path | str, value: str = "seconds", cost: str = "evaluation_seconds") -> Table:
    """The table of a file.

    Raises:
        UsageError: there is no such file, it has no column ``value``, a configuration is there twice, or all failed.
    """
    import duckdb

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is no file")
    try:
        with duckdb.connect() as connection:
            columns = connection.execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchnumpy()
            pairs = connection.execute("SELECT key, value FROM parquet_kv_metadata(?)", [str(path)]).fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{str(path)!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    about = {bytes(k).decode(): bytes(v).decode() for k, v in pairs}
    if value not in columns:
        raise UsageError(f"{str(path)!r} has no column {value!r}; it has {', '.join(columns)}")
    values = _floats(path, value, columns[value])
    values = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(values).any():
        raise UsageError(f"no configuration of {str(path)!r} has a value: all {len(values)} failed")
    costs = _floats(path, cost, columns[cost]) if cost in columns else np.zeros(len(values))
    orders = _orders(path, about.get("parameters", "{}"))
    names = list(orders) or [name for name in columns if name not in (value, cost)]
    if missing := [name for name in names if name not in columns]:
        raise UsageError(f"{str(path)!r} has no column {missing[0]!r}, which its metadata names")
    if not names:
        raise UsageError(f"{str(path)!r} has no column of a parameter beside {value!r} and {cost!r}")
    for name in names:
        if np.ma.getmaskarray(np.ma.asarray(columns[name])).any():
            raise UsageError(f"{str(path)!r} has rows without a value of {name!r}: every parameter needs one")
    parameters = {name: _parameter(columns[name], orders.get(name)) for name in names}
    points = np.column_stack([_indices(columns[name], parameters[name]) for name in names])
    if len(np.unique(points, axis=0)) < len(points):
        raise UsageError(
            f"{str(path)!r} has a configuration twice; keep one row of each. Parameters are {', '.join(names)}"
        )
    return Table(path.stem, about, Space(parameters, listed=points), values, np.nan_to_num(costs))


def _floats(path: Path, name: str, column: Any) -> Floats:  # noqa: ANN401 (DuckDB's masked or plain arrays)
    try:
        return np.ma.filled(np.ma.asarray(column, dtype=float), np.nan)
    except (TypeError, ValueError):
        raise UsageError(f"column {name!r} of {str(path)!r} is not of numbers") from None


def _orders(path: Path, text: str) -> dict[str, list[Any]]:
    try:
        orders = json.loads(text)
    except ValueError:
        orders = None
    if not isinstance(orders, dict) or not all(isinstance(values, list) and values for values in orders.values()):
        raise UsageError(f"the metadata 'parameters' of {str(path)!r} is no JSON of names with lists of values")
    return orders


def _parameter(column: Any, order: Sequence[Any] | None) -> Ordinal | Categorical:  # noqa: ANN401
    found = np.unique(np.asarray(column)).tolist()
    choices = tuple(found if order is None else order)
    numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in choices)
    return Ordinal(choices) if numbers or order is not None else Categorical(choices)


def _indices(column: Any, parameter: Ordinal | Categorical) -> Floats:  # noqa: ANN401
    index = {choice: i for i, choice in enumerate(parameter.choices)}
    try:
        return np.asarray([index[v] for v in np.asarray(column).tolist()], dtype=float)
    except KeyError as error:
        raise UsageError(f"a configuration has {error.args[0]!r}, which is none of {parameter.choices}") from None


@dataclass(frozen=True)
class Run:
    """One search of a table.

    Attributes:
        seed: of it. values: what was seen in order, ``[n]``, NaN where it failed. costs: seconds each took, ``[n]``.
        choosing: seconds spent choosing.
    """

    seed: int
    values: Floats
    costs: Floats
    choosing: float

    def best_after(self, optimum: float) -> Floats:
        """Least value so far over the optimum, ``[n]``; infinite before the first that succeeded."""
        return np.asarray(np.fmin.accumulate(np.where(np.isnan(self.values), np.inf, self.values)) / optimum)


def replay(table: Table, budget: int, seed: int, method: Method | str = "default") -> Run:
    """Search a table with one seed. Nothing is seen of a row before it is evaluated.

    Raises:
        UsageError: the budget is not positive, or there is no such method.
    """
    if budget < 1:
        raise UsageError(f"a budget is at least one evaluation, not {budget}")
    search = Search(table.space, method_named(method) if isinstance(method, str) else method, seed=seed)
    budget = min(budget, len(table.values))
    choosing = 0.0
    while len(search.history) < budget:
        begun = time.perf_counter()
        points = search.ask_points(1)
        choosing += time.perf_counter() - begun
        search.tell_point(points[0], table.evaluate(points[0]))
    return Run(seed, search.history.values, search.history.costs, choosing)


def random_expectation(values: Floats, budget: int) -> Floats:
    """Expected least value after 1 to ``budget`` random evaluations without replacement, ``[budget]``.

    The k-th smallest of N is the least of n draws with probability C(N - k, n - 1) / C(N, n); failures count as the
    largest value. Willemsen et al.: A Methodology for Comparing Optimization Algorithms for Auto-Tuning, FGCS 2024.
    """
    from scipy.special import gammaln

    ordered = np.sort(np.where(np.isfinite(values), values, np.nanmax(values)))
    size = len(ordered)
    draws = np.arange(1, budget + 1)[:, None]
    after = size - 1 - np.arange(size)[None, :]
    with np.errstate(invalid="ignore"):
        ways = gammaln(after + 1) - gammaln(draws) - gammaln(after - draws + 2)
        total = gammaln(size + 1) - gammaln(draws + 1) - gammaln(size - draws + 1)
    chance = np.where(after >= draws - 1, np.exp(ways - total), 0.0)
    return np.asarray(chance @ ordered)


def performance_score(table: Table, runs: Sequence[Run]) -> float:
    """Improvement over random search, (F_random(t) - F(t)) / (F_random(t) - optimum), averaged over the evaluations.

    0 is random search, 1 the optimum at once. F is the mean over the runs.
    """
    best = np.stack([np.fmin.accumulate(np.where(np.isnan(r.values), np.nanmax(table.values), r.values)) for r in runs])
    expected = random_expectation(table.values, best.shape[1])
    room = expected - table.optimum
    open_ = room > 1e-9 * table.optimum
    return float(np.mean(((expected - best.mean(axis=0)) / np.where(open_, room, 1.0))[open_]))
