"""What can be chosen: integers, floats, ordered and unordered values, permutations and points of a simplex.

A parameter takes ``width`` columns of a configuration's row: the value of an integer or float, the index of an
ordinal's or categorical's value, the items of a permutation in their order, the weights of a simplex. Its features
are what surrogates see: numbers in [0, 1], close where configurations are alike.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError

Floats = NDArray[np.float64]
_SUM_TOLERANCE: Final = 1e-6


class Parameter(Protocol):
    """One thing to choose."""

    @property
    def width(self) -> int:
        """Columns of a row that it takes."""

    @property
    def levels(self) -> int | None:
        """How many values it has; None where they cannot be counted off (floats, permutations, simplexes)."""

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform draws, ``[n, width]``."""

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """Columns of the values with these indices, ``[n, 1]``; for parameters that have levels."""

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """A small random change of each row, ``[n, width]``; ``reach`` is the share of the range that it spans."""

    def features(self, columns: Floats) -> Floats:
        """What surrogates see, ``[n, f]`` in [0, 1]."""

    def values(self, columns: Floats) -> NDArray[Any]:
        """What expressions see: ``[n]`` values, or ``[n, width]``."""

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """Columns of a value that a person gives, ``[width]``.

        Raises:
            ValueError: it is none of the parameter's values.
        """

    def write(self, columns: Floats) -> Any:  # noqa: ANN401
        """The value of one row's columns, as a person gives it."""


@dataclass(frozen=True)
class Float:
    """A number between low and high; ``log`` where its size matters, not its difference."""

    low: float
    high: float
    log: bool = False
    width: int = 1
    levels: None = None

    def __post_init__(self) -> None:
        _check_range(self)

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform in its features."""
        return self.unscale(rng.random((n, 1)))

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """Floats have no levels."""
        raise UsageError("a Float has no levels to count off; use Integer or Ordinal")

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """A normal step of standard deviation ``reach`` in its features, reflected at the ends."""
        stepped = self.features(columns) + reach * rng.standard_normal(columns.shape)
        return self.unscale(reflected(stepped))

    def features(self, columns: Floats) -> Floats:
        """Its place between low and high."""
        return _scaled(columns, self.low, self.high, self.log)

    def unscale(self, features: Floats) -> Floats:
        """The inverse of ``features``."""
        return np.clip(_unscaled(features, self.low, self.high, self.log), self.low, self.high)

    def values(self, columns: Floats) -> NDArray[Any]:
        """The numbers."""
        return columns[:, 0]

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """The number itself."""
        if isinstance(value, bool) or not self.low <= (number := float(value)) <= self.high:
            raise ValueError(f"between {self.low:g} and {self.high:g}")
        return [number]

    def write(self, columns: Floats) -> float:
        """The number itself."""
        return float(columns[0])


@dataclass(frozen=True)
class Integer:
    """A whole number from low to high, both included; ``log`` where its size matters, not its difference."""

    low: int
    high: int
    log: bool = False
    width: int = 1

    def __post_init__(self) -> None:
        if int(self.low) != self.low or int(self.high) != self.high:
            raise UsageError(f"an Integer goes from one whole number to another, not from {self.low} to {self.high}")
        _check_range(self)

    @property
    def levels(self) -> int:
        """How many whole numbers there are."""
        return self.high - self.low + 1

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform over the numbers, or over their logarithms."""
        if self.log:
            low, high = float(np.log(self.low - 0.5)), float(np.log(self.high + 0.5))
            return np.asarray(np.clip(np.rint(np.exp(rng.uniform(low, high, (n, 1)))), self.low, self.high))
        return rng.integers(self.low, self.high + 1, (n, 1)).astype(float)

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """``low`` and the level above it."""
        return self.low + levels[:, None].astype(float)

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """A step of at least one, normal with ``reach`` in its features."""
        if self.low == self.high:
            return columns
        near = _unscaled(
            reflected(self.features(columns) + reach * rng.standard_normal(columns.shape)),
            self.low,
            self.high,
            self.log,
        )
        step = np.rint(near) - columns
        step = np.where(step == 0, rng.choice([-1.0, 1.0], columns.shape), step)
        moved = columns + step
        outside = (moved < self.low) | (moved > self.high)
        return np.clip(np.where(outside, columns - step, moved), self.low, self.high)

    def features(self, columns: Floats) -> Floats:
        """Its place between low and high."""
        return _scaled(columns, self.low, self.high, self.log)

    def unscale(self, features: Floats) -> Floats:
        """The whole number whose feature is nearest."""
        return np.clip(np.rint(_unscaled(features, self.low, self.high, self.log)), self.low, self.high)

    def values(self, columns: Floats) -> NDArray[Any]:
        """The numbers."""
        return columns[:, 0]

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """The number itself."""
        number = float(value)
        if isinstance(value, bool) or number != int(number) or not self.low <= number <= self.high:
            raise ValueError(f"whole, between {self.low} and {self.high}")
        return [number]

    def write(self, columns: Floats) -> int:
        """The number itself."""
        return round(float(columns[0]))


class _Listed:
    """What ordinals and categoricals share: values in a list, one column that holds the index."""

    choices: tuple[Any, ...]
    width = 1

    @property
    def levels(self) -> int:
        """How many values there are."""
        return len(self.choices)

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform over the values."""
        return rng.integers(0, self.levels, (n, 1)).astype(float)

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """The level is the index."""
        return levels[:, None].astype(float)

    def values(self, columns: Floats) -> NDArray[Any]:
        """The values: numbers as floats, anything else as it is; NaN or None where the parameter is inactive."""
        index = np.where(np.isnan(columns[:, 0]), self.levels, columns[:, 0]).astype(np.intp)
        if all(isinstance(c, Real) for c in self.choices):
            return np.asarray([*self.choices, np.nan], dtype=float)[index]
        known = np.empty(self.levels + 1, dtype=object)
        known[:-1] = [*self.choices]
        return np.asarray(known[index])

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """The index of the value."""
        if value not in self.choices:
            raise ValueError(f"one of {', '.join(map(str, self.choices))}")
        return [float(self.choices.index(value))]

    def write(self, columns: Floats) -> Any:  # noqa: ANN401
        """The value."""
        return self.choices[round(float(columns[0]))]

    def _check(self) -> None:
        if len(self.choices) == 0:
            raise UsageError(f"{type(self).__name__}(()) has no values: give at least one")
        if len(set(self.choices)) < len(self.choices):
            raise UsageError(f"{type(self).__name__} has a value twice: {self.choices}")


@dataclass(frozen=True)
class Ordinal(_Listed):
    """One of several values in an order: block sizes, bit widths."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        self._check()

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """To a value before or after it, mostly the next."""
        return Integer(0, self.levels - 1).moved(columns, rng, reach)

    def features(self, columns: Floats) -> Floats:
        """The place of the value in the order."""
        return columns / max(self.levels - 1, 1)

    def unscale(self, features: Floats) -> Floats:
        """The index whose feature is nearest."""
        return np.clip(np.rint(features * (self.levels - 1)), 0, self.levels - 1)


@dataclass(frozen=True)
class Categorical(_Listed):
    """One of several values with no order: layouts, algorithms."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        self._check()

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """To any other value."""
        if self.levels == 1:
            return columns
        return (columns + rng.integers(1, self.levels, columns.shape)) % self.levels

    def features(self, columns: Floats) -> Floats:
        """One column a value, so scaled that two values are one apart; one column where there are two values."""
        if self.levels <= 2:
            return columns
        return np.asarray((columns == np.arange(self.levels)) * np.sqrt(0.5))


@dataclass(frozen=True)
class Permutation:
    """An order of ``items`` things; a value is the list of their numbers from 0 in that order."""

    items: int
    levels: None = None

    def __post_init__(self) -> None:
        if self.items < 1:
            raise UsageError(f"a Permutation is of at least one thing, not {self.items}")

    @property
    def width(self) -> int:
        """One column a thing."""
        return self.items

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """All orders are as likely."""
        return np.argsort(rng.random((n, self.items)), axis=1).astype(float)

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """Permutations are not counted off."""
        raise UsageError("a Permutation is not counted off; list the orders in an Ordinal where they are few")

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """Two things change places."""
        if self.items == 1:
            return columns
        rows = np.arange(len(columns))
        first = rng.integers(0, self.items, len(columns))
        second = (first + rng.integers(1, self.items, len(columns))) % self.items
        moved = columns.copy()
        moved[rows, first], moved[rows, second] = columns[rows, second], columns[rows, first]
        return moved

    def features(self, columns: Floats) -> Floats:
        """The place of each thing."""
        return np.argsort(columns, axis=1) / max(self.items - 1, 1)

    def values(self, columns: Floats) -> NDArray[Any]:
        """The numbers of the things, ``[n, items]``."""
        return columns

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """The numbers of the things."""
        if sorted(value) != list(range(self.items)):
            raise ValueError(f"the numbers from 0 to {self.items - 1} in some order")
        return [float(v) for v in value]

    def write(self, columns: Floats) -> list[int]:
        """The numbers of the things."""
        return [round(c) for c in columns.tolist()]


@dataclass(frozen=True)
class Simplex:
    """Weights of ``parts`` things: not negative, and 1 together."""

    parts: int
    levels: None = None

    def __post_init__(self) -> None:
        if self.parts < 2:
            raise UsageError(f"a Simplex has at least two parts, not {self.parts}")

    @property
    def width(self) -> int:
        """One column a part."""
        return self.parts

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform over the simplex."""
        return rng.dirichlet(np.ones(self.parts), n)

    def at(self, levels: NDArray[np.intp]) -> Floats:
        """Points of a simplex are not counted off."""
        raise UsageError("a Simplex is not counted off")

    def moved(self, columns: Floats, rng: np.random.Generator, reach: float) -> Floats:
        """Some way towards a uniform draw, or from one part to another; never outside."""
        towards = self.draw(len(columns), rng)
        share = np.abs(reach * rng.standard_normal((len(columns), 1))).clip(max=1)
        return (1 - share) * columns + share * towards

    def features(self, columns: Floats) -> Floats:
        """The weights."""
        return columns

    def values(self, columns: Floats) -> NDArray[Any]:
        """The weights, ``[n, parts]``."""
        return columns

    def read(self, value: Any) -> ArrayLike:  # noqa: ANN401
        """The weights."""
        weights = np.asarray(value, dtype=float)
        if weights.shape != (self.parts,) or (weights < 0).any() or abs(weights.sum() - 1) > _SUM_TOLERANCE:
            raise ValueError(f"{self.parts} weights that are not negative and 1 together")
        return np.asarray(weights / weights.sum())

    def write(self, columns: Floats) -> list[float]:
        """The weights."""
        found: list[float] = columns.tolist()
        return found


def _check_range(parameter: Float | Integer) -> None:
    kind, low, high = type(parameter).__name__, parameter.low, parameter.high
    if not (np.isfinite(low) and np.isfinite(high)) or low > high or (kind == "Float" and low == high):
        raise UsageError(f"{kind}({low}, {high}) is empty: low must be below high, both finite")
    if parameter.log and low <= 0:
        raise UsageError(f"{kind}({low}, {high}, log=True): a logarithmic range starts above 0")


def _scaled(x: Floats, low: float, high: float, log: bool) -> Floats:
    if high == low:
        return np.zeros_like(x)
    if log:
        return np.asarray(np.log(x / low) / np.log(high / low))
    return np.asarray((x - low) / (high - low))


def _unscaled(unit: Floats, low: float, high: float, log: bool) -> Floats:
    return np.asarray(low * (high / low) ** unit if log else low + unit * (high - low))


def reflected(unit: Floats) -> Floats:
    """Numbers that left [0, 1], mirrored at its ends."""
    folded = np.abs(unit) % 2
    return np.asarray(np.minimum(folded, 2 - folded))
