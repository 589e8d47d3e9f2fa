"""A space of configurations: named parameters, constraints between them, conditions under which one exists.

A configuration is a row of floats ``[width]``, a few columns a parameter (``parameters``); NaN in the columns of a
parameter that is inactive. All functions take and give many rows, ``[n, width]``. Where every parameter can be counted
off, ``space.grid`` holds every configuration that meets the constraints.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.expressions import Expression
from nearpeak.search.grid import Grid, enumerate_grid
from nearpeak.search.parameters import (
    Categorical,
    Float,
    Floats,
    Integer,
    Ordinal,
    Parameter,
    Permutation,
    Simplex,
    reflected,
)

__all__ = ["Categorical", "Float", "Floats", "Integer", "Ordinal", "Parameter", "Permutation", "Simplex", "Space"]

ENUMERABLE: Final = 20_000_000
"""Configurations that a grid may hold; larger spaces are sampled."""
_DRAWS: Final = 2_000_000
"""Rows drawn before a space that cannot be enumerated is called empty."""


@dataclass(frozen=True)
class Space:
    """Parameters, and what must hold between them.

    Attributes:
        parameters: by name.
        constraints: expressions that must hold in every configuration; one that names an inactive parameter is not
            asked.
        conditions: for a parameter that exists only sometimes, the expression under which it does. It names
            parameters that have no condition themselves.
        listed: the configurations that there are, ``[n, width]``, where a list says more than constraints.

    Raises:
        UsageError: no parameters, names that are no parameters, or a constraint that nothing meets.
    """

    parameters: Mapping[str, Parameter]
    constraints: Sequence[str] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    listed: Floats | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.parameters:
            raise UsageError("a space needs at least one parameter")
        if isinstance(self.constraints, str):
            object.__setattr__(self, "constraints", (self.constraints,))
        if unknown := sorted(set(self.conditions) - set(self.parameters)):
            raise UsageError(f"conditions on {', '.join(unknown)}; parameters are {', '.join(self.parameters)}")
        for name, condition in self._conditions.items():
            if chained := sorted(condition.names & set(self.conditions)):
                raise UsageError(f"condition of {name} names {', '.join(chained)}, which has a condition itself")
        _ = self._constraints

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Which columns of a row belong to each parameter."""
        ends = np.cumsum([p.width for p in self.parameters.values()])
        return {
            name: slice(int(end) - p.width, int(end))
            for (name, p), end in zip(self.parameters.items(), ends, strict=True)
        }

    @property
    def width(self) -> int:
        """Columns of a row."""
        return sum(p.width for p in self.parameters.values())

    @cached_property
    def _constraints(self) -> tuple[Expression, ...]:
        return tuple(Expression.parse(text, self.parameters) for text in self.constraints)

    @cached_property
    def _conditions(self) -> dict[str, Expression]:
        return {name: Expression.parse(text, self.parameters) for name, text in self.conditions.items()}

    @cached_property
    def floats(self) -> tuple[Float, ...]:
        """The parameters, where all of them are floats; else none."""
        found = tuple(p for p in self.parameters.values() if isinstance(p, Float))
        return found if len(found) == len(self.parameters) else ()

    @cached_property
    def _box(self) -> tuple[Floats, Floats] | None:
        """Least values and ranges ``[width]`` where all parameters are linear floats that nothing constrains."""
        if self.constraints or self.conditions:
            return None
        if not self.floats or any(p.log for p in self.floats):
            return None
        low = np.asarray([p.low for p in self.floats], dtype=float)
        return low, np.asarray([p.high for p in self.floats]) - low

    @cached_property
    def combinations(self) -> float:
        """Configurations before constraints; infinite where a parameter cannot be counted off."""
        return float(np.prod([float(p.levels) if p.levels else np.inf for p in self.parameters.values()]))

    @cached_property
    def grid(self) -> Grid | None:
        """Every configuration, where they can be counted off and are at most ``ENUMERABLE``; else None.

        Raises:
            UsageError: there is none: it names the constraint that nothing meets.
        """
        if self.listed is not None:
            return Grid(self.listed, self.listed_levels)
        if not np.isfinite(self.combinations):
            return None
        levels = enumerate_grid(self.parameters, self._constraints, self._conditions, ENUMERABLE)
        if levels is None:
            return None
        return Grid(self._points(levels), levels)

    @cached_property
    def listed_levels(self) -> NDArray[np.intp]:
        """Levels of the listed configurations, ``[n, parameters]``."""
        assert self.listed is not None
        found = np.empty((len(self.listed), len(self.parameters)), dtype=np.intp)
        for j, (name, p) in enumerate(self.parameters.items()):
            if p.levels is None:
                raise UsageError(f"a listed space is of integers, ordinals and categoricals; {name} is none")
            start = p.at(np.zeros(1, dtype=np.intp))[0, 0]
            found[:, j] = np.rint(np.nan_to_num(self.listed[:, self.columns[name].start], nan=start - 1) - start)
        return found

    def _points(self, levels: NDArray[np.intp]) -> Floats:
        points = np.empty((len(levels), self.width))
        for j, (name, p) in enumerate(self.parameters.items()):
            points[:, self.columns[name]] = np.where(levels[:, j : j + 1] < 0, np.nan, p.at(levels[:, j]))
        return points

    def values(self, points: Floats) -> dict[str, NDArray[Any]]:
        """What expressions see: each parameter's values by name."""
        return {name: p.values(points[:, self.columns[name]]) for name, p in self.parameters.items()}

    def activated(self, points: Floats) -> Floats:
        """Rows with NaN where a condition does not hold; a parameter newly active takes its first or middle value."""
        if not self._conditions:
            return points
        points, values = points.copy(), self.values(points)
        for name, condition in self._conditions.items():
            columns, parameter = self.columns[name], self.parameters[name]
            on = np.broadcast_to(condition(values), len(points)).astype(bool)
            missing = on & np.isnan(points[:, columns.start])
            if missing.any():
                points[missing, columns] = parameter.draw(int(missing.sum()), np.random.default_rng(0))
            points[~on, columns] = np.nan
        return points

    def holds(self, points: Floats) -> NDArray[np.bool_]:
        """Which rows meet every constraint, ``[n]``."""
        if self.listed is not None:
            assert self.grid is not None
            return np.asarray(self.grid.find(points) >= 0)
        good, values = np.ones(len(points), dtype=bool), self.values(points)
        for constraint in self._constraints:
            good &= _met(constraint, values, self._inactive(constraint, points))
        return good

    def _inactive(self, constraint: Expression, points: Floats) -> NDArray[np.bool_]:
        starts = [self.columns[name].start for name in constraint.names & set(self.conditions)]
        return np.asarray(np.isnan(points[:, starts]).any(axis=1))

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform draws that meet the constraints, ``[n, width]``; a grid gives each configuration once while it can.

        Raises:
            UsageError: none was found: it names the constraint that fails most often.
        """
        if self.grid is not None:
            size = len(self.grid.points)
            return self.grid.points[rng.choice(size, n, replace=n > size)]
        found: list[Floats] = []
        drawn, missing = 0, n
        while missing > 0:
            count = min(max(4 * missing, 256), 200_000)
            rows = self.activated(np.hstack([p.draw(count, rng) for p in self.parameters.values()]))
            rows = rows[self.holds(rows)][:missing]
            found.append(rows)
            drawn, missing = drawn + count, missing - len(rows)
            if drawn >= _DRAWS and missing == n:
                raise UsageError(self._hardest(rng))
        return np.vstack(found)

    def _hardest(self, rng: np.random.Generator) -> str:
        rows = self.activated(np.hstack([p.draw(10_000, rng) for p in self.parameters.values()]))
        values = self.values(rows)
        met = {c.text: _met(c, values, self._inactive(c, rows)).mean() for c in self._constraints}
        hardest = min(met, key=lambda text: float(met[text]))
        return (
            f"no configuration among {_DRAWS:,} draws meets the constraints; {hardest!r} holds in {met[hardest]:.2%} "
            "of draws: loosen it, or write the parameters so that it holds by itself"
        )

    def moved(self, points: Floats, rng: np.random.Generator, reach: float = 0.1, tries: int = 20) -> Floats:
        """Each row with a parameter or more changed a little, the constraints kept, ``[n, width]``.

        A row of which no change was found that meets the constraints stays as it is.
        """
        if self._box is not None:
            return self._moved_in_box(points, rng, reach)
        names = list(self.parameters)
        moved, left = points.copy(), np.arange(len(points))
        for _ in range(tries):
            rows = points[left].copy()
            which = rng.random((len(left), len(names))) < 1 / len(names)
            which[np.arange(len(left)), rng.integers(0, len(names), len(left))] = True
            for j, name in enumerate(names):
                chosen = which[:, j] & ~np.isnan(rows[:, self.columns[name].start])
                if chosen.any():
                    part = rows[chosen][:, self.columns[name]]
                    rows[chosen, self.columns[name]] = self.parameters[name].moved(part, rng, reach)
            rows = self.activated(rows)
            good = self.holds(rows)
            moved[left[good]] = rows[good]
            left = left[~good]
            if len(left) == 0:
                break
        return moved

    def _moved_in_box(self, points: Floats, rng: np.random.Generator, reach: float) -> Floats:
        assert self._box is not None
        low, span = self._box
        which = rng.random(points.shape) < 1 / self.width
        which[np.arange(len(points)), rng.integers(0, self.width, len(points))] = True
        stepped = low + span * reflected((points - low) / span + reach * rng.standard_normal(points.shape))
        return np.where(which, np.clip(stepped, low, low + span), points)

    def encode(self, points: Floats) -> Floats:
        """Features ``[n, f]`` in [0, 1]; one half where a parameter is inactive, and a column that says so."""
        if self._box is not None:
            return np.asarray((points - self._box[0]) / self._box[1])
        columns = [
            np.nan_to_num(p.features(points[:, self.columns[name]]), nan=0.5) for name, p in self.parameters.items()
        ]
        active = [~np.isnan(points[:, [self.columns[name].start]]) for name in self.conditions]
        return np.hstack([*columns, *active])

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """The parameter (by number) that each feature comes from, ``[f]``: features of one share a length scale."""
        probe = np.hstack([p.draw(1, np.random.default_rng(0)) for p in self.parameters.values()])
        widths = [p.features(probe[:, self.columns[n]]).shape[1] for n, p in self.parameters.items()]
        numbers = {name: j for j, name in enumerate(self.parameters)}
        return np.concatenate(
            [np.repeat(np.arange(len(widths)), widths), [numbers[name] for name in self.conditions]]
        ).astype(np.intp)

    def describe(self, point: Floats) -> dict[str, Any]:
        """A row as a person writes it: values by name, without inactive parameters."""
        return {
            name: p.write(point[self.columns[name]])
            for name, p in self.parameters.items()
            if not np.isnan(point[self.columns[name].start])
        }

    def rows(self, configurations: Iterable[Mapping[str, Any]]) -> Floats:
        """Rows of configurations that a person writes, ``[n, width]``.

        Raises:
            UsageError: a parameter is missing or unknown, a value is none of its values, or a constraint does not hold.
        """
        rows = []
        for given in configurations:
            row = np.full(self.width, np.nan)
            if unknown := sorted(set(given) - set(self.parameters)):
                raise UsageError(
                    f"{', '.join(unknown)} in a configuration; parameters are {', '.join(self.parameters)}"
                )
            for name, value in given.items():
                try:
                    row[self.columns[name]] = self.parameters[name].read(value)
                except (ValueError, TypeError) as error:
                    raise UsageError(f"{name} = {value!r}: it is {error}") from None
            if missing := sorted(set(self.parameters) - set(self.conditions) - set(given)):
                raise UsageError(f"a configuration without {', '.join(missing)}")
            rows.append(row)
        points = np.asarray(rows).reshape(-1, self.width)
        self._check(points)
        return points

    def _check(self, points: Floats) -> None:
        values = self.values(points)
        for name, condition in self._conditions.items():
            on = np.broadcast_to(condition(values), len(points)).astype(bool)
            if wrong := np.flatnonzero(on == np.isnan(points[:, self.columns[name].start])).tolist():
                said = "is needed" if on[wrong[0]] else "does not exist"
                raise UsageError(f"{name} {said} in {self.describe(points[wrong[0]])}: {condition.text}")
        for constraint in self._constraints:
            met = _met(constraint, values, self._inactive(constraint, points))
            if not met.all():
                raise UsageError(f"{self.describe(points[np.argmin(met)])} does not meet {constraint.text!r}")
        if self.listed is not None and not self.holds(points).all():
            raise UsageError(f"{self.describe(points[np.argmin(self.holds(points))])} is not in the list of the space")


def _met(constraint: Expression, values: Mapping[str, NDArray[Any]], inactive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a constraint holds in each row; where it names an inactive parameter it is not asked."""
    if not inactive.any():
        return np.broadcast_to(constraint(values), len(inactive)).astype(bool)
    good = inactive.copy()
    asked = {name: values[name][~inactive] for name in constraint.names}
    good[~inactive] = constraint(asked)
    return good
