"""Random search: what every method must beat."""

from dataclasses import dataclass

import numpy as np

from nearpeak.search.candidates import unseen
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space


@dataclass(frozen=True)
class RandomSearch:
    """Uniform draws that meet the constraints; of a grid without replacement, until nothing is left."""

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if space.grid is None:
            return space.sample(count, rng)
        left = unseen(space, space.grid.points, history)
        return left[rng.permutation(len(left))[:count]]
