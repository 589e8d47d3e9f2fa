"""The methods by name: what `nearpeak tune --method` and ``minimize(method=...)`` take.

``SURROGATE/ACQUISITION`` is the reference loop with those two, ``deep-ensemble/kg``. A name is imported when it is
asked for, so that the list costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from nearpeak.errors import UnknownName
from nearpeak.search.loop import Method


@dataclass(frozen=True)
class Entry:
    """A method that can be made.

    Attributes:
        module: of this room. make: class or function there. about: what it is, in a line. options: what it is made
            with.
    """

    module: str
    make: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS: Final[Mapping[str, Entry]] = {
    "default": Entry("default", "Default", "what suits the space, the evaluations and their cost"),
    "table-bayes": Entry("table_bayes", "TableBayes", "a GP over every configuration of a grid, expected improvement"),
    "bayes": Entry("bayesian", "Bayesian", "the reference loop: a GP and log expected improvement"),
    "full-bayes": Entry("surrogates.marginalized", "default_method", "the same, hyperparameters marginalized by MCMC"),
    "thompson": Entry("strategies.thompson", "Thompson", "the minimum of a draw of the GP"),
    "shotgun": Entry("strategies.shotgun", "Shotgun", "batches scattered about the minimum of the mean"),
    "local-penalization": Entry("strategies.local_penalization", "LocalPenalization", "batches that keep apart"),
    "aegis": Entry("strategies.asynchronous", "Aegis", "greedy, Thompson and Pareto picks for workers that never wait"),
    "few-switches": Entry(
        "strategies.few_switches", "FewSwitches", "stays on a configuration while evaluations are noisy"
    ),
    "sparse-batches": Entry(
        "surrogates.sparse", "BudgetedBatches", "GP-UCB on a Nystrom sketch, for thousands of evaluations"
    ),
    "kernel-evolution": Entry("surrogates.kernel_evolution", "KernelEvolution", "a GP whose kernel evolves"),
    "in-context": Entry(
        "strategies.constrained_in_context", "ConstrainedInContext", "a transformer fitted to priors, no fit"
    ),
    "games": Entry(
        "strategies.games",
        "CombinatorialGames",
        "equilibria of a bound, a player a parameter, for huge discrete spaces",
    ),
    "graphs": Entry("strategies.graphs", "GraphBayes", "a GP on labelled graphs; parameters `a_to_b` are edges"),
    "regularized-evolution": Entry(
        "strategies.graphs", "RegularizedEvolution", "the oldest of a population of graphs dies"
    ),
    "halving": Entry(
        "trials.successive_halving", "SuccessiveHalving", "stops bad trials early; a parameter is `epochs`"
    ),
    "freeze-thaw": Entry(
        "trials.freeze_thaw", "FreezeThaw", "pauses and resumes trials by their curves; likewise `epochs`"
    ),
    "genetic": Entry("populations.steady_state", "Genetic", "a genetic algorithm, one child at a time"),
    "differential-evolution": Entry(
        "populations.steady_state", "DifferentialEvolution", "differential evolution, one child at a time"
    ),
    "annealing": Entry("populations.local_search", "Annealing", "simulated annealing"),
    "local": Entry("populations.local_search", "LocalSearch", "unseen neighbours of the best"),
    "random": Entry("random_search", "RandomSearch", "uniform, without repeats on a grid"),
}


def method_named(name: str) -> Method:
    """A method with its default settings.

    Raises:
        UnknownName: there is none of this name, or no such surrogate or acquisition function.
    """
    if "/" in name:
        return _pair(*name.split("/", 1))
    if name not in METHODS:
        raise UnknownName("method", name, METHODS, "(or SURROGATE/ACQUISITION, as gp/kg)")
    entry = METHODS[name]
    made: Method = getattr(import_module(f"nearpeak.search.{entry.module}"), entry.make)(**entry.options)
    return made


def _pair(surrogate: str, acquisition: str) -> Method:
    from nearpeak.search.reference import reference
    from nearpeak.search.surrogates.tournament import SURROGATES

    if surrogate not in SURROGATES:
        raise UnknownName("surrogate", surrogate, SURROGATES)
    return reference(acquisition, SURROGATES[surrogate])
