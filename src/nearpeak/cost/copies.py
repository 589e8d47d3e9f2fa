"""Time of copies between a device and its host."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.platform import Platform, real
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import link

Direction = Literal["to_device", "to_host"]

START = 5e-6
"""Seconds from the call until a copy engine has moved a few bytes and the host knows, beyond the link's own latency;
assumed: cudaMemcpy of a few bytes takes 5 to 8 microseconds."""
PINNED = 0.85
"""Share of the link's bandwidth that a copy engine reaches: on PCI Express, headers of 24 to 28 bytes beside 256 of
payload leave 0.91 (Neugebauer et al., SIGCOMM 2018), and acknowledgements and flow control a little less."""
STAGED = 10e9
"""Bytes/s at which a host thread copies pageable memory into the driver's pinned buffer while the one before is on its
way; assumed: bandwidth tests with pageable memory show 6 to 14 GB/s on servers of the last years."""
STAGE = 64 * 2**10
"""Bytes of pageable memory that the driver passes on with the command itself, no slower than pinned memory."""


def copy(p: Platform, size: ArrayLike, direction: Direction = "to_device", pinned: ArrayLike = True) -> Array:
    """Seconds to copy ``size`` bytes between a device and its host, the copy engine alone on the link.

    Pinned memory moves at the link's pace. Pageable memory is staged by the host, and one chunk is not overlapped;
    towards the host nothing is passed on with the command, so that small copies wait for the staging too.

    Args:
        pinned: whether the host's pages are locked.

    Raises:
        UnknownName: a direction other than to_device and to_host.
        UsageError: the catalogue knows no link of the device to its host, or a size is negative.
    """
    if direction not in get_args(Direction):
        raise UnknownName("direction", direction, get_args(Direction))
    if p.device.host_link is None:
        raise UsageError(f"device {p.device.name!r} has no link to a host in the catalogue; give its host_link")
    moved, locked = real(size), np.asarray(pinned, bool)
    if np.any(moved < 0):
        raise UsageError(f"a copy of {float(moved.min()):g} bytes: sizes must not be negative")
    host = link(p.device.host_link)
    wire = moved / (host.bandwidth * PINNED)
    staged = np.maximum(wire, moved / STAGED) + np.minimum(moved, STAGE) / STAGED
    slow: NDArray[np.bool_] = ~locked & ((moved > STAGE) | (direction == "to_host"))
    time = START + host.latency + np.where(slow, staged, wire)
    return np.asarray(np.where(moved > 0, time, 0.0))
