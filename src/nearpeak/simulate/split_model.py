"""Seconds of steps on a share of a device's units, alone and beside others; and the search for the share.

A step is cut into parts by kind (matrices, experts, communication, other, attention of prompts, of decoding). On the
share ``r`` of a device's units (streaming multiprocessors) a part takes

    h + ((c / r)^4 + (m s / g(r))^4)^(1/4)        g(r) = ((1 + reach^4) / (1 + (reach / r)^4))^(1/4)

seconds: ``h`` that no units shorten, ``c`` of arithmetic, ``m`` of traffic at the full bandwidth, of which the units
draw ``g(r)``, nearly all from the share ``reach`` on. ``s >= 1`` is contention: where two phases ask for more than the
bandwidth at once, every byte takes ``s`` times as long, so that together they draw all of it and no more.

Where both phases go through their layers kernel by kernel (``split_engine``), contention comes and goes with what
happens to run beside what (``stretched``); the search knows only how often parts meet (``beside``), as in Shi et al.
2025 ("Nexus", arXiv 2507.06608).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]

KINDS = 6
"""Matrices, experts, communication, other, attention of prompts, attention of decoding requests."""
LEAST = 1e-9


@njit(cache=True)
def point(x: float) -> float:
    """Where a size is on the axes of the tables: their knots are at ``2^(k/2) - 1``."""
    return float(2.0 * np.log2(1.0 + x))


@njit(cache=True)
def look_up(table: Array, x: float, y: float, times: float, out: Array) -> None:
    """Add ``times`` the entry of ``table`` ``[x, y, 3]`` to ``out`` ``[3]``; linear in the sizes between knots."""
    i = min(int(point(x) + LEAST), table.shape[0] - 2)
    j = min(int(point(y) + LEAST), table.shape[1] - 2)
    low_x, low_y = 2.0 ** (i / 2) - 1, 2.0 ** (j / 2) - 1
    u = (x - low_x) / (2.0 ** ((i + 1) / 2) - 1 - low_x)
    v = (y - low_y) / (2.0 ** ((j + 1) / 2) - 1 - low_y)
    for k in range(3):
        below = table[i, j, k] * (1 - u) + table[i + 1, j, k] * u
        above = table[i, j + 1, k] * (1 - u) + table[i + 1, j + 1, k] * u
        out[k] += times * max(0.0, below * (1 - v) + above * v)


@njit(cache=True)
def add_dense(dense: Array, new: float, decoding: float, work: Array) -> None:
    """Parts of all tokens of a step together. ``dense``: ``[4, new, decoding, 3]``."""
    for k in range(dense.shape[0]):
        look_up(dense[k], new, decoding, 1.0, work[k])


@njit(cache=True)
def part(work: Array, share: float, stretch: float, reach: float) -> float:
    """Seconds of one part, ``work`` ``[3]``: what no units shorten, arithmetic, traffic."""
    drawn = (1.0 + (reach / share) ** 4) / (1.0 + reach**4)
    return float(work[0] + np.sqrt(np.sqrt((work[1] / share) ** 4 + (work[2] * stretch) ** 4 * drawn)))


@njit(cache=True)
def alone(work: Array, share: float, reach: float) -> float:
    """Seconds of all parts of a step with nothing beside it."""
    total = 0.0
    for k in range(work.shape[0]):
        total += part(work[k], share, 1.0, reach)
    return total


@njit(cache=True)
def traffic_rate(one: Array, share: float, other: Array, rest: float, stretch: float, reach: float) -> float:
    """What two parts draw together over the bandwidth, where every byte takes ``stretch`` times as long."""
    first, second = part(one, share, stretch, reach), part(other, rest, stretch, reach)
    return float((one[2] / first if first > 0 else 0.0) + (other[2] / second if second > 0 else 0.0))


@njit(cache=True)
def stretched(one: Array, share: float, other: Array, rest: float, reach: float) -> float:
    """How much longer a byte takes where two parts run at once: together they draw the bandwidth at most."""
    asked = traffic_rate(one, share, other, rest, 1.0, reach)
    if asked <= 1.0:
        return 1.0
    low, high = 1.0, asked
    while traffic_rate(one, share, other, rest, high, reach) > 1.0:
        low, high = high, 2 * high
    for _ in range(8):
        middle = (low + high) / 2
        if traffic_rate(one, share, other, rest, middle, reach) > 1.0:
            low = middle
        else:
            high = middle
    return high


@njit(cache=True)
def beside(work: Array, share: float, other: Array, rest: float, reach: float, contention: bool) -> float:
    """Seconds of a step beside another, in the mean: parts meet the other's as often as these run."""
    if not contention:
        return alone(work, share, reach)
    whole, total = alone(other, rest, reach), 0.0
    for k in range(work.shape[0]):
        for j in range(other.shape[0]):
            met = part(other[j], rest, 1.0, reach) / whole
            if met > 0 and work[k].sum() > 0:
                stretch = stretched(work[k], share, other[j], rest, reach)
                total += met * part(work[k], share, stretch, reach)
    return total


@njit(cache=True)
def keeps(
    prefill: Array, decode: Array, share: float, reach: float, decode_first: bool, slack: Array, contention: bool
) -> bool:
    """Whether the phase that does not come first keeps its slack where prefill has this share."""
    if decode_first:
        bound = slack[1] * alone(prefill, 1.0, reach)
        return bool(beside(prefill, share, decode, 1 - share, reach, contention) <= bound)
    bound = slack[0] * alone(decode, 1.0, reach)
    return bool(beside(decode, 1 - share, prefill, share, reach, contention) <= bound)


@njit(cache=True)
def search(
    prefill: Array, decode: Array, share: float, grain: float, reach: float, decode_first: bool, slack: Array,
    contention: bool,
) -> float:  # fmt: skip
    """The prefill's share of the units, found from the present one by steps of ``grain``.

    The phase that comes first gets all units beyond those at which the other still keeps its slack: decode takes at
    most ``slack[0]`` times (prefill, where decode comes first: ``slack[1]`` times) what it takes with the whole device.
    """
    toward = -grain if decode_first else grain
    fits = keeps(prefill, decode, share, reach, decode_first, slack, contention)
    while True:
        following = share + toward if fits else share - toward
        if following < grain - LEAST or following > 1 - grain + LEAST:
            return share
        then = keeps(prefill, decode, following, reach, decode_first, slack, contention)
        if fits and not then:
            return share
        share = following
        if then and not fits:
            return share
