"""The methods by name: what `nearpeak tune --method` and ``minimize(method=...)`` take."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from nearpeak.errors import UnknownName
from nearpeak.search.loop import Method

METHODS: Final[dict[str, tuple[str, str, str]]] = {
    "default": ("default", "Default", "picks one from the space, the budget, the noise and the cost"),
    "table-bayes": ("table_bayes", "TableBayes", "a GP over every configuration of a grid, expected improvement"),
    "bayes": ("bayesian", "Bayesian", "the reference loop: a GP and log expected improvement"),
    "genetic": ("populations", "Genetic", "a genetic algorithm, one child at a time"),
    "differential-evolution": ("populations", "DifferentialEvolution", "differential evolution, one child at a time"),
    "annealing": ("local_search", "Annealing", "simulated annealing"),
    "local": ("local_search", "LocalSearch", "unseen neighbours of the best"),
    "random": ("random_search", "RandomSearch", "uniform, without repeats on a grid"),
}
"""Name: module of this room, class, what it is."""


def method_named(name: str) -> Method:
    """A method with its default settings.

    Raises:
        UnknownName: there is none of this name.
    """
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    module, kind, _ = METHODS[name]
    made: Callable[[], Any] = getattr(import_module(f"nearpeak.search.{module}"), kind)
    found: Method = made()
    return found
