"""Layers of a model on unlike nodes: how many replicas, which nodes in each, and how many layers on each node.

Phase 1 of Tong et al., "Parallax: Efficient LLM Inference Service over Decentralized Environment", 2025 (arXiv
2509.26182). A node holds at most ``c`` layers; a replica is a set of nodes that hold all ``L``. Every stage costs a
link on the way of every token, so ``k`` replicas should have as few nodes as they can, ``s*(k)`` in all: a dynamic
program over the nodes, whose state is what the replicas begun so far still lack. The number of replicas is the one with
the most

    Z(k) = k ** alpha / (compute + s*(k) / k * link)

In a replica, layers are poured on the nodes like water: each new one to the node that is least burdened with it, so
that the slowest stage is as quick as it can be. Links inside a region are quicker than between regions, so each region
is planned by itself first; its left-over nodes make replicas together, and what is left then holds the layers that
have least behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Groups = tuple[tuple[int, ...], ...]
ALPHA = 2.0
"""How much a further replica counts against a quicker one."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """What the allocation knows of nodes.

    Attributes:
        capacity: layers that each can hold, ``[nodes]``. layer: seconds of a layer on each, ``[nodes]``.
        link: seconds from node to node, ``[nodes, nodes]``. region: of each, ``[nodes]``. layers: of the model.
    """

    capacity: Ints
    layer: Array
    link: Array
    region: Ints
    layers: int


@dataclass(frozen=True, eq=False)
class Allocation:
    """``first``, ``last``: layers ``first <= l < last`` of each node, ``[nodes]``; none where they are equal.

    ``pipelines``: the nodes of each replica in the order of their layers; nodes that only back others up are in none.
    """

    first: Ints
    last: Ints
    pipelines: Groups


def fewest_stages(capacity: Sequence[int], layers: int, replicas: int) -> Groups | None:
    """Nodes of each of so many replicas, as few in all as can be; None if there are not enough.

    Nodes are taken by falling capacity. Each is left out, joins a replica that lacks layers, or begins one.
    """
    order = sorted(range(len(capacity)), key=lambda i: -capacity[i])
    held = [min(capacity[i], layers) for i in order]
    behind = [sum(held[i:]) for i in range(len(held) + 1)]

    @cache
    def best(i: int, lacking: tuple[int, ...], unbegun: int) -> tuple[float, int]:
        """Fewest nodes from the ``i``-th on, and the choice: -1 leave out, -2 begin, else the replica it joins."""
        if not lacking and not unbegun:
            return 0.0, -1
        if behind[i] < sum(lacking) + unbegun * layers or i == len(held):
            return np.inf, -1
        found = best(i + 1, lacking, unbegun)[0], -1
        for choice, lack in [*enumerate(lacking), *([(-2, layers)] if unbegun else [])]:
            if choice > 0 and lack == lacking[choice - 1]:
                continue
            count = 1 + best(i + 1, *_after(lacking, unbegun, choice, lack - held[i]))[0]
            if count < found[0]:
                found = count, choice
        return found

    if not np.isfinite(best(0, (), replicas)[0]):
        return None
    members: list[tuple[int, list[int]]] = []
    done: list[tuple[int, ...]] = []
    unbegun = replicas
    for i, node in enumerate(order):
        members.sort(key=lambda m: m[0])
        lacking = tuple(lack for lack, _ in members)
        choice = best(i, lacking, unbegun)[1]
        if choice == -1:
            continue
        if choice == -2:
            unbegun -= 1
            members.append((layers, []))
        lack, own = members.pop(choice if choice >= 0 else -1)
        own.append(node)
        if lack > held[i]:
            members.append((lack - held[i], own))
        else:
            done.append(tuple(own))
    return tuple(done)


def _after(lacking: tuple[int, ...], unbegun: int, choice: int, lack: int) -> tuple[tuple[int, ...], int]:
    """The state when a node has joined replica ``choice``, which then lacks ``lack`` layers."""
    rest = lacking if choice == -2 else lacking[:choice] + lacking[choice + 1 :]
    return tuple(sorted((*rest, lack))) if lack > 0 else rest, unbegun - (choice == -2)


def worth(replicas: float, stages: float, compute: float, link: float, alpha: float = ALPHA) -> float:
    """``Z``. ``compute``: seconds of a token in all layers; ``link``: seconds of a hop; ``stages``: of all replicas."""
    return float(replicas**alpha / (compute + stages / replicas * link))


def replicate(nodes: Nodes, among: Sequence[int]) -> Groups:
    """The replicas of most worth that some of the nodes make; empty if they make none."""
    if not among:
        return ()
    own = np.asarray(among)
    capacity = nodes.capacity[own].tolist()
    compute = nodes.layers * float(nodes.layer[own].mean())
    apart = nodes.link[np.ix_(own, own)]
    link = float(apart.sum() / max(1, own.size * (own.size - 1)))
    best: tuple[float, Groups] = (0.0, ())
    for k in range(1, sum(min(c, nodes.layers) for c in capacity) // nodes.layers + 1):
        groups = fewest_stages(capacity, nodes.layers, k)
        if groups is None:
            break
        value = worth(k, sum(map(len, groups)), compute, link)
        if value > best[0]:
            best = value, tuple(tuple(int(own[i]) for i in group) for group in groups)
    return best[1]


def pour(capacity: Ints, layer: Array, layers: int) -> Ints:
    """Layers of each node of one replica, ``[nodes]``: the slowest stage is as quick as any split makes it.

    Water-filling in whole layers: each goes to the node whose stage is the quickest with it, if that has room.

    Raises:
        UsageError: the nodes do not hold so many layers.
    """
    if capacity.sum() < layers:
        raise UsageError(f"{layers} layers do not fit nodes that hold {capacity.tolist()}")
    given = np.zeros(capacity.size, np.int64)
    for _ in range(layers):
        given[np.where(given < capacity, (given + 1) * layer, np.inf).argmin()] += 1
    return given


def round_trip(link: Array, members: Sequence[int]) -> tuple[int, ...]:
    """The order of nodes with the shortest way round; by trying all up to 7 nodes, else always the nearest next."""
    start, *others = members
    if len(members) <= 7:
        ways = ((start, *rest) for rest in permutations(others))
        return min(ways, key=lambda w: sum(link[a, b] for a, b in zip(w, (*w[1:], w[0]), strict=True)))
    way = [start]
    while others:
        way.append(min(others, key=lambda i: link[way[-1], i]))
        others.remove(way[-1])
    return tuple(way)


def allocate(nodes: Nodes) -> Allocation:
    """Parallax: replicas by region, then of the left-over nodes together; the rest backs up what has least behind it.

    Raises:
        UsageError: all nodes together do not hold the model.
    """
    groups: list[tuple[int, ...]] = []
    left: list[int] = []
    for region in np.unique(nodes.region).tolist():
        among = np.flatnonzero((nodes.region == region) & (nodes.capacity > 0)).tolist()
        made = replicate(nodes, among)
        groups += made
        left += sorted(set(among) - {i for group in made for i in group})
    made = replicate(nodes, left)
    groups += made
    left = sorted(set(left) - {i for group in made for i in group}, key=lambda i: -int(nodes.capacity[i]))
    if not groups:
        held = int(np.minimum(nodes.capacity, nodes.layers).sum())
        raise UsageError(f"{nodes.capacity.size} nodes hold {held} layers of a model of {nodes.layers}; add nodes")
    first, last = np.zeros((2, nodes.capacity.size), np.int64)
    ordered = tuple(round_trip(nodes.link, group) for group in groups)
    for way in ordered:
        own = np.asarray(way)
        ends = np.cumsum(pour(nodes.capacity[own], nodes.layer[own], nodes.layers))
        first[own], last[own] = np.append(0, ends[:-1]), ends
    for i in left:
        behind = np.zeros(nodes.layers)
        for j in range(first.size):
            behind[first[j] : last[j]] += 1 / nodes.layer[j]
        count = min(int(nodes.capacity[i]), nodes.layers)
        windows = np.convolve(behind, np.ones(count), "valid")
        first[i] = int(windows.argmin())
        last[i] = first[i] + count
    return Allocation(first, last, ordered)


def fill(nodes: Nodes, order: Sequence[int]) -> Allocation:
    """The baseline: nodes in an order, each filled with the next layers to the brim; what makes no replica is unused.

    Raises:
        UsageError: all nodes together do not hold the model.
    """
    first, last = np.zeros((2, nodes.capacity.size), np.int64)
    pipelines: list[tuple[int, ...]] = []
    begun: list[int] = []
    at = 0
    for i in order:
        if nodes.capacity[i] < 1:
            continue
        first[i], last[i] = at, min(at + nodes.capacity[i], nodes.layers)
        begun.append(i)
        at = int(last[i])
        if at == nodes.layers:
            pipelines.append(tuple(begun))
            begun, at = [], 0
    if not pipelines:
        raise UsageError(f"{nodes.capacity.size} nodes hold {at} layers of a model of {nodes.layers}; add nodes")
    last[begun] = first[begun]
    return Allocation(first, last, tuple(pipelines))
