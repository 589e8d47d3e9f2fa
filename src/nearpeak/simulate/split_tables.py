"""Tables of what the steps of a Setup are made of, by size: the parts that ``split_model`` puts together.

What a step asks for comes from ``cost``: the same step priced with bandwidth without bound, with arithmetic without
bound, and with both, gives for each kind of operator what no units shorten, its arithmetic, and its traffic.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import decode, ledger, mixed, platform_of
from nearpeak.cost.calibration import join
from nearpeak.cost.engine import engine_on
from nearpeak.cost.memory import kv_bytes
from nearpeak.cost.step import Step, depth
from nearpeak.errors import UsageError
from nearpeak.setup import Setup

Array = NDArray[np.float64]
DENSE = ("matrices", "experts", "communication", "other")
"""Parts of a step that all its tokens go through together."""
UNBOUND = 1e6
"""Times a device's own: arithmetic or bandwidth that no longer takes time."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What the steps of a Setup are made of, by size; seconds on the whole device.

    The last axis holds what no units shorten, arithmetic, and traffic; sizes are at ``2^(k/2) - 1``.

    Attributes:
        dense: ``[4, new tokens, decoding requests, 3]``. attend: attention of a chunk, ``[chunk, prefix, 3]``.
        read: attention of decoding requests, ``[requests, context, 3]``.
        host: seconds of a step, of a sequence in it, of launching a step with prompts.
        layers: of the model. units: of the device. capacity: tokens that the cache holds. longest: tokens of a request.
    """

    dense: Array
    attend: Array
    read: Array
    host: Array
    layers: int
    units: int
    capacity: int
    longest: int


def knots(most: float) -> Array:
    """Sizes at ``2^(k/2) - 1`` from 0 to ``most`` or the next beyond it."""
    count = int(np.ceil(2 * np.log2(1.0 + most) - 1e-9)) + 1
    return np.asarray(2.0 ** (np.arange(max(count, 2)) / 2) - 1)


def with_device(setup: Setup, arithmetic: float = 1.0, bandwidth: float = 1.0, units: float = 1.0) -> Setup:
    """The Setup on a device with so many times the arithmetic, the bandwidth and the units."""
    device = setup.node.device
    other = replace(
        device,
        rates={name: rate * arithmetic for name, rate in device.rates.items()},
        memory=tuple(replace(level, bandwidth=level.bandwidth * bandwidth) for level in device.memory),
        units=max(1, round(device.units * units)),
    )
    return replace(setup, node=replace(setup.node, device=other))


def split_terms(setup: Setup, price: Callable[[Setup], Step]) -> dict[str, Array]:
    """A step's parts in three terms, ``[..., 3]``: what no units shorten, arithmetic, traffic; together its seconds."""
    at = {
        "whole": price(setup),
        "compute": price(with_device(setup, bandwidth=UNBOUND)),
        "traffic": price(with_device(setup, arithmetic=UNBOUND)),
        "fixed": price(with_device(setup, arithmetic=UNBOUND, bandwidth=UNBOUND)),
    }
    found = {}
    for name in (*DENSE, "attention"):
        whole, compute, traffic, fixed = (np.asarray(getattr(step, name)) for step in at.values())
        fixed = np.minimum(fixed, whole)
        compute, traffic = np.maximum(compute - fixed, 0.0), np.maximum(traffic - fixed, 0.0)
        joined = fixed + join(compute, traffic)
        with np.errstate(invalid="ignore", divide="ignore"):  # parts that a model has none of take no time
            scale = np.where(joined > 0, whole / joined, 0.0)
        found[name] = np.stack(np.broadcast_arrays(fixed * scale, compute * scale, traffic * scale), axis=-1)
    return found


def parts(setup: Setup, longest: int, budget: int, batch: int) -> Parts:
    """The tables of a Setup.

    Args:
        longest: tokens of a request's prompt and answer. budget: most tokens of a step. batch: most requests.

    Raises:
        UsageError: the model does not fit the device.
    """
    pool = setup.decode
    new, users, seen = knots(budget), knots(batch), knots(longest)
    one, nothing = np.ones(()), np.zeros(())
    chunk, wide = new[1:, None], users[None, 1:]
    host = engine_on(setup.engine, setup.node)

    def decoding(own: Setup) -> Step:
        return decode(platform_of(own).in_graph(), own, pool, users[1:, None], np.maximum(seen[None], 1.0)) * host.graph

    def prompts(own: Setup) -> Step:
        return mixed(platform_of(own), own, pool, one, chunk, seen[None], nothing, one)

    def together(own: Setup) -> Step:
        return mixed(platform_of(own), own, pool, one, chunk, nothing, wide, one)

    reading, prompting, both = (split_terms(setup, price) for price in (decoding, prompts, together))
    dense = np.zeros((len(DENSE), new.size, users.size, 3))
    for k, name in enumerate(DENSE):
        dense[k, 1:, 1:] = np.broadcast_to(both[name], (new.size - 1, users.size - 1, 3))
        dense[k, 1:, 0] = np.broadcast_to(prompting[name], (new.size - 1, seen.size, 3))[:, 0]
        dense[k, 0, 1:] = np.broadcast_to(reading[name], (users.size - 1, seen.size, 3))[:, 0]
    attend, read = np.zeros((new.size, seen.size, 3)), np.zeros((users.size, seen.size, 3))
    attend[1:], read[1:] = prompting["attention"], reading["attention"]
    held = ledger(replace(setup, chunk=budget), replace(pool, batch=0.0))
    room = float(held.capacity - held.used)
    each = float(kv_bytes(setup, pool, np.asarray(float(longest)))) / longest
    if room < each:
        raise UsageError(
            f"{setup.model.name} leaves no room for a cache on {setup.node.device.title}: take more devices"
        )
    return Parts(
        dense, attend, read, np.array([host.step, host.sequence, host.layer * depth(setup.model)]),
        setup.model.layers, setup.node.device.units, int(room / each), longest,
    )  # fmt: skip
