"""Trials that grow: one parameter of the space is how long a configuration is trained, and training goes on later.

A configuration without that parameter is a trial. A method that stops a trial and takes it up again asks for the same
configuration with more of the resource; ``Resumed`` makes an evaluation of it that goes on from the state which the
trial was left in, in this process, another one or, on a shared file system, on another machine.
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.log import Outcome
from nearpeak.search.parameters import Floats, Integer
from nearpeak.search.space import Space
from nearpeak.search.trials.multi_fidelity import fidelity_of


@dataclass(frozen=True)
class Resumed:
    """An evaluation of a configuration that trains from where the same configuration was left.

    Attributes:
        begin: a fresh state of a configuration without the resource. advance: the state after one more unit of the
            resource. judge: the value of a state. All three are functions of a module, so that processes can run them,
            and states can be pickled.
        folder: where states are kept, one a trial. resource: name of the parameter, an Integer.
    """

    begin: Callable[[Mapping[str, Any]], Any]
    advance: Callable[[Any], Any]
    judge: Callable[[Any], float]
    folder: Path
    resource: str = "epochs"

    def __call__(self, configuration: Mapping[str, Any]) -> Outcome:
        """Value and seconds of what had still to be trained.

        Raises:
            UsageError: the configuration has no such resource.
        """
        if self.resource not in configuration:
            raise UsageError(f"no {self.resource!r} in a configuration of {', '.join(configuration)}")
        begun = time.perf_counter()
        trial = {name: value for name, value in configuration.items() if name != self.resource}
        path = self.folder / (sha256(repr(sorted(trial.items())).encode()).hexdigest()[:16] + ".state")
        trained, state = 0, None
        if path.exists():
            trained, state = pickle.loads(path.read_bytes())
        wanted = int(configuration[self.resource])
        if state is None or trained > wanted:
            trained, state = 0, self.begin(trial)
        for _ in range(wanted - trained):
            state = self.advance(state)
        _keep(path, (wanted, state))
        value = float(self.judge(state))
        why = "" if math.isfinite(value) else f"it gave {value}"
        return Outcome(value, time.perf_counter() - begun, why=why)


def _keep(path: Path, state: tuple[int, Any]) -> None:
    """Write so that a kill at any moment leaves the old state or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        pickle.dump(state, file)
    os.replace(file.name, path)


def resource_of(space: Space, name: str) -> Integer:
    """The parameter that says how long to train.

    Raises:
        UsageError: there is none of that name, or it is no Integer above 0 that always exists.
    """
    parameter = fidelity_of(space, name)
    if not isinstance(parameter, Integer):
        raise UsageError(f"the resource {name} is counted (epochs, steps): an Integer, not a Float")
    return parameter


@dataclass(frozen=True)
class Trials:
    """A space whose trials grow.

    Attributes:
        space: with the resource. name: of the resource. start: amount that a new trial gets.
        resource: the parameter. column, feature: where it stands in rows and in features.
        fresh: the space of new trials: the resource is always ``start``.
    """

    space: Space
    name: str
    start: int
    resource: Integer = field(init=False, repr=False)
    column: int = field(init=False, repr=False)
    feature: int = field(init=False, repr=False)
    fresh: Space = field(init=False, repr=False)

    def __post_init__(self) -> None:
        space, resource = self.space, resource_of(self.space, self.name)
        column = space.columns[self.name].start
        listed = None if space.listed is None else space.listed[space.listed[:, column] == self.start]
        if listed is not None and len(listed) == 0:
            raise UsageError(f"the list of the space has no configuration with {self.name} = {self.start}")
        parameters = {**space.parameters, self.name: Integer(self.start, self.start)}
        place = int(np.flatnonzero(space.groups == list(space.parameters).index(self.name))[0])
        for name, value in {
            "resource": resource,
            "column": column,
            "feature": place,
            "fresh": replace(space, parameters=parameters, listed=listed),
        }.items():
            object.__setattr__(self, name, value)

    def begun(self, history: History) -> History:
        """The history as if every trial had just been started: for what asks whether a configuration was tried."""
        points, pending = history.points.copy(), history.pending.copy()
        points[:, self.column] = self.start
        pending[:, self.column] = self.start
        return replace(history, points=points, pending=pending)

    def amount(self, points: Floats) -> NDArray[np.intp]:
        """How much of the resource rows ask for, ``[n]``."""
        return np.rint(points[:, self.column]).astype(np.intp)

    def given(self, points: Floats, amount: "int | NDArray[np.intp]") -> Floats:
        """Rows with another amount of the resource."""
        changed = points.copy()
        changed[:, self.column] = amount
        return changed

    def numbers(self, points: Floats) -> NDArray[np.intp]:
        """The trial that each row is of, numbered in the order in which they first occur, ``[n]``."""
        alone = np.nan_to_num(np.delete(points, self.column, axis=1), nan=-1e300)
        _, first, which = np.unique(alone, axis=0, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.intp)
        order[np.argsort(first)] = np.arange(len(first))
        return order[which.ravel()]

    def features(self, fresh: Floats, amount: int) -> Floats:
        """Features of new trials, as ``fresh.encode`` gives them, at another amount of the resource."""
        changed = fresh.copy()
        changed[:, self.feature] = self.resource.features(np.asarray([[float(amount)]]))[0, 0]
        return changed
