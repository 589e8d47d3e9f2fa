"""What epsilon-greedy Bayesian optimization is made of: where the surrogate's mean is least, and the Pareto set of its
mean and uncertainty, a member of which is explored now and then.

No configuration has both a smaller mean and a larger standard deviation than a member of that set: EI and UCB choose
from it with fixed tastes, a random member has none.

De Ath, Everson, Rahat, Fieldsend: Greed Is Good: Exploration and Exploitation Trade-offs in Bayesian Optimisation,
ACM TELO 2021 (arXiv 1911.12809).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.search.candidates import WHOLE_GRID, maximize, unseen
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP, Posterior

_POOL: Final = 1_024
_GENERATIONS: Final = 4
_OFFSPRING: Final = 256


def greediest(space: Space, posterior: GP, history: History, rng: np.random.Generator) -> Floats:
    """The configuration with the least posterior mean, ``[width]``."""
    return maximize(space, lambda x: -posterior.expectation(x), history, rng)


def exploring(space: Space, posterior: Posterior, history: History, rng: np.random.Generator) -> Floats:
    """A random member of the Pareto set of mean (small) and standard deviation (large), ``[width]``.

    The set is that of all unseen configurations of a grid of up to ``WHOLE_GRID``; elsewhere it is approximated: a
    random sample, whose undominated members are changed and selected again for a few generations.
    """
    if space.grid is not None and len(space.grid.points) <= WHOLE_GRID:
        left = unseen(space, space.grid.points, history)
        front = left if len(left) else space.grid.points
        front = front[undominated(*posterior.predict(space.encode(front)))]
        return np.asarray(front[rng.integers(len(front))])
    front = space.sample(_POOL, rng)
    mean, sd = posterior.predict(space.encode(front))
    for generation in range(_GENERATIONS):
        kept = undominated(mean, sd)
        front, mean, sd = front[kept], mean[kept], sd[kept]
        children = space.moved(front[rng.integers(0, len(front), _OFFSPRING)], rng, 0.2 * 0.5**generation)
        born = posterior.predict(space.encode(children))
        front, mean, sd = np.vstack([front, children]), np.append(mean, born[0]), np.append(sd, born[1])
    front = front[undominated(mean, sd)]
    return np.asarray(front[rng.integers(len(front))])


def undominated(mean: Floats, sd: Floats) -> NDArray[np.intp]:
    """Rows of which no other has a smaller mean and a larger standard deviation, by growing mean."""
    order = np.lexsort((-sd, mean))
    record = np.maximum.accumulate(sd[order])
    first = np.append(True, sd[order][1:] > record[:-1])
    return np.asarray(order[first])


def expecting(space: Space, posterior: GP, history: History) -> GP:
    """The GP with pending configurations told at its mean there: the mean stays, the uncertainty about them goes."""
    if len(history.pending) == 0:
        return posterior
    x = space.encode(history.pending)
    return posterior.told(x, posterior.expectation(x))
