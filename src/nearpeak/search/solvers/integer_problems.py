"""Integer programs to try solvers on, drawn at random; all are minimised and their sizes are free.

- placement: services on hosts with capacities in several resources; a pair that talks pays when apart. The
  linearised quadratic assignment that placing models, experts or stages on devices comes to.
- assignment: the generalised assignment problem of type D, costs against demands (Chu and Beasley, 1997).
- knapsack: the multi-dimensional knapsack with profits that follow the weights (the same, J. Heuristics 4, 1998).
- cover: capacitated sites that must cover every client that is near enough at least twice; sites cost, and so does
  the distance served.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nearpeak.search.solvers.integer_program import IntegerProgram

Array = NDArray[np.float64]


def _program(cost: Array, blocks: list[tuple[sparse.sparray, float | Array, float | Array]]) -> IntegerProgram:
    """Binary variables and rows ``(A, lower, upper)``."""
    rows = sparse.csr_array(sparse.vstack([a for a, _, _ in blocks], format="csr"))
    bounds = [[np.broadcast_to(np.asarray(b[i], float), b[0].shape[0]) for b in blocks] for i in (1, 2)]
    n = cost.size
    return IntegerProgram(
        cost, rows, np.concatenate(bounds[0]), np.concatenate(bounds[1]), np.zeros(n), np.ones(n), np.ones(n, bool)
    )


def _once(items: int, places: int) -> sparse.sparray:
    """Sums over places, ``[items, items * places]``."""
    return sparse.kron(sparse.eye_array(items), np.ones((1, places)), format="csr")


def _load(demand: Array, places: int) -> sparse.sparray:
    """Load of each place, ``[places, items * places]``; demand by item ``[items]`` or by item and place."""
    items = demand.shape[0]
    spread = np.broadcast_to(demand.reshape(items, -1), (items, places))
    place, item = np.meshgrid(np.arange(places), np.arange(items))
    return sparse.csr_array((spread.ravel(), (place.ravel(), (item * places + place).ravel())),
                            shape=(places, items * places))  # fmt: skip


def placement(
    seed: int, items: int = 60, places: int = 10, resources: int = 2, talkers: int = 3, slack: float = 0.15
) -> IntegerProgram:
    """``items`` services on ``places`` hosts; each talks to ``talkers`` others on average. ``slack``: of capacities."""
    rng = np.random.default_rng(seed)
    pairs = np.unique(np.sort(rng.integers(items, size=(items * talkers, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    traffic = rng.integers(1, 20, len(pairs)).astype(float)
    own = rng.integers(1, 10, (items, places)).astype(float)
    demand = rng.integers(5, 25, (resources, items)).astype(float)
    size = demand.sum(1) / places * (1 + slack)
    m, n = len(pairs) * places, items * places
    # apart_p >= x_ih - x_jh: a pair is apart where a host has one of the two and not the other.
    row = np.arange(m)
    pair, host = row // places, row % places
    differ = sparse.csr_array(
        (np.r_[np.ones(m), -np.ones(m), -np.ones(m)],
         (np.r_[row, row, row], np.r_[pairs[pair, 0] * places + host, pairs[pair, 1] * places + host, n + pair])),
        shape=(m, n + len(pairs)),
    )  # fmt: skip

    def wide(a: sparse.sparray) -> sparse.sparray:
        return sparse.hstack([a, sparse.csr_array((a.shape[0], len(pairs)))], format="csr")

    capacities = [(wide(_load(d, places)), -np.inf, np.ceil(c)) for d, c in zip(demand, size, strict=True)]
    return _program(
        np.r_[own.ravel(), traffic], [(wide(_once(items, places)), 1, 1), *capacities, (differ, -np.inf, 0)]
    )


def assignment(seed: int, items: int = 200, places: int = 20) -> IntegerProgram:
    """Jobs on agents: what is cheap to assign takes much of the agent's time (type D)."""
    rng = np.random.default_rng(seed)
    demand = rng.integers(1, 101, (items, places)).astype(float)
    cost = 111 - demand + rng.integers(-10, 11, (items, places))
    return _program(
        cost.ravel().astype(np.float64),
        [(_once(items, places), 1, 1), (_load(demand, places), -np.inf, np.floor(0.8 * demand.sum(0) / places))],
    )


def knapsack(seed: int, items: int = 500, dimensions: int = 30, share: float = 0.5) -> IntegerProgram:
    """Items of which capacities hold the ``share``; profits are the mean weight plus noise."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 1001, (dimensions, items)).astype(float)
    profit = weights.mean(0) + 500 * rng.random(items)
    return _program(-np.round(profit), [(sparse.csr_array(weights), -np.inf, np.floor(share * weights.sum(1)))])


def cover(seed: int, clients: int = 150, sites: int = 60, times: int = 2, reach: float = 0.35) -> IntegerProgram:
    """Sites of the unit square that serve each client ``times``, from at most ``reach`` away, within capacities."""
    rng = np.random.default_rng(seed)
    client, site = rng.random((clients, 2)), rng.random((sites, 2))
    away = np.linalg.norm(client[:, None] - site, axis=2)
    near = away <= np.maximum(reach, np.sort(away, axis=1)[:, [times + 1]])
    who, where = np.nonzero(near)
    links = who.size
    demand = rng.integers(5, 36, clients).astype(float)
    capacity = rng.integers(100, 250, sites) * np.maximum(1.0, 3 * times * demand.sum() / (175 * sites))
    opening = rng.integers(100, 200, sites) + 2 * np.sqrt(capacity)
    arrange = np.arange(links)

    def table(values: Array, row: NDArray[np.intp], column: NDArray[np.intp], rows: int) -> sparse.csr_array:
        return sparse.csr_array((values, (row, column)), shape=(rows, sites + links))

    one = np.ones(links)
    served = table(one, who, sites + arrange, clients)
    opened = table(np.r_[one, -one], np.r_[arrange, arrange], np.r_[sites + arrange, where], links)
    loads = table(
        np.r_[demand[who], -capacity], np.r_[where, np.arange(sites)], np.r_[sites + arrange, np.arange(sites)], sites
    )
    cost = np.r_[opening, np.round(demand[who] * away[who, where] * 10)]
    return _program(cost, [(served, times, np.inf), (opened, -np.inf, 0), (loads, -np.inf, 0)])


PROBLEMS: Final[dict[str, Callable[..., IntegerProgram]]] = {
    "placement": placement,
    "assignment": assignment,
    "knapsack": knapsack,
    "cover": cover,
}
"""Generators by name; each takes a seed."""
