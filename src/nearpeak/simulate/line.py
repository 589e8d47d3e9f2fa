"""Items that pass a line of stages which hand them on through few buffers: fetch and compute, encrypt and copy.

The recurrence of a flow shop with finite buffers (Pinedo, "Scheduling", section 6.2), over arrays of cases.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError

Array = NDArray[np.float64]


def flow(times: ArrayLike, buffers: Sequence[int]) -> Array:
    """When each item leaves each stage of a line whose stages hand items on through few buffers.

    A buffer between two stages is taken when the first begins with an item, and free when the second is done with it::

        end[k, s] = times[k, s] + max(end[k - 1, s], end[k, s - 1], end[k - buffers[s], s + 1])

    Args:
        times: seconds, ``[..., items, stages]``. buffers: between each stage and the next, ``stages - 1`` of them.

    Returns:
        Seconds from the start, of the shape of ``times``.

    Raises:
        UsageError: a time is negative or no number, or a stage has no buffer to hand its items on.
    """
    takes = np.asarray(times, float)
    if not (np.isfinite(takes) & (takes >= 0)).all():
        raise UsageError("times of a line of stages must be finite and 0 or more")
    if len(buffers) != takes.shape[-1] - 1 or min(buffers, default=1) < 1:
        raise UsageError(f"{takes.shape[-1]} stages need {takes.shape[-1] - 1} counts of 1 buffer or more: {buffers}")
    ends = np.zeros_like(takes)
    for k, s in product(range(takes.shape[-2]), range(takes.shape[-1])):
        begins = ends[..., k - 1, s] if k else np.zeros(takes.shape[:-2])
        if s:
            begins = np.maximum(begins, ends[..., k, s - 1])
        if s < len(buffers) and k >= buffers[s]:
            begins = np.maximum(begins, ends[..., k - buffers[s], s + 1])
        ends[..., k, s] = begins + takes[..., k, s]
    return ends


def passes(fetch: ArrayLike, compute: ArrayLike, buffers: int) -> tuple[Array, Array]:
    """Seconds of the first pass through all layers, and of each of many that follow one another.

    Args:
        fetch, compute: seconds of each layer, ``[..., layers]``. buffers: layers that the device has room for.
    """
    times = np.stack(np.broadcast_arrays(np.asarray(fetch, float), np.asarray(compute, float)), axis=-1)
    layers = times.shape[-2]
    ends = flow(np.concatenate([times] * 3, axis=-2), (buffers,))[..., layers - 1 :: layers, -1]
    return ends[..., 0], ends[..., 2] - ends[..., 1]
