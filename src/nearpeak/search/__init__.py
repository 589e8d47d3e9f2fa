"""The optimizer: which configuration is best, in as few and as cheap evaluations as possible.

Here live spaces of configurations (``space``), what was seen of them (``history``), the loop that asks a method what
to try next (``loop``, ``tune``), the reference method (``bayesian``), that of tables (``table_bayes``) and the default
that picks one (``default``). What methods are made of has rooms of its own: beliefs (``surrogates``), what an
evaluation is worth (``acquisitions``), other ways to choose (``strategies``), evaluations that can be cheaper than
whole (``trials``), evolution and walks (``populations``), and problems that cost nothing to evaluate (``solvers``).

A method is a function of what has been seen: ``propose(space, history, count, rng) -> points``. It may keep caches,
but a fresh one with the same history and generator proposes the same, so that a search resumes from its log exactly.

Nothing in this room knows of GPUs, models or Setups. Probability models that are of use beyond search live in
``inference``; the command is ``cli``.

    from nearpeak.search import Integer, Ordinal, Space, minimize

    space = Space({"tile": Ordinal((16, 32, 64)), "unroll": Integer(1, 8)}, constraints=("tile % unroll == 0",))
    found = minimize(lambda c: run(**c), space, budget=100)
"""

from nearpeak.search.history import History
from nearpeak.search.loop import Search, minimize
from nearpeak.search.space import Categorical, Float, Integer, Ordinal, Permutation, Simplex, Space

__all__ = [
    "Categorical",
    "Float",
    "History",
    "Integer",
    "Ordinal",
    "Permutation",
    "Search",
    "Simplex",
    "Space",
    "minimize",
]
