"""Bayesian optimization over labelled graphs: cells of a network, pipelines of operators.

A space describes graphs by the names of its parameters. ``a_to_b`` with the values 0 and 1 (or false and true) is an
edge from node a to node b; a categorical or ordinal parameter that is named as a node holds its label; a node without
one is labelled with its own name (input, output). Nodes that are on no way from an input to an output do no work and
are left out, so that configurations that differ in them are one graph.

The surrogate is a Gaussian process on Weisfeiler-Lehman features (``weisfeiler_lehman``). Expected improvement is
maximised over random graphs and mutants of the best, and mutants with good motifs are preferred: of a surplus, those
stay that hold the most of the quarter of motifs which lower the posterior mean most, less those of the worst quarter.

Ru, Wan, Dong, Osborne: Interpretable Neural Architecture Search via Bayesian Optimisation with Weisfeiler-Lehman
Kernels, ICLR 2021. Real, Aggarwal, Huang, Le: Regularized Evolution for Image Classifier Architecture Search, AAAI
2019.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import log_expected_improvement
from nearpeak.search.bayesian import opening
from nearpeak.search.candidates import unseen
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Categorical, Floats, Integer, Ordinal
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.study import run, tabled
from nearpeak.search.surrogates.weisfeiler_lehman import Graphs, Motifs, Subtrees, fit, motifs, subtrees
from nearpeak.topic import Explanation, Option, Table, Topic, names

_JOINT: Final = "_to_"


@dataclass(frozen=True)
class GraphSpace:
    """The graphs that a space describes.

    Raises:
        UsageError: the space has no edges, an edge is neither 0 nor 1, or all edges together make a cycle.
    """

    space: Space

    def __post_init__(self) -> None:
        if not self.edges:
            raise UsageError(
                "a space of graphs needs parameters named a_to_b with the values 0 and 1, the edges from node a to b; "
                f"parameters are {', '.join(self.space.parameters)}"
            )
        for name in self.edges:
            p = self.space.parameters[name]
            ends = (p.low, p.high) if isinstance(p, Integer) else getattr(p, "choices", None)
            if ends != (0, 1):
                raise UsageError(f"{name} is an edge: its values must be 0 and 1 (or false and true), not {ends}")
        _ = self.nodes

    @cached_property
    def edges(self) -> dict[str, tuple[str, str]]:
        """The nodes that each edge joins, by its parameter."""
        return {n: (n.split(_JOINT)[0], n.split(_JOINT)[1]) for n in self.space.parameters if n.count(_JOINT) == 1}

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The nodes, each after those that may feed it."""
        before: dict[str, set[str]] = {}
        for a, b in self.edges.values():
            before.setdefault(a, set())
            before.setdefault(b, set()).add(a)
        order: list[str] = []
        while len(order) < len(before):
            ready = [node for node, needs in before.items() if node not in order and needs <= set(order)]
            if not ready:
                raise UsageError(f"edges among {', '.join(n for n in before if n not in order)} make a cycle")
            order += ready
        return tuple(order)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label that a node can have."""
        found: list[str] = []
        for node in self.nodes:
            found += map(str, getattr(self.space.parameters.get(node), "choices", (node,)))
        return tuple(dict.fromkeys(found))

    def graphs(self, points: Floats) -> Graphs:
        """The graphs of configurations ``[n, width]``, without nodes that do no work."""
        v, place = len(self.nodes), {node: i for i, node in enumerate(self.nodes)}
        edges, possible = np.zeros((len(points), v, v), dtype=bool), np.zeros((v, v), dtype=bool)
        for name, (a, b) in self.edges.items():
            edges[:, place[a], place[b]] = np.nan_to_num(points[:, self.space.columns[name].start]) > 0.5
            possible[place[a], place[b]] = True
        labels = np.empty((len(points), v), dtype=np.intp)
        for node, i in place.items():
            choices = getattr(self.space.parameters.get(node), "choices", None)
            if choices is None:
                labels[:, i] = self.labels.index(node)
                continue
            known = np.asarray([self.labels.index(str(c)) for c in choices], dtype=np.intp)
            labels[:, i] = known[np.nan_to_num(points[:, self.space.columns[node].start]).astype(np.intp)]
        fed, used = np.tile(~possible.any(axis=0), (len(points), 1)), np.tile(~possible.any(axis=1), (len(points), 1))
        for i in range(v):
            fed[:, i] |= (edges[:, :, i] & fed).any(axis=1)
        for i in range(v - 1, -1, -1):
            used[:, i] |= (edges[:, i] & used).any(axis=1)
        works = fed & used & (edges.any(axis=1) | edges.any(axis=2))
        return Graphs(np.where(works, labels, -1), edges & works[:, :, None] & works[:, None, :], self.labels)


@dataclass(frozen=True)
class GraphBayes:
    """Expected improvement of a Gaussian process on Weisfeiler-Lehman features.

    Attributes:
        initial: random graphs first. pool: graphs among which the next is chosen. mutants: share of the pool that are
            mutants. parents: best graphs that are changed. surplus: mutants made for each that is kept; 1: motifs do
            not steer. depth: rounds of features at most.
    """

    initial: int = 10
    pool: int = 500
    mutants: float = 0.8
    parents: int = 10
    surplus: int = 4
    depth: int = 3

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``.

        Raises:
            UsageError: the space describes no graphs.
        """
        graphs = GraphSpace(space)
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        seen, values = history.points[history.succeeded], history.values[history.succeeded]
        waiting = history.pending
        for _ in range(count):
            pool = self.candidates(space, history, rng)
            if len(pool) == 0:
                return waiting[len(history.pending) :]
            found = subtrees(graphs.graphs(np.vstack([seen, waiting, pool])), self.depth)
            k, p = len(seen), len(waiting)
            gp, depth = fit(found, np.arange(k), values)
            if p:  # points that are being evaluated count with their mean
                believed = gp.predict(found.to(depth)[k : k + p])[0]
                gp, depth = fit(found, np.arange(k + p), np.append(values, believed))
            phi = found.to(depth)
            own = np.arange(k + p, len(phi))
            own = own[self.steered(motifs(gp, found), phi[own], round(self.pool * (1 - self.mutants)))]
            best = float(gp.predict(phi[:k])[0].min())
            chosen = own[int(np.argmax(log_expected_improvement(gp, phi[own], best)))]
            waiting = np.vstack([waiting, pool[chosen - k - p][None]])
            history = history.waiting_for(waiting[-1:])
        return waiting[-count:]

    def candidates(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        """Random graphs, ``(1 - mutants) pool`` of them where there are so many, and then a surplus of mutants."""
        random = RandomSearch().propose(space, history, round(self.pool * (1 - self.mutants)), rng)
        order = history.ranking[: self.parents]
        many = round(self.pool * self.mutants) * self.surplus
        mutants = space.moved(history.points[np.resize(order, many)], rng)
        mutants = unseen(space, np.unique(mutants, axis=0), history)
        return np.vstack([random, mutants[rng.permutation(len(mutants))]])

    def steered(self, ranked: Motifs, phi: Floats, random: int) -> NDArray[np.intp]:
        """Which candidates stay: all random ones, and of the mutants those whose motifs are worth most together."""
        mutants = np.arange(min(random, len(phi)), len(phi))
        keep = round(self.pool * self.mutants)
        if self.surplus > 1:
            worth = (phi[mutants] @ ranked.features.T > 0) @ ranked.gradient
            mutants = mutants[np.argsort(worth, kind="stable")]
        return np.concatenate([np.arange(min(random, len(phi))), mutants[:keep]])

    def report(self, space: Space, history: History) -> Motifs:
        """What the evaluations say of each motif."""
        seen = history.points[history.succeeded]
        found: Subtrees = subtrees(GraphSpace(space).graphs(seen), self.depth)
        return motifs(fit(found, np.arange(len(seen)), history.values[history.succeeded])[0], found)


@dataclass(frozen=True)
class RegularizedEvolution:
    """Evolution that lets the old die, not the bad: the best of a sample of the last evaluations is changed.

    Attributes:
        population: the last evaluations that may be parents. tournament: size of the sample.
    """

    population: int = 20
    tournament: int = 5

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``."""
        if len(history) < self.population or history.best is None:
            return RandomSearch().propose(space, history, count, rng)
        alive = np.arange(len(history) - self.population, len(history))
        values = history.losses
        drawn = alive[rng.permuted(np.tile(np.arange(self.population), (32 * count, 1)), axis=1)[:, : self.tournament]]
        parents = drawn[np.arange(len(drawn)), values[drawn].argmin(axis=1)]
        children = unseen(space, space.moved(history.points[parents], rng), history)
        children = children[np.sort(np.unique(children, axis=0, return_index=True)[1])][:count]
        more = RandomSearch().propose(space, history.waiting_for(children), count - len(children), rng)
        return np.vstack([children, more])


def cells(operations: tuple[str, ...], inner: int, edges: int | None = None) -> Space:
    """Cells of a network: an input, an output, up to ``inner`` operations between; each graph once.

    Args:
        edges: at most; None: as many as there can be.

    Raises:
        UsageError: there are more than three operations between, or fewer than one.
    """
    if not 1 <= inner <= 3 or len(operations) < 1:
        raise UsageError(f"a cell that is listed has 1 to 3 operations between, of at least one kind, not {inner}")
    nodes = ["input", *(f"node{i}" for i in range(inner)), "output"]
    pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    parameters = {f"{a}{_JOINT}{b}": Ordinal((0, 1)) for a, b in pairs}
    every = Space(parameters | {node: Categorical(operations) for node in nodes[1:-1]})
    assert every.grid is not None
    points, n = every.grid.points, len(pairs)
    found = GraphSpace(every).graphs(points)
    size = found.edges.sum(axis=(1, 2))
    idle = found.labels[:, 1:-1] < 0
    plain = (found.labels[:, 0] >= 0) & (size <= (edges or n)) & (size == points[:, :n].sum(axis=1))
    plain &= (~idle | (points[:, n:] == 0)).all(axis=1)
    points, drawn = points[plain], found.edges[plain]

    def code(edge: NDArray[np.bool_], kinds: Floats) -> Floats:
        bits = np.column_stack([edge[:, nodes.index(a), nodes.index(b)] for a, b in pairs])
        number = bits @ 2.0 ** np.arange(n) * len(operations) ** inner + kinds @ len(operations) ** np.arange(inner)
        return np.where(np.tril(edge).any(axis=(1, 2)), np.inf, number)

    least = np.full(len(points), np.inf)
    for order in permutations(range(inner)):  # of one graph that is written in several ways, the least is kept
        moved = [0, *(o + 1 for o in order), inner + 1]
        least = np.minimum(least, code(drawn[:, moved][:, :, moved], points[:, n:][:, order]))
    return Space(every.parameters, listed=points[code(drawn, points[:, n:]) == least])


def planted(found: Subtrees, seed: int, noise: float = 0.3) -> tuple[Floats, str]:
    """Values of graphs of which one motif is worth much, and its name, ``[n]``: for trying out.

    Every label has a normal worth, noise is added, and each occurrence of a motif of depth 1, one that 5 to 40 % of the
    graphs have, lowers the value by 2.
    """
    rng = np.random.default_rng([seed, 78])
    share = (found.counts > 0).mean(axis=0)
    fit_for_it = np.flatnonzero((found.depth == 1) & (share > 0.05) & (share < 0.4))
    motif = int(rng.choice(fit_for_it))
    worth = np.where(found.depth == 0, rng.normal(0, 0.3, len(share)), 0.0)
    values = found.counts @ worth - 2.0 * found.counts[:, motif] + noise * rng.standard_normal(len(found.counts))
    return values, found.names[motif]


def evaluations_to(values: Floats, history: History, share: float = 0.01) -> int:
    """How many evaluations a search of a table took to its best ``share``; one more than it made where it did not."""
    target = np.sort(values)[max(int(share * len(values)), 1) - 1]
    reached = np.flatnonzero(history.values <= target)
    return int(reached[0]) + 1 if len(reached) else len(history) + 1


def _explain(table: str, operations: tuple[str, ...], edges: int, evaluations: int, seeds: int) -> Explanation:
    if evaluations < 12 or seeds < 1:
        raise UsageError(f"take at least 12 evaluations and a seed, not {evaluations} and {seeds}")
    space, value, motif = cells(operations, 3, edges), None, ""
    assert space.grid is not None
    if table:
        try:
            with np.load(table) as stored:
                space = Space(space.parameters, listed=stored["points"].astype(float))
                value = stored["losses"].astype(float)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"no recorded cells in {table!r} ({error}): points [n, 9] and losses [n] in an .npz"
            ) from None
    assert space.grid is not None
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    method, took, reports = GraphBayes(), np.empty((3, seeds)), []
    methods: tuple[Method, ...] = (method, RegularizedEvolution(), RandomSearch())
    for seed in range(seeds):
        values, motif = planted(found, seed) if value is None else (value, "")
        for i, other in enumerate(methods):
            history = run(other, tabled(space, values), space, min(evaluations, len(values)), seed)
            took[i, seed] = evaluations_to(values, history)
            if i == 0:
                reports.append((method.report(space, history), motif))
    ranked, motif = reports[-1]
    medians = np.median(took, axis=1)
    says = [
        f"Of {len(found.counts)} cells one of the best hundredth is found after {medians[0]:g} evaluations by the "
        f"kernel on subtrees, {medians[1]:g} by regularized evolution, {medians[2]:g} by random search (medians)."
    ]
    if motif:
        place = ranked.names.index(motif) + 1 if motif in ranked.names else None
        says.append(f"The motif that was planted, {motif}, ranks {place or 'nowhere'} in the last search.")
    show = [*range(min(5, len(ranked.names))), *range(max(len(ranked.names) - 3, 5), len(ranked.names))]
    return Explanation(
        {"cells": len(found.counts), "evaluations_to_best_hundredth": float(medians[0])},
        (
            Table.of(
                "Evaluations to the best hundredth",
                method=["graphs", "regularized evolution", "random"],
                median=medians,
            ),
            Table.of(
                "Motifs of the last search: what one more of each changes in the value",
                motif=[ranked.names[i] for i in show],
                gradient=ranked.gradient[show],
                standard_deviation=ranked.sd[show],
                cells_seen=ranked.seen[show],
            ),
        ),
        tuple(says),
    )


TOPIC = Topic(
    "graphs",
    "Which cell of a network is best, and which motifs make it so?",
    "Ru et al., Interpretable Neural Architecture Search via Bayesian Optimisation with Weisfeiler-Lehman Kernels, "
    "ICLR 2021",
    (
        Option(
            "table",
            str,
            "An .npz of recorded cells (points, losses); without one, a motif is planted in a formula.",
            "",
        ),
        Option("operations", names, "Labels of the inner nodes, between commas.", ("conv3", "conv1", "pool")),
        Option("edges", int, "Of a cell, at most.", 6),
        Option("evaluations", int, "Of each search, at most.", 60),
        Option("seeds", int, "Searches of each method.", 3),
    ),
    _explain,
    "--operations conv3,pool --edges 6 --evaluations 40 --seeds 1",
)
