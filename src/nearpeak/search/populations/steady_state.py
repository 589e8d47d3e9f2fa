"""Searches by a population of the best: a genetic algorithm and differential evolution, one child at a time.

The population is read off the history, so that they resume from a log as all methods do. Many objectives and whole
generations at once are ``multiobjective``.

Holland: Adaptation in Natural and Artificial Systems, 1975. Storn, Price: Differential Evolution, J. Global
Optimization 1997.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.candidates import distinct, unseen
from nearpeak.search.history import History
from nearpeak.search.parameters import Float, Floats, Integer, Ordinal, reflected
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space

_TRIES = 64


@dataclass(frozen=True)
class Genetic:
    """Steady state: each child of two parents, chosen by tournament among the best, replaces the worst of them.

    Attributes:
        population: the best configurations that breed. tournament: of how many the best is a parent. mutation:
            probability that a child is changed in one parameter besides. reach: of a change of a float.
    """

    population: int = 20
    tournament: int = 3
    mutation: float = 0.7
    reach: float = 0.1

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if len(history) < self.population or history.feasible.sum() < 2:
            return RandomSearch().propose(space, history, count, rng)
        order = history.ranking
        best = history.points[order[: min(self.population, int(history.feasible.sum()))]]
        first, second = (
            best[rng.integers(0, len(best), (_TRIES * count, self.tournament)).min(axis=1)] for _ in range(2)
        )
        children = crossed(space, first, second, rng.random((len(first), len(space.parameters))) < 0.5)
        mutated = (rng.random(len(children)) < self.mutation)[:, None]
        return _fresh(space, history, np.where(mutated, space.moved(children, rng, self.reach), children), count, rng)


@dataclass(frozen=True)
class DifferentialEvolution:
    """rand/1/bin: each member of the population in turn is challenged by ``a + weight (b - c)`` crossed with it.

    Attributes:
        population: members. weight: of a difference. crossover: probability that a parameter is the challenger's.
    """

    population: int = 15
    weight: float = 0.7
    crossover: float = 0.8

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if len(history) < self.population:
            return RandomSearch().propose(space, history, count, rng)
        members = history.points[self.members(history)]
        turn = (len(history) + len(history.pending) + np.arange(_TRIES * count) // _TRIES) % self.population
        a, b, c = (members[rng.integers(0, self.population, len(turn))] for _ in range(3))
        trial = shifted(space, a, self.weight * (rng.random((len(turn), 1)) + 0.5), b, c)
        theirs = rng.random((len(turn), len(space.parameters))) < self.crossover
        theirs[np.arange(len(turn)), rng.integers(0, len(space.parameters), len(turn))] = True
        return _fresh(space, history, crossed(space, trial, members[turn], theirs), count, rng)

    def members(self, history: History) -> NDArray[np.intp]:
        """The evaluation that each member of the population is: the better of itself and its last challenger."""
        values = history.losses
        found = np.arange(self.population)
        for i in range(self.population, len(values)):
            slot = i % self.population
            if values[i] <= values[found[slot]]:
                found[slot] = i
        return found


def crossed(space: Space, first: Floats, second: Floats, from_first: NDArray[np.bool_]) -> Floats:
    """Children that take each parameter whole from one of two parents, ``[n, width]``; ``from_first`` is
    ``[n, parameters]``.
    """
    widths = [p.width for p in space.parameters.values()]
    return space.activated(np.where(np.repeat(from_first, widths, axis=1), first, second))


def shifted(space: Space, a: Floats, weight: Floats, b: Floats, c: Floats) -> Floats:
    """``a + weight (b - c)`` in the features of numbers and ordinals; other parameters are a's, or b's where b and c
    differ in them.
    """
    found = a.copy()
    for name, p in space.parameters.items():
        s = space.columns[name]
        if isinstance(p, (Float, Integer, Ordinal)):
            unit = p.features(a[:, s]) + weight * (p.features(b[:, s]) - p.features(c[:, s]))
            found[:, s] = p.unscale(reflected(unit))
        else:
            differ = (b[:, s] != c[:, s]).any(axis=1, keepdims=True)
            found[:, s] = np.where(differ, b[:, s], a[:, s])
    return space.activated(np.where(np.isnan(found), a, found))


def _fresh(space: Space, history: History, children: Floats, count: int, rng: np.random.Generator) -> Floats:
    """The first children that meet the constraints and are new, and random ones where they do not suffice."""
    good = unseen(space, children[space.holds(children)], history)
    good = distinct(good)[:count]
    if len(good) == count:
        return good
    more = RandomSearch().propose(space, history.waiting_for(good), count - len(good), rng)
    return np.vstack([good, more])
