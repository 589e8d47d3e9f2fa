"""The cheapest mix of device types as an integer program (Griggs et al. 2024, arXiv 2404.14527, section 5.5).

Requests of one size make a bucket; a bucket is cut into equal slices, and a slice goes to one type whole. A bucket of
``r`` requests/s loads a device of a type that serves ``m`` of them per second by ``r / m``. With ``B[j]`` devices of
type ``j`` at ``c[j]`` dollars an hour and ``A[i, j]`` of the ``s`` slices of bucket ``i`` on them::

    min sum_j B[j] c[j]    so that    sum_j A[i, j] = s,    sum_i A[i, j] / s load[i, j] <= B[j],    A, B whole

The paper has a variable of 0 or 1 for each slice and type. Slices of one bucket are alike, so that counting them says
the same without the ``s!`` orders in which they could be dealt. HiGHS solves it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.topic import require_positive

Array = NDArray[np.float64]
SLACK = 1e-6
"""Of a device's load: how exactly HiGHS keeps a constraint."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Devices of each type and what they serve.

    Attributes:
        count: devices ``[types]``. share: of each bucket, by type ``[buckets, types]``. price: dollars an hour in all.
        least: dollars an hour that no packing goes below, as far as the solver has proved.
    """

    count: NDArray[np.int64]
    share: Array
    price: float
    least: float


def loads(rate: ArrayLike, most: ArrayLike) -> Array:
    """Devices that each bucket fills, ``[buckets, types]``; infinite where a type cannot serve it.

    Args:
        rate: requests/s ``[buckets]``. most: requests/s that one device of a type serves ``[buckets, types]``, 0 for
            none.
    """
    require_positive(rate=rate)
    served = np.asarray(most, float)
    with np.errstate(divide="ignore"):
        return np.asarray(np.asarray(rate, float)[:, None] / served)


def cheapest(load: Array, price: ArrayLike, slices: int = 1, seconds: float = 60.0) -> Packing:
    """The cheapest packing.

    Args:
        load: devices that each bucket fills ``[buckets, types]``, see ``loads``. price: dollars an hour of a device
            ``[types]``. slices: of each bucket. seconds: that the solver may take; it returns its best by then.

    Raises:
        UsageError: a bucket fits no type, there are no slices, or a price is not above 0.
        NearpeakError: the solver found nothing in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, hstack, kron

    dollars = np.asarray(price, float)
    require_positive(price=dollars, seconds=seconds)
    if slices < 1:
        raise UsageError(f"{slices} slices of a bucket; give at least 1")
    buckets, types = load.shape
    able = np.isfinite(load)
    if not able.any(1).all():
        raise UsageError(f"no type serves bucket {int(np.argmin(able.any(1)))} within the targets")
    part = np.where(able, load, 0.0) / slices
    # Variables: slices of each bucket on each type, bucket by bucket, then devices of each type.
    whole = hstack([kron(eye_array(buckets), np.ones((1, types))), csr_array((buckets, types))])
    rows = np.tile(np.arange(types), buckets)
    filled = csr_array((part.ravel(), (rows, np.arange(buckets * types))), (types, buckets * types))
    found = milp(
        np.append(np.zeros(buckets * types), dollars),
        integrality=np.ones((buckets + 1) * types),
        bounds=Bounds(0, np.append(np.where(able, slices, 0).ravel(), np.full(types, np.inf))),
        constraints=[
            LinearConstraint(whole, slices, slices),
            LinearConstraint(hstack([filled, -eye_array(types)]), -np.inf, 0),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise NearpeakError(f"no mix was found in {seconds:g} s: {found.message} Give fewer slices or more seconds.")
    dealt = np.rint(found.x[:-types]).reshape(buckets, types)
    count = np.ceil((dealt * part).sum(0) - SLACK).astype(np.int64)
    return Packing(count, dealt / slices, float(count @ dollars), float(found.mip_dual_bound))
