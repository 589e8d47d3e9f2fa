"""Every configuration of a space that can be counted off, and which of them are neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.expressions import Expression
from nearpeak.search.parameters import Floats, Parameter

Levels = NDArray[np.intp]
"""Indices of values, ``[n, parameters]``; -1 where a parameter is inactive."""


@dataclass(frozen=True)
class Grid:
    """All configurations of a space: rows ``points [N, width]`` and the levels ``[N, parameters]`` of the same."""

    points: Floats = field(repr=False)
    levels: Levels = field(repr=False)

    @cached_property
    def _radix(self) -> NDArray[np.uint64]:
        """Weights that make one number of a row of levels: exact while it fits 64 bits, a hash (odd, random) above."""
        spans = self.levels.max(axis=0) + 2
        if np.log2(spans.astype(float)).sum() > 63:
            return np.random.default_rng(0).integers(0, 2**63, len(spans), dtype=np.uint64) * np.uint64(2) + np.uint64(
                1
            )
        return np.concatenate([[1], np.cumprod(spans[:-1])]).astype(np.uint64)

    def _keys(self, levels: Levels) -> NDArray[np.uint64]:
        found: NDArray[np.uint64] = ((levels + 1).astype(np.uint64) * self._radix).sum(axis=1, dtype=np.uint64)
        return found

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        keys = self._keys(self.levels)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def lookup(self, levels: Levels) -> NDArray[np.intp]:
        """Where rows of levels stand in the grid, ``[n]``; -1 for rows that are not in it."""
        keys, order = self._sorted
        place = np.searchsorted(keys, self._keys(levels)).clip(max=len(keys) - 1)
        found = order[place]
        return np.where((self.levels[found] == levels).all(axis=1), found, -1)

    def find(self, points: Floats) -> NDArray[np.intp]:
        """Where configurations stand in the grid, ``[n]``; -1 for those that are not in it."""
        if len(points) == 0:
            return np.empty(0, dtype=np.intp)
        return self.lookup(self._to_levels(points))

    @cached_property
    def _offset(self) -> Floats:
        """What a column holds at level 0, ``[parameters]``."""
        found: Floats = np.nanmin(np.where(self.levels >= 0, self.points - self.levels, np.nan), axis=0)
        return found

    def _to_levels(self, points: Floats) -> Levels:
        return np.where(np.isnan(points), -1, np.rint(points - self._offset)).astype(np.intp)

    def neighbours(self, index: int, reach: int | None = None) -> NDArray[np.intp]:
        """Configurations that differ in one parameter, by at most ``reach`` levels (None: by any); their places.

        Where the change would make another parameter active or inactive there is no neighbour (``Space.moved`` has it).
        """
        row = self.levels[index]
        changed = []
        for j, top in enumerate(self.levels.max(axis=0)):
            others = np.delete(np.arange(top + 1), row[j]) if row[j] >= 0 else np.arange(0)
            if reach is not None:
                others = others[np.abs(others - row[j]) <= reach]
            block = np.repeat(row[None], len(others), axis=0)
            block[:, j] = others
            changed.append(block)
        found = self.lookup(np.concatenate(changed))
        return found[found >= 0]


def enumerate_grid(
    parameters: Mapping[str, Parameter],
    constraints: Sequence[Expression],
    conditions: Mapping[str, Expression],
    limit: int,
) -> Levels | None:
    """All rows of levels that meet the constraints, in lexicographic order; None if they are more than ``limit``.

    Parameters are added one at a time, those that constraints name first, and each constraint is asked as soon as its
    parameters are there, so that the rows in between stay few.

    Raises:
        UsageError: no configuration is left; it names the constraint after which that is so.
    """
    names = list(parameters)
    controls = {name: expression.names for name, expression in conditions.items()}
    order: list[str] = []
    for name in [*(n for c in sorted(constraints, key=lambda c: _span(c, parameters)) for n in names if n in c.names)]:
        order += [n for n in (*sorted(controls.get(name, ()), key=names.index), name) if n not in order]
    order += [n for n in names if n not in order and n not in conditions]
    order += [n for n in names if n not in order]

    levels = np.zeros((1, 0), dtype=np.int32)
    asked: set[str] = set()
    for position, name in enumerate(order):
        count = parameters[name].levels
        assert count is not None
        if len(levels) * count > 4 * limit:
            return None
        if len(asked) == len(constraints) and not conditions:
            left = np.prod([float(parameters[n].levels or 1) for n in order[position:]])
            if len(levels) * left > limit:
                return None
        added = np.tile(np.arange(count, dtype=np.int32), len(levels))
        levels = np.column_stack([np.repeat(levels, count, axis=0), added])
        known = order[: position + 1]
        if name in conditions:
            values = _values(parameters, known, levels, conditions[name].names)
            on = np.broadcast_to(conditions[name](values), len(levels)).astype(bool)
            levels = levels[on | (levels[:, -1] == 0)]
            on = on[on | (added == 0)]
            levels[~on, -1] = -1
        for constraint in constraints:
            if constraint.text in asked or not constraint.names <= set(known):
                continue
            asked.add(constraint.text)
            named = [known.index(n) for n in constraint.names]
            inactive = np.asarray((levels[:, named] < 0).any(axis=1))
            kept = inactive.copy()
            values = _values(parameters, known, levels[~inactive], constraint.names)
            kept[~inactive] = np.broadcast_to(constraint(values), int((~inactive).sum()))
            if not kept.any():
                raise UsageError(_contradiction(constraint, constraints, asked, parameters))
            levels = levels[kept]
    if len(levels) > limit:
        return None
    levels = levels[:, [order.index(n) for n in names]]
    return levels[np.lexsort(levels.T[::-1])].astype(np.intp)


def _values(
    parameters: Mapping[str, Parameter], known: Sequence[str], levels: NDArray[np.int32], wanted: frozenset[str]
) -> dict[str, NDArray[Any]]:
    found = {}
    for name in wanted:
        column = levels[:, known.index(name)].astype(np.intp)
        p = parameters[name]
        every = p.values(p.at(np.arange(p.levels or 0)))
        found[name] = every[column]
    return found


def _span(constraint: Expression, parameters: Mapping[str, Parameter]) -> float:
    return float(np.prod([parameters[n].levels or np.inf for n in constraint.names]))


def _contradiction(
    constraint: Expression, constraints: Sequence[Expression], asked: set[str], parameters: Mapping[str, Parameter]
) -> str:
    before = [c.text for c in constraints if c.text in asked and c.text != constraint.text]
    related = [c for c in before if Expression.parse(c, parameters).names & constraint.names]
    with_others = f" together with {' and '.join(map(repr, related))}" if related else ""
    return f"no configuration meets {constraint.text!r}{with_others}: the space is empty"
