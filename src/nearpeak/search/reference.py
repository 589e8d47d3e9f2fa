"""The reference loop: one GP, one maximizer, and every acquisition function by name, so that they can be compared.

    ei          expected improvement: the gain of the next evaluation, were it the last and without noise
    noisy-ei    the same where evaluations are noisy: the answer is an evaluated point (``noisy_improvement``)
    kg          knowledge gradient: the answer may be any configuration (``knowledge_gradient``)
    mes         max-value entropy search: nats told about the least value (``entropy_search``)
    ucb         the lower confidence bound

All work in batches and asynchronously (points that are being evaluated count with their mean). Those that are gains,
all but ``ucb``, take measured constraints (``constrained``); the knowledge gradient takes a fidelity, and then counts
by cost (``multi_fidelity``).

Frazier: A Tutorial on Bayesian Optimization, arXiv:1807.02811 (2018).
"""

from typing import Final

import numpy as np

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import Acquisition, confidence_bound, log_expected_improvement
from nearpeak.search.acquisitions.constrained import Constrained
from nearpeak.search.acquisitions.entropy_search import MaxValueEntropy
from nearpeak.search.acquisitions.knowledge_gradient import KnowledgeGradient
from nearpeak.search.acquisitions.noisy_improvement import NoisyImprovement
from nearpeak.search.bayesian import Bayesian, Preparation, Surrogate, gp_surrogate
from nearpeak.search.loop import Method
from nearpeak.search.problems import PROBLEMS
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.study import compare
from nearpeak.search.trials.multi_fidelity import Cost, MultiFidelity
from nearpeak.topic import Explanation, Option, Topic, names

ACQUISITIONS: Final[dict[str, Acquisition | Preparation]] = {
    "ei": log_expected_improvement,
    "noisy-ei": NoisyImprovement(),
    "kg": KnowledgeGradient(),
    "mes": MaxValueEntropy(),
    "ucb": confidence_bound,
}


def reference(
    acquisition: str = "ei",
    surrogate: Surrogate = gp_surrogate,
    *,
    constrained: bool = False,
    fidelity: str | None = None,
    cost: Cost | None = None,
) -> Bayesian:
    """The loop with one acquisition function.

    Args:
        acquisition: of ``ACQUISITIONS``. constrained: whether constraints are measured along with the value.
        fidelity: name of the parameter that is the fidelity. cost: of a fidelity; None: learned.

    Raises:
        UnknownName: no such acquisition function.
        UsageError: ``ucb`` with constraints, or a fidelity with anything but ``kg``.
    """
    if acquisition not in ACQUISITIONS:
        raise UnknownName("acquisition function", acquisition, ACQUISITIONS)
    chosen = ACQUISITIONS[acquisition]
    if fidelity is not None:
        if acquisition != "kg":
            raise UsageError(f"a fidelity needs the acquisition function kg, not {acquisition}: its gain is elsewhere")
        chosen = MultiFidelity(fidelity, cost)
    if constrained:
        if acquisition == "ucb":
            raise UsageError(
                "ucb is no gain that a probability could weigh: with constraints take ei, noisy-ei, kg or mes"
            )
        chosen = Constrained(chosen)
    return Bayesian(surrogate, chosen)


def _explain(
    problem: str, acquisitions: tuple[str, ...], noise: float, evaluations: int, seeds: int, batch: int
) -> Explanation:
    if problem not in PROBLEMS:
        raise UnknownName("problem", problem, PROBLEMS)
    asked = PROBLEMS[problem]
    known = [name for name in ACQUISITIONS if asked.constraints is None or name != "ucb"]
    methods: dict[str, Method] = {"random": RandomSearch()}
    for name in acquisitions or known:
        methods[name] = reference(name, constrained=asked.constraints is not None)
    found = compare(methods, [asked], seeds, evaluations, noise, batch)
    medians = dict(zip(methods, np.median(found.final[:, 0], axis=1), strict=True))
    ahead = [name for name, median in medians.items() if median < medians["random"]]
    return Explanation(
        {"optimum": asked.optimum, "winner": found.winners[0]},
        (found.table(),),
        (
            f"{found.winners[0]} has the least median regret on {problem} after {evaluations} evaluations, of {seeds} "
            "seeds.",
            f"Lower than random search in the median: {', '.join(ahead) or 'none'}.",
        ),
    )


TOPIC = Topic(
    "tutorial",
    "Which acquisition function finds the least value first?",
    "Frazier, A Tutorial on Bayesian Optimization, 2018 (arXiv 1807.02811)",
    (
        Option("problem", str, "A test problem.", "branin"),
        Option("acquisitions", names, "Acquisition functions between commas; none: all.", ()),
        Option("noise", float, "Standard deviation of an evaluation, as a share of the function's range.", 0.0),
        Option("evaluations", int, "Evaluations of a run.", 25),
        Option("seeds", int, "Runs.", 3),
        Option("batch", int, "Evaluations that start together.", 1),
    ),
    _explain,
    "--problem branin --acquisitions ei,noisy-ei --noise 0.05 --evaluations 20 --seeds 3",
)
