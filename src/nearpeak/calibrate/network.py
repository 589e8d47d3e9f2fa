"""Fits what a network between nodes reaches to measured all-reduces: NCCL's, over known nodes and devices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.calibration import Array
from nearpeak.cost.collectives import collective
from nearpeak.cost.fabric import Fabric
from nearpeak.cost.platform import Platform
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.hardware import Link


@dataclass(frozen=True)
class AllReduces:
    """Measured all-reduces, arrays ``[rows]``: bytes of the vector, ranks, ranks in each node, seconds."""

    size: Array
    ranks: Array
    devices: Array
    seconds: Array

    def where(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> "AllReduces":
        """Some of the rows."""
        return AllReduces(self.size[rows], self.ranks[rows], self.devices[rows], self.seconds[rows])

    def predicted(self, p: Platform, fabric: Fabric) -> Array:
        """Seconds by the model, ``[rows]``."""
        return collective(p, "all_reduce", self.size, self.ranks, fabric, self.devices)


def fit_fabric(p: Platform, link: Link, ports: float, measured: AllReduces) -> Fabric:
    """The fabric whose all-reduces are nearest to the measured ones, by least squares on logarithms (Cauchy's loss).

    Found are the ports that a node really uses (NCCL may find fewer than there are), the share of each port's bandwidth
    and the delay of a message.

    Args:
        link: one port. ports: of a node. measured: groups inside one node are not read.

    Raises:
        UsageError: fewer than ten rows between nodes, or times that are not above 0.
        NearpeakError: scipy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError as error:
        raise NearpeakError("fitting a network needs scipy: pip install nearpeak[calibrate]") from error
    between = measured.where(measured.ranks > measured.devices)
    if between.size.size < 10:
        raise UsageError(
            f"{between.size.size} all-reduces between nodes are too few to fit a network: measure at least 10"
        )
    if not np.all(between.seconds > 0):
        raise UsageError("all-reduces whose seconds are not above 0: check the units of the table")

    def fabric(x: Array) -> Fabric:
        return Fabric(link, float(np.exp(x[0])), float(np.exp(x[1])), float(np.exp(x[2])))

    def residual(x: Array) -> Array:
        return np.asarray(np.log(between.predicted(p, fabric(x)) / between.seconds))

    low, high = np.log([0.5, 0.02, 1e-8]), np.log([max(ports, 0.51), 1.0, 1e-3])
    starts = [np.log([max(0.51, ports * part), share, 3e-6]) for part in (0.9, 0.4) for share in (0.8, 0.25)]
    fits = [
        least_squares(residual, np.clip(x, low + 1e-6, high - 1e-6), bounds=(low, high), loss="cauchy", f_scale=0.2)
        for x in starts
    ]
    return fabric(min(fits, key=lambda f: float(f.cost)).x)
