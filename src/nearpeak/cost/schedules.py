"""Schedules of collectives: how many messages follow one another, and what each rank sends and adds on the way.

A schedule costs ``hops * alpha + moved * size * beta + reduced * size * gamma``: Hockney's latency and time a byte of a
link, and the time a byte of the addition (Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 2005).
Everything broadcasts over ranks. Here live the algorithms alone; what links and libraries make of them is in
``collectives`` and, between nodes, in ``fabric``.
"""

from dataclasses import dataclass

import numpy as np

from nearpeak.cost.calibration import Array


@dataclass(frozen=True)
class Schedule:
    """Arrays by ranks. ``hops``: messages, one after another. ``moved``, ``reduced``: bytes that the busiest rank sends
    and adds, over the bytes of the whole vector.
    """

    hops: Array
    moved: Array
    reduced: Array

    def seconds(self, size: Array, alpha: Array | float, beta: Array | float, gamma: Array | float = 0.0) -> Array:
        """Seconds for a vector of ``size`` bytes. ``alpha``: seconds a hop; ``beta``, ``gamma``: seconds a byte."""
        return np.asarray(self.hops * alpha + self.moved * size * beta + self.reduced * size * gamma)


def ring(op: str, ranks: Array) -> Schedule:
    """Each rank passes pieces to the next: the fewest bytes, a hop for every rank. An all-reduce goes round twice.

    An all-to-all and a send take one hop: nothing waits for what others received.
    """
    part = (ranks - 1.0) / ranks
    nothing = np.zeros_like(part)
    if op == "all_reduce":
        return Schedule(2.0 * (ranks - 1.0), 2.0 * part, part)
    if op == "send_recv":
        return Schedule(nothing + 1.0, nothing + 1.0, nothing)
    hops = nothing + 1.0 if op == "all_to_all" else ranks - 1.0
    return Schedule(hops, part, part if op == "reduce_scatter" else nothing)


def tree(ranks: Array) -> Schedule:
    """An all-reduce up and down two binary trees, each with half of the vector (Sanders, Speck, Träff, 2009)."""
    return Schedule(2.0 * np.ceil(np.log2(ranks)), np.full_like(ranks, 2.0), np.full_like(ranks, 1.0))


def doubling(ranks: Array) -> Schedule:
    """An all-reduce in which partners at distances 1, 2, 4, ... exchange and add whole vectors.

    Where the ranks are no power of two, those left over hand their vector in before and get the sum after: two more.
    """
    rounds = np.floor(np.log2(ranks) + 1e-9)
    extra = np.where(2.0**rounds < ranks - 0.5, 1.0, 0.0)
    return Schedule(rounds + 2.0 * extra, rounds + 2.0 * extra, rounds + extra)


def one_shot(ranks: Array) -> Schedule:
    """An all-reduce in which each rank reads all others' vectors and adds them up by itself."""
    return Schedule(np.ones_like(ranks), ranks - 1.0, ranks - 1.0)


def two_shot(ranks: Array) -> Schedule:
    """An all-reduce in which each rank reads and adds its part of all vectors, then reads all parts' sums."""
    part = (ranks - 1.0) / ranks
    return Schedule(np.full_like(ranks, 2.0), 2.0 * part, part)
