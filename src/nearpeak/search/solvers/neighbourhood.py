"""Neighbourhoods of a solution of an integer program: what is left to decide when most of it is kept.

Each operator makes of a state a smaller or tighter program for the solver, or None where it has nothing to offer:

- mutation: a random share of the whole variables keeps its values (Rothberg, INFORMS J. Computing 19, 2007).
- crossover: variables on which the current solution and another one agree keep them (the same).
- RINS: a share of those on which the solution and the linear relaxation agree (Danna, Rothberg and Le Pape,
  Math. Prog. 102, 2005).
- RENS: every variable stays between the floor and the ceiling of the relaxation (Berthold, Math. Prog. Comp. 6, 2014).
- DINS: what differs by half or more from the relaxation may move no farther away from it than it is; binaries that the
  root relaxation and the solution agree on are kept (Ghosh, IPCO 2007).
- local branching: at most a share of the binaries flips, sum |x_j - x*_j| <= k (Fischetti and Lodi, Math. Prog. 98,
  2003).
- proximity: the nearest solution that is better by a share of the gap (Fischetti and Monaci, J. Heuristics 20, 2014).
- random objective: any corner, to leave where the others are stuck (Cai, Kadioglu and Dilkina, IJCAI 2025).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.solvers.integer_program import IntegerProgram

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class State:
    """Where a search stands.

    Attributes:
        program: what is solved. relaxation: ``[n]``, of the linear program; bound: its value.
        current: ``[n]``, the solution whose neighbourhood is searched. pool: others that were found, ``[k, n]``.
    """

    program: IntegerProgram
    relaxation: Array
    bound: float
    current: Array
    pool: Array


Operator = Callable[[State, np.random.Generator], IntegerProgram | None]


def fixed(program: IntegerProgram, x: Array, keep: Mask) -> IntegerProgram | None:
    """The program with the variables ``keep [n]`` at their values in ``x``; None if that keeps all or nothing."""
    keep = keep & program.integer
    if not keep.any() or keep.sum() == program.integer.sum():
        return None
    return replace(program, lower=np.where(keep, x, program.lower), upper=np.where(keep, x, program.upper))


def mutation(state: State, rng: np.random.Generator, share: float) -> IntegerProgram | None:
    """A random ``share`` of the whole variables keeps its values."""
    whole = np.flatnonzero(state.program.integer)
    keep = np.zeros(state.current.size, bool)
    keep[rng.choice(whole, int(share * whole.size), replace=False)] = True
    return fixed(state.program, state.current, keep)


def crossover(state: State, rng: np.random.Generator) -> IntegerProgram | None:
    """What the current solution and a random other one agree on is kept."""
    others = state.pool[(state.pool != state.current).any(axis=1)]
    if not len(others):
        return None
    return fixed(state.program, state.current, _equal(state.current, rng.choice(others)))


def rins(state: State, rng: np.random.Generator, share: float) -> IntegerProgram | None:
    """A random ``share`` of what the current solution and the relaxation agree on is kept."""
    agreed = np.flatnonzero(_equal(state.current, state.relaxation) & state.program.integer)
    keep = np.zeros(state.current.size, bool)
    keep[rng.choice(agreed, int(share * agreed.size), replace=False)] = True
    return fixed(state.program, state.current, keep)


def rens(state: State, rng: np.random.Generator) -> IntegerProgram | None:
    """Every whole variable stays at the floor or the ceiling of the relaxation."""
    whole = state.program.integer
    low, high = np.floor(state.relaxation + 1e-6), np.ceil(state.relaxation - 1e-6)
    lower = np.where(whole, np.maximum(low, state.program.lower), state.program.lower)
    upper = np.where(whole, np.minimum(high, state.program.upper), state.program.upper)
    return replace(state.program, lower=lower, upper=upper) if (lower < upper)[whole].any() else None


def dins(state: State, rng: np.random.Generator) -> IntegerProgram | None:
    """No variable moves farther from the relaxation than it is now; those nearer than a half are kept."""
    program, away = state.program, np.abs(state.current - state.relaxation)
    near = (away < 0.5) & program.integer
    low, high = np.ceil(state.relaxation - away - 1e-6), np.floor(state.relaxation + away + 1e-6)
    narrowed = replace(
        program,
        lower=np.where(program.integer & ~near, np.maximum(low, program.lower), program.lower),
        upper=np.where(program.integer & ~near, np.minimum(high, program.upper), program.upper),
    )
    return fixed(narrowed, state.current, near)


def local_branching(state: State, rng: np.random.Generator, share: float) -> IntegerProgram | None:
    """At most a ``share`` of the binaries that are 1 now may change, as flips counted in both directions."""
    if not state.program.binary.any():
        return None
    distance, ones = _hamming(state)
    return state.program.with_row(distance, -np.inf, max(2.0, np.floor(2 * share * ones)) - ones)


def proximity(state: State, rng: np.random.Generator, share: float) -> IntegerProgram | None:
    """The solution with fewest flips among those that close a ``share`` of the gap to the relaxation."""
    program, value = state.program, state.program.value(state.current)
    if not program.binary.any() or value - state.bound < 1e-9 * max(1.0, abs(value)):
        return None
    target = value - share * (value - state.bound) - program.offset
    distance, ones = _hamming(state)
    return replace(program.with_row(program.cost, -np.inf, target), cost=distance, offset=float(ones))


def random_objective(state: State, rng: np.random.Generator) -> IntegerProgram | None:
    """The same constraints under costs drawn at random."""
    return replace(state.program, cost=rng.uniform(-1, 1, state.current.size) * state.program.integer, offset=0.0)


def _equal(a: Array, b: Array) -> Mask:
    return np.asarray(np.abs(a - b) < 1e-6)


def _hamming(state: State) -> tuple[Array, float]:
    """Coefficients of the flips from the current solution, and how many binaries are 1 in it (their constant)."""
    up = state.program.binary & (state.current > 0.5)
    return np.where(up, -1.0, 1.0) * state.program.binary, float(up.sum())


OPERATORS: Final[dict[str, Operator]] = {
    "mutation-25": partial(mutation, share=0.25),
    "mutation-50": partial(mutation, share=0.5),
    "mutation-75": partial(mutation, share=0.75),
    "mutation-90": partial(mutation, share=0.9),
    "crossover": crossover,
    "rins-25": partial(rins, share=0.25),
    "rins-50": partial(rins, share=0.5),
    "rins-75": partial(rins, share=0.75),
    "rens": rens,
    "dins": dins,
    "local-branching-10": partial(local_branching, share=0.10),
    "local-branching-25": partial(local_branching, share=0.25),
    "local-branching-50": partial(local_branching, share=0.5),
    "proximity-05": partial(proximity, share=0.05),
    "proximity-15": partial(proximity, share=0.15),
    "proximity-30": partial(proximity, share=0.30),
    "random-objective": random_objective,
}
"""The arms, by name; a number is the share in percent."""
