"""Layers that a device keeps in a peer's memory and fetches in time (Du et al., "EnergonAI", arXiv 2209.02341, 4.4).

A model of ``L`` layers does not fit; ``k`` of them, evenly spread, lie in the memory of a peer that has room, and a few
buffers hold those that are under way. Layer ``i`` takes ``t`` seconds, fetching a layer takes ``f``. The link fetches
the borrowed layers one after another, each as soon as a buffer is free again::

    C[i] = max(C[i-1], F[i]) + t          F[j] = max(F[j-1], C[j-buffers]) + f

so that borrowing costs nothing while ``f`` is below the ``t L / k`` between two borrowed layers. Without a buffer a
layer is fetched when the one before it has ended, and every fetch is waited for. The host's memory over its bus is the
other place for layers; its link is slower and so hides fewer.
"""

from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.cost import platform_of, prefill
from nearpeak.cost.collectives import collective
from nearpeak.cost.copies import copy
from nearpeak.cost.memory import weight_bytes
from nearpeak.errors import UsageError
from nearpeak.setup import Setup

Array = NDArray[np.float64]


def spread(layers: int, borrowed: int) -> NDArray[np.bool_]:
    """Which of so many layers are borrowed, ``[layers]``: as evenly as can be, the last one among them.

    Raises:
        UsageError: there are fewer layers than that.
    """
    if not 0 <= borrowed <= layers:
        raise UsageError(f"borrowed layers must be 0 to {layers}, not {borrowed}")
    before = np.arange(layers + 1) * borrowed // layers
    return np.asarray(before[1:] > before[:-1])


@njit(cache=True)
def pass_ends(compute: Array, fetch: Array, buffers: int, passes: int) -> Array:
    """When each of ``passes`` passes ends, one after another; seconds.

    Args:
        compute: seconds of each layer, ``[layers]``. fetch: seconds to fetch it, 0 where it is at home, ``[layers]``.
        buffers: fetched layers that fit at once; 0: a layer is fetched when the one before it has ended.
    """
    ends, freed = np.zeros(passes), np.zeros(max(buffers, 1))
    now, link, fetched = 0.0, 0.0, 0
    for p in range(passes):
        for i in range(compute.size):
            if fetch[i] > 0:
                start = now if buffers == 0 else max(link, freed[fetched % buffers])
                link = start + fetch[i]
                now = max(now, link)
            now += compute[i]
            if fetch[i] > 0 and buffers > 0:
                freed[fetched % buffers] = now
                fetched += 1
        ends[p] = now
    return ends


def steady_pass(compute: Array, fetch: Array, buffers: int) -> float:
    """Seconds of a pass among many: fetches for the next begin in this one."""
    ends = pass_ends(compute, fetch, buffers, 24)
    return float(ends[-1] - ends[-13]) / 12


def layer_bytes(setup: Setup) -> float:
    """Bytes of one layer's weights on one device of ``setup.decode``, in the mean."""
    layers = setup.model.layers
    if layers < 2:
        raise UsageError(f"{setup.model.name} has {layers} layer; with fewer than 2 there is nothing to borrow")
    two, one = (weight_bytes(setup, replace(setup.decode, pp=pp)) for pp in (-(-layers // 2), layers))
    return float(two - one)


def borrowing(setup: Setup, tokens: float, borrowed: NDArray[np.int64], buffers: int = 1) -> dict[str, Array]:
    """Seconds of a prefill pass over ``tokens`` tokens by how many layers are borrowed, ``[borrowed]`` each.

    ``peer``: prefetched from a peer of the node; ``on_demand``: from there, but waited for; ``host``: prefetched from
    the host's pinned memory over the device's bus.

    Raises:
        UsageError: more layers are borrowed than there are, or the device has no link to its host.
    """
    at, whole = platform_of(setup), replace(setup.decode, pp=1)
    layers, size = setup.model.layers, layer_bytes(setup)
    alone = float(prefill(at, setup, whole, np.ones(()), np.asarray(tokens)).total) / layers
    from_peer, from_host = float(collective(at, "send_recv", size, 2.0)), float(copy(at, size))

    def steady(fetch: float, slots: int) -> Array:
        compute = np.full(layers, alone)
        return np.array([steady_pass(compute, np.where(spread(layers, int(k)), fetch, 0.0), slots) for k in borrowed])

    return {
        "peer": steady(from_peer, buffers),
        "on_demand": steady(from_peer, 0),
        "host": steady(from_host, buffers),
    }
