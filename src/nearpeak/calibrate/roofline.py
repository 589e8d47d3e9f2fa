"""A calibration in which every kernel reaches the datasheet's peaks and nothing else takes time: the plain roofline.

Predicting with it gives what a table needs at least; two constants fitted on that are the baseline of the board.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from nearpeak.calibrate.store import About, save
from nearpeak.cost.calibration import Calibration, Entry, OperatorCalibration, shipped
from nearpeak.cost.engine import engines
from nearpeak.cost.platform import EVERY_ENGINE
from nearpeak.cost.stored import using

NAME = "roofline"


def peak(operator: OperatorCalibration) -> OperatorCalibration:
    """The same axes, and one entry that stands in for all devices: peak rates, no launch, no corrections."""
    sizes = [int(np.prod([operator.axes[a].count for a in table])) for table in operator.tables]
    tables = tuple(bytes(size) for size in sizes)
    entry = Entry(operator.entries[0].gpu, EVERY_ENGINE, "bf16", 0.0, 1.0, 1.0, tables, 1.0, (1.0, 1.0), 0)
    return msgspec.structs.replace(operator, entries=(entry,))


@contextmanager
def at_the_roofline(folder: Path) -> Iterator[None]:
    """Everything is predicted at peak, by engines that add nothing, until the context ends.

    ``folder``: an empty one to keep the calibration in.
    """
    free = {
        name: replace(host, step=0.0, sequence=0.0, layer=0.0, request=0.0, graph=1.0, versions={})
        for name, host in engines().items()
    }
    operators = {name: peak(operator) for name, operator in shipped().operators.items()}
    text = msgspec.json.encode(Calibration(NAME, operators))
    save(
        folder / NAME, {"calibration.json": text, "engines.json": msgspec.json.encode(free)}, About(NAME, 1, "", "", ())
    )
    with using(str(folder / NAME)):
        yield
