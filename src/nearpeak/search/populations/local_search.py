"""Searches from one configuration to its neighbours: local search and simulated annealing.

They cost almost nothing per suggestion and learn nothing but where they stand; where evaluations are cheaper than a
model they are the right choice, elsewhere they are what a model must beat. Where they stand follows from the history,
so that they resume from a log as all methods do.

Kirkpatrick, Gelatt, Vecchi: Optimization by Simulated Annealing, Science 1983.
"""

from dataclasses import dataclass

import numpy as np

from nearpeak.search.candidates import distinct, unseen
from nearpeak.search.history import History, matches
from nearpeak.search.parameters import Floats
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space

_TRIES = 32


@dataclass(frozen=True)
class LocalSearch:
    """A random unseen neighbour of the best configuration that still has one.

    Attributes:
        initial: random evaluations first. reach: of a step of a float, as a share of its range; it shrinks as
            evaluations pass without a better one.
    """

    initial: int = 10
    reach: float = 0.2

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if len(history) < self.initial or history.best is None:
            return RandomSearch().propose(space, history, count, rng)
        order = history.ranking
        reach = self.reach * 0.98 ** (len(history) - 1 - history.best)
        for row in order[: int(history.feasible.sum())]:
            near = space.moved(np.repeat(history.points[[row]], _TRIES * count, axis=0), rng, max(reach, 1e-4))
            near = unseen(space, distinct(near[~matches(near, history.points[row])]), history)
            if len(near) >= count:
                return near[rng.permutation(len(near))[:count]]
        return RandomSearch().propose(space, history, count, rng)


@dataclass(frozen=True)
class Annealing:
    """A walk that takes every better step, and a worse one with probability exp(-worse / temperature).

    Attributes:
        hot: temperature at first, as a share of the spread of the first values. cooling: factor an evaluation.
        initial: random evaluations first; the walk starts from their best. reach: of a step of a float.
    """

    hot: float = 0.5
    cooling: float = 0.97
    initial: int = 10
    reach: float = 0.2

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if len(history) < self.initial or history.best is None:
            return RandomSearch().propose(space, history, count, rng)
        here = history.points[[self.stands(history)]]
        for _ in range(_TRIES):
            near = unseen(space, distinct(space.moved(np.repeat(here, 4 * count, axis=0), rng, self.reach)), history)
            if len(near) >= count:
                return near[rng.permutation(len(near))[:count]]
            here = space.moved(here, rng, self.reach)
        return RandomSearch().propose(space, history, count, rng)

    def stands(self, history: History) -> int:
        """The evaluation at which the walk stands: its decisions are taken again with the search's seed."""
        values = history.losses
        first = values[: self.initial]
        here = int(np.argmin(first))
        known = first[np.isfinite(first)]
        temperature = self.hot * (float(np.std(known)) if len(known) > 1 else 1.0) + 1e-300
        draws = np.random.default_rng(history.seed).random(len(values))
        for i in range(self.initial, len(values)):
            worse = values[i] - values[here]
            if worse <= 0 or draws[i] < np.exp(-worse / temperature):
                here = i
            temperature *= self.cooling
        return here
