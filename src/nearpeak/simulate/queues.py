"""Lists and heaps inside the state of a simulation (compiled): who waits, who runs in which order, who ends next."""

import numpy as np
from numpy.typing import NDArray

from nearpeak.simulate.compiled import compiled
from nearpeak.simulate.state import WAITING, State


@compiled
def wait_last(s: State, i: int, r: int) -> None:
    """A request joins the end of its class's queue at an instance."""
    rank = s.q[r].rank
    tail = s.w[i, rank].tail
    s.q[r].prev, s.q[r].next, s.q[r].state = tail, -1, WAITING
    if tail >= 0:
        s.q[tail].next = r
    else:
        s.w[i, rank].head = r
    s.w[i, rank].tail = r
    s.i[i].waiting += 1


@compiled
def wait_first(s: State, i: int, r: int) -> None:
    """A preempted request goes before all others of its class."""
    rank = s.q[r].rank
    head = s.w[i, rank].head
    s.q[r].prev, s.q[r].next, s.q[r].state = -1, head, WAITING
    if head >= 0:
        s.q[head].prev = r
    else:
        s.w[i, rank].tail = r
    s.w[i, rank].head = r
    s.i[i].waiting += 1


@compiled
def leave_queue(s: State, i: int, r: int) -> None:
    """A waiting request leaves its queue."""
    rank, prev, after = s.q[r].rank, s.q[r].prev, s.q[r].next
    if prev >= 0:
        s.q[prev].next = after
    else:
        s.w[i, rank].head = after
    if after >= 0:
        s.q[after].prev = prev
    else:
        s.w[i, rank].tail = prev
    s.i[i].waiting -= 1


@compiled
def run_last(s: State, e: int, r: int) -> None:
    """An admitted request is the last of its engine's."""
    tail = s.e[e].tail
    s.q[r].prev, s.q[r].next, s.q[r].engine = tail, -1, e
    if tail >= 0:
        s.q[tail].next = r
    else:
        s.e[e].head = r
    s.e[e].tail = r
    s.e[e].running += 1
    s.i[s.e[e].home].running += 1


@compiled
def stop_running(s: State, e: int, r: int) -> None:
    """An admitted request leaves its engine."""
    prev, after = s.q[r].prev, s.q[r].next
    if prev >= 0:
        s.q[prev].next = after
    else:
        s.e[e].head = after
    if after >= 0:
        s.q[after].prev = prev
    else:
        s.e[e].tail = prev
    s.e[e].running -= 1
    s.i[s.e[e].home].running -= 1


@compiled
def push(keys: NDArray, values: NDArray, n: int, key: float, value: int) -> None:  # type: ignore[type-arg]
    """Add an entry to a heap of ``n``, the least key first. Keys may be whole numbers or times."""
    at = n
    while at > 0:
        above = (at - 1) // 2
        if keys[above] <= key:
            break
        keys[at], values[at] = keys[above], values[above]
        at = above
    keys[at], values[at] = key, value


@compiled
def pop(keys: NDArray, values: NDArray, n: int) -> None:  # type: ignore[type-arg]
    """Remove the first entry of a heap of ``n``."""
    key, value = keys[n - 1], values[n - 1]
    at, last = 0, n - 1
    while True:
        below = 2 * at + 1
        if below >= last:
            break
        if below + 1 < last and keys[below + 1] < keys[below]:
            below += 1
        if key <= keys[below]:
            break
        keys[at], values[at] = keys[below], values[below]
        at = below
    keys[at], values[at] = key, value


@compiled
def draw(s: State) -> float:
    """A number from 0 to 1, 1 excluded: splitmix64 (Steele et al. 2014), whose whole state is one word."""
    s.g[0].seed += np.uint64(0x9E3779B97F4A7C15)
    z = s.g[0].seed
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 9007199254740992.0
