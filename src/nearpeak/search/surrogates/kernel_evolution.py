"""Kernels that evolve while the search runs: context-aware kernel evolution (CAKE) and its ranking of kernels (BAKER).

A population of kernel expressions (``kernel_expressions``) is bred as observations come in. Two parents are crossed
and the child mutated by an operator: a random grammar, or a language model that is shown the expressions and their
fitness and writes new ones. Fitness is the Bayesian information criterion. The next point is chosen by all that
survive: each kernel k proposes its own maximiser of expected improvement, and the one of largest

    w_k EI_k(x_k),    w_k = exp(-BIC_k / 2) / sum_j exp(-BIC_j / 2)

is evaluated: a kernel must both explain what was seen and promise something.

Suwandi, Yin, Wang, Cui, Cheng, Zhang: Adaptive Kernel Design for Bayesian Optimization Is a Piece of CAKE with LLMs,
arXiv:2509.17998 (2025).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_softmax

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import log_expected_improvement
from nearpeak.search.bayesian import Bayesian, incumbent, opening
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.problems import Problem
from nearpeak.search.space import Space
from nearpeak.search.study import compare, cube
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.kernel_expressions import (
    BASES,
    FACTORS,
    TERMS,
    Base,
    Expression,
    Fitted,
    fit,
    parse,
    write,
)
from nearpeak.search.surrogates.tournament import rbf_surrogate
from nearpeak.topic import Explanation, Option, Table, Topic

Operator = Callable[[Sequence[tuple[str, float]], int, int, np.random.Generator], list[str]]
"""Of the population (expressions and their BIC, the best first), the number of inputs, how many children are wanted and
a generator: new expressions as text."""


def grammar(population: Sequence[tuple[str, float]], inputs: int, count: int, rng: np.random.Generator) -> list[str]:
    """Children by chance: parents are drawn by rank, crossed, and half of the children mutated."""
    parents = [parse(text, inputs) for text, _ in population]
    chance = 1.0 / np.arange(1, len(parents) + 1)
    found = []
    for _ in range(count):
        a, b = (parents[i] for i in rng.choice(len(parents), 2, p=chance / chance.sum()))
        child = _crossed(a, b, rng)
        found.append(write(_mutated(child, inputs, rng) if child in parents or rng.random() < 0.5 else child))
    return found


def _crossed(a: Expression, b: Expression, rng: np.random.Generator) -> Expression:
    """Some products of each parent, or one product of a times one of b among those of a."""
    if rng.random() < 0.5:
        i, factor = rng.integers(len(a)), b[rng.integers(len(b))]
        if len(a[i]) + len(factor) <= FACTORS:
            return _tidy((*a[:i], (*a[i], *factor), *a[i + 1 :]), len(a))
    kept = [term for term in (*a, *b) if rng.random() < 0.6] or [a[0]]
    return _tidy(tuple(kept), max(len(a), len(b), TERMS))


def _mutated(expression: Expression, inputs: int, rng: np.random.Generator) -> Expression:
    """One change: a product added, multiplied by a base kernel, one of its factors exchanged, or it dropped."""
    i, new = int(rng.integers(len(expression))), _base(inputs, rng)
    term, rest = expression[i], (*expression[:i], *expression[i + 1 :])
    change = rng.integers(4)
    if change == 0 and len(expression) < max(TERMS, inputs):
        return _tidy((*expression, (new,)), max(TERMS, inputs))
    if change == 1 and len(term) < FACTORS:
        return _tidy((*rest, (*term, new)), max(TERMS, inputs))
    if change == 2 and rest:
        return rest
    j = int(rng.integers(len(term)))
    return _tidy((*rest, (*term[:j], new, *term[j + 1 :])), max(TERMS, inputs))


def _base(inputs: int, rng: np.random.Generator) -> Base:
    kind = list(BASES)[rng.integers(len(BASES))]
    everywhere = BASES[kind].wide and inputs > 1 and rng.random() < 0.3
    return Base(kind, None if everywhere else int(rng.integers(inputs)))


def _tidy(expression: Expression, most: int) -> Expression:
    """Without repeated products."""
    unique = dict.fromkeys(tuple(sorted(term, key=str)) for term in expression)
    return tuple(unique)[:most]


def prompt(population: Sequence[tuple[str, float]], inputs: int, count: int) -> str:
    """What a language model is asked."""
    ranked = "\n".join(f"{text}    (BIC {bic:.1f})" for text, bic in population)
    return (
        "You design covariance functions of Gaussian processes for Bayesian optimization.\n"
        f"Inputs are x0 to x{inputs - 1}, in [0, 1]. Base kernels: se, m32, m52, rq (of one input as se(x0), or of all "
        "as se(x)), per, lin (of one input). Join them by + and *.\n"
        f"The population, the best first (a smaller BIC is better):\n{ranked}\n"
        f"Cross and mutate them. Write {count} new kernels, one a line, nothing else."
    )


def language_model(complete: Callable[[str], str], otherwise: Operator = grammar) -> Operator:
    """An operator that asks a language model; what of its reply is no kernel is made up for by ``otherwise``.

    Args:
        complete: text to its completion. A search resumes exactly only if equal prompts give equal replies.
    """

    def operator(
        population: Sequence[tuple[str, float]], inputs: int, count: int, rng: np.random.Generator
    ) -> list[str]:
        found = []
        for line in complete(prompt(population, inputs, count)).splitlines():
            try:
                found.append(write(parse(line, inputs)))
            except UsageError:
                continue
        found = found[:count]
        return found + otherwise(population, inputs, count - len(found), rng)

    return operator


def founders(inputs: int) -> list[str]:
    """The first population: every base kernel of all inputs, and sums of one base kernel over the inputs."""
    wide = [f"{kind}(x)" for kind in ("se", "m52", "rq")]
    return wide + [" + ".join(f"{kind}(x{i})" for i in range(inputs)) for kind in ("se", "per", "lin")]


@dataclass(frozen=True)
class KernelEvolution:
    """Bayesian optimization with evolving kernels.

    The population after n evaluations follows from the one after fewer and from the data alone, so that a fresh object
    arrives at the same one.

    Attributes:
        operator: makes children. survivors: kernels kept. children: of a generation. every: evaluations between two
            generations. initial: evaluations before the first; None: twice the parameters and two.
    """

    operator: Operator = grammar
    survivors: int = 4
    children: int = 4
    every: int = 4
    initial: int | None = None
    _known: dict[bytes, tuple[Fitted, ...]] = field(default_factory=dict, repr=False, compare=False)

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        ranked = self.population(space, history)
        good = history.succeeded
        x, y = space.encode(history.points[good]), history.values[good]
        chosen = np.empty((0, space.width))
        for _ in range(count):
            point = self._best(
                space, history, [(kernel, self._gp(kernel, x, y, space, history)) for kernel in ranked], rng
            )
            chosen = np.vstack([chosen, point[None]])
            history = history.waiting_for(point[None])
        return chosen

    def _gp(self, kernel: Fitted, x: Floats, y: Floats, space: Space, history: History) -> GP:
        """The posterior; points that are being evaluated count with its mean."""
        gp = kernel.gp(x, y)
        if len(history.pending) == 0:
            return gp
        waiting = space.encode(history.pending)
        return gp.told(waiting, gp.predict(waiting)[0])

    def _best(
        self, space: Space, history: History, kernels: Sequence[tuple[Fitted, GP]], rng: np.random.Generator
    ) -> Floats:
        """The proposal of largest weight times expected improvement among those of all kernels that count."""
        weights = log_softmax([-0.5 * kernel.bic for kernel, _ in kernels])
        found: list[tuple[float, Floats]] = []
        for log_weight, (_, gp) in zip(weights, kernels, strict=True):
            if log_weight < weights.max() - 5:
                continue
            best = incumbent(space, history, gp)

            def score(x: Floats, gp: GP = gp, best: float = best) -> Floats:
                return log_expected_improvement(gp, x, best)

            point = maximize(space, score, history, rng)
            found.append((float(log_weight + score(space.encode(point[None]))[0]), point))
        return max(found, key=lambda pair: pair[0])[1]

    def population(self, space: Space, history: History) -> tuple[Fitted, ...]:
        """The kernels that survive the evaluations seen, the best first, fitted to all that succeeded."""
        first = self.initial or 2 * len(space.parameters) + 2
        begun = max(first, int(np.argmax(history.succeeded.cumsum() >= 2)) + 1)
        generations = max(len(history) - begun, 0) // self.every
        last = self._generation(space, history, begun, generations)
        good = history.succeeded
        x, y = space.encode(history.points[good]), history.values[good]
        rng = np.random.default_rng([history.seed, len(history)])
        return _ranked(fit(kernel.expression, x, y, rng, kernel.theta, iterations=8) for kernel in last)

    def _generation(self, space: Space, history: History, begun: int, number: int) -> tuple[Fitted, ...]:
        """The population of a generation: bred from the one before with what had been seen by then."""
        seen = begun + number * self.every
        points, values = history.points[:seen], history.values[:seen]
        key = np.array([history.seed]).tobytes() + points.tobytes() + values.tobytes()
        if key not in self._known:
            good = np.isfinite(values)
            x, y = space.encode(points[good]), values[good]
            rng = np.random.default_rng([history.seed, number])
            if number == 0:
                kept: list[Fitted] = []
                children = founders(x.shape[1])
            else:
                before = self._generation(space, history, begun, number - 1)
                kept = [fit(kernel.expression, x, y, rng, kernel.theta) for kernel in before]
                ranked = [(write(kernel.expression), kernel.bic) for kernel in _ranked(kept)]
                children = self.operator(ranked, x.shape[1], self.children, rng)
            present = {write(kernel.expression) for kernel in kept}
            new = [text for text in dict.fromkeys(children) if text not in present]
            kept += [fit(parse(text, x.shape[1]), x, y, rng) for text in new]
            self._known[key] = _ranked(kept)[: self.survivors]
        return self._known[key]


def _ranked(kernels: Iterable[Fitted]) -> tuple[Fitted, ...]:
    return tuple(sorted(kernels, key=lambda kernel: kernel.bic))


# What it is compared on: functions with a structure that a kernel can say.


def cycle(x: Floats) -> Floats:
    """A cycle of a seventh of the range with a slow trend, two inputs."""
    return np.asarray(np.sin(14 * np.pi * x[:, 0]) + 2 * (x[:, 0] - 0.7) ** 2 + (x[:, 1] - 0.3) ** 2)


def additive(x: Floats) -> Floats:
    """A sum of four functions of one input each."""
    own = (np.sin(7 * x[:, 0]), 3 * (x[:, 1] - 0.2) ** 2, np.cos(9 * x[:, 2]) * 0.8, np.abs(x[:, 3] - 0.6))
    return np.asarray(sum(own))


def modulated(x: Floats) -> Floats:
    """A cycle whose height grows with another input."""
    return np.asarray((0.2 + x[:, 1]) * np.cos(10 * np.pi * x[:, 0]) + 0.5 * x[:, 0])


def rastrigin(x: Floats) -> Floats:
    """A bowl full of wells, [-2.56, 2.56]^3, its bottom off the centre."""
    z = 5.12 * (x - 0.5) - 0.3
    return np.asarray((z * z - 5 * np.cos(2 * np.pi * z) + 5).sum(1) / 10)


def _least(function: Callable[[Floats], Floats], dimension: int) -> float:
    """The least value: a fine grid of what separates, so that one input at a time can be searched."""
    best = np.full(dimension, 0.5)
    for step in (1.0, 0.05, 2e-3, 1e-4):
        for _ in range(3):
            for j in range(dimension):
                line = np.tile(best, (2001, 1))
                line[:, j] = np.clip(best[j] + step * np.linspace(-1, 1, 2001), 0, 1)
                best = line[np.argmin(function(line))]
    return float(function(best[None])[0])


STRUCTURED = {
    name: Problem(name, dimension, function, _least(function, dimension), 4.0)
    for name, dimension, function in (
        ("cycle", 2, cycle),
        ("additive", 4, additive),
        ("modulated", 2, modulated),
        ("rastrigin-3", 3, rastrigin),
    )
}


def _explain(problem: str, evaluations: int, seeds: int) -> Explanation:
    if problem not in STRUCTURED:
        raise UnknownName("problem", problem, STRUCTURED)
    own = STRUCTURED[problem]
    if evaluations <= 2 * own.dimension + 2 or seeds < 1:
        raise UsageError(
            f"take more than {2 * own.dimension + 2} evaluations and a seed, not {evaluations} and {seeds}"
        )
    evolved = KernelEvolution()
    study = compare(
        {"evolved": evolved, "rbf": Bayesian(rbf_surrogate), "matern-5/2": Bayesian()}, [own], seeds, evaluations
    )
    space = cube(own.dimension)
    points = space.sample(evaluations, np.random.default_rng(0))
    kept = evolved.population(space, History.of(points, own.function(points)))
    regret = {name: float(np.median(r)) for name, r in zip(study.methods, study.final[:, 0], strict=True)}
    return Explanation(
        {"kernel": write(kept[0].expression), **{f"regret_{n.replace('-5/2', '')}": r for n, r in regret.items()}},
        (
            study.table(),
            Table.of(
                f"Kernels that survive {evaluations} random evaluations",
                kernel=[write(k.expression) for k in kept],
                bic=[k.bic for k in kept],
            ),
        ),
        (
            f"After {evaluations} evaluations evolved kernels leave a median regret of {regret['evolved']:.3g}, fixed "
            f"ones {regret['rbf']:.3g} (squared exponential) and {regret['matern-5/2']:.3g} (Matern).",
        ),
    )


TOPIC = Topic(
    "kernel-evolution",
    "What does a Gaussian process gain whose kernel evolves with the data?",
    "Suwandi et al., Adaptive Kernel Design for Bayesian Optimization Is a Piece of CAKE with LLMs, 2025 "
    "(arXiv 2509.17998)",
    (
        Option("problem", str, "One of cycle, additive, modulated, rastrigin-3.", "cycle"),
        Option("evaluations", int, "Of each search.", 25),
        Option("seeds", int, "Searches of each method.", 1),
    ),
    _explain,
    "--problem cycle --evaluations 25 --seeds 2",
)
