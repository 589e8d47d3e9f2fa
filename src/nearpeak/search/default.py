"""The default: the method that suits the space.

A space that can be listed is searched over its table (``TableBayes``); any other by the reference loop.
"""

from dataclasses import dataclass, field

import numpy as np

from nearpeak.search.bayesian import Bayesian
from nearpeak.search.candidates import WHOLE_GRID
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.table_bayes import TableBayes


@dataclass
class Default:
    """What ``minimize`` uses unless it is told otherwise."""

    _table: TableBayes = field(default_factory=TableBayes, repr=False)
    _loop: Bayesian = field(default_factory=Bayesian, repr=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if space.grid is not None and len(space.grid.points) <= WHOLE_GRID:
            return self._table.propose(space, history, count, rng)
        return self._loop.propose(space, history, count, rng)
