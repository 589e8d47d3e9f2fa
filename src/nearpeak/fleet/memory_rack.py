"""A rack of GPUs with little fast memory each and one shared remote pool (Li et al., FengHuang, arXiv 2511.10753).

Weights and cache live in the pool and are paged in ahead (``remote_paging``). Collectives go through it: each rank adds
its vector to the pool's while it writes (write-accumulate), is told when all have, and reads the sum. Those are four
ways to the pool or back for any number of ranks, where a ring needs ``2 (ranks - 1)`` messages one after another.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from nearpeak.cost.collectives import CUSTOM_LAUNCH
from nearpeak.cost.schedules import ring
from nearpeak.errors import UsageError
from nearpeak.fleet.remote_paging import (
    LATENCY,
    Array,
    Graph,
    Rack,
    crossover,
    graph,
    kept_share,
    local_memory,
    simulate,
)
from nearpeak.hardware import Link
from nearpeak.setup import Setup
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive

HALVINGS = 40


def pooled(rack: Rack, written: ArrayLike, read: ArrayLike) -> Array:
    """Seconds of a collective through the pool: each GPU writes, is told that all have written, and reads.

    Writes are added to what is there by the pool itself. Its memory takes the writes of all GPUs at once.

    Args:
        written, read: bytes of each GPU.
    """
    moved = np.asarray(written, float) + np.asarray(read, float)
    # Write one way, the notice one way, the read there and back.
    return np.asarray(np.where(moved > 0, 4 * rack.latency + moved / rack.bandwidth, 0.0))


def ring_all_reduce(link: Link, size: ArrayLike, ranks: ArrayLike) -> Array:
    """Seconds of a ring over links, as ``pooled``: messages and bytes alone, no launch."""
    return ring("all_reduce", np.asarray(ranks, float)).seconds(
        np.asarray(size, float), link.latency, 1 / link.bandwidth
    )


def collectives(of: Graph, rack: Rack, ranks: int, clock: float) -> Array:
    """Seconds of the pool's collectives after each operator, ``[operators]``.

    Args:
        clock: of the GPUs in Hz; starting and finishing a collective takes them as long as that of an engine's own.
    """
    moved = pooled(rack, of.reduced + of.gathered / ranks, of.reduced + of.gathered)
    return np.asarray(np.where(moved > 0, moved + CUSTOM_LAUNCH / clock, 0.0))


def smallest(of: Graph, said: Array, rack: Rack, target: float) -> tuple[float, float] | None:
    """The least local memory in bytes with which a step takes no more than ``target`` seconds, and its seconds.

    None where even all tensors in local memory are too slow.
    """
    if simulate(of, said, rack, 1.0) > target:
        return None
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if simulate(of, said, rack, middle) <= target else (middle, high)
    return local_memory(of, rack.lookahead, high), simulate(of, said, rack, high)


@dataclass(frozen=True)
class Sized:
    """A rack that serves the model with some GPUs.

    Attributes:
        gpus: of them. local: least bytes of local memory of one that keep the target, None where none do.
        step: seconds with it. thrifty: seconds with the window alone. full: with all tensors in local memory.
    """

    gpus: int
    local: float | None
    step: float | None
    thrifty: float
    full: float


def sized(setup: Setup, rack: Rack, target: float) -> Sized:
    """The least local memory with which the GPUs of ``setup`` in a rack decode a step in ``target`` seconds."""
    gpus = int(np.asarray(setup.decode.devices))
    of = graph(setup, rack.local_speed)
    said = collectives(of, rack, gpus, setup.node.device.clock)
    local, step = smallest(of, said, rack, target) or (None, None)
    return Sized(gpus, local, step, simulate(of, said, rack, 0.0), simulate(of, said, rack, 1.0))


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, batch: float, remote_bandwidth: float, latency: float,
    local_share: float, local_speed: float, lookahead: int, slack: float,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup
    from nearpeak.hardware import link

    require_positive(isl=isl, osl=osl, batch=batch, local_share=local_share)
    if not slack >= 0:
        raise UsageError(f"slack must be 0 or more, not {slack:g}; 0.05 allows 5 % more time")
    rack = Rack(remote_bandwidth, latency, local_speed, lookahead)

    def of_count(count: int) -> Setup:
        own = setup(model, gpu, count, isl, osl)
        return replace(own, decode=replace(own.decode, batch=np.asarray(batch)))

    own = of_count(devices)
    device = own.node.device
    target = graph(own).conventional_step
    of, local = graph(own, local_speed), local_share * device.memory_capacity
    said = collectives(of, rack, devices, device.clock)
    kept = kept_share(of, lookahead, local)
    paged = float(of.size.sum()) * (1 - kept)
    ahead = simulate(of, said, rack, kept)
    fetched = replace(rack, lookahead=0)
    on_demand = simulate(of, said, fetched, kept_share(of, 0, local))
    needed = crossover(of, said, paged, target)
    counts = [n for n in range(1, devices + 1) if devices % n == 0]
    found = [sized(of_count(n), rack, target * (1 + slack)) for n in counts]
    enough = next((s for s in found if s.local is not None), None)
    sizes = 4.0 ** np.arange(5, 15)
    wire = link(device.scale_up) if device.scale_up and devices > 1 else None
    tables = [
        Table(
            "The least local memory of a GPU that keeps the step, by GPUs",
            tuple(
                {
                    "gpus": s.gpus,
                    "local_memory": s.local,
                    "step_time": s.step,
                    "window_only_time": s.thrifty,
                    "all_local_time": s.full,
                }
                for s in found
            ),
        )
    ]
    if wire is not None:
        ring_time = ring_all_reduce(wire, sizes, devices)
        pool_time = pooled(rack, sizes, sizes)
        tables.append(
            Table.of(
                f"All-reduce among {devices} GPUs, by bytes",
                size=sizes,
                ring_time=ring_time,
                pool_time=pool_time,
                ring_over_pool_ratio=ring_time / pool_time,
            )
        )
    keeps = (
        f"The pages need {needed / 1e12:.3g} TB/s to be as fast as the conventional server"
        if np.isfinite(needed)
        else "No remote bandwidth is as fast as the conventional server: local memory cannot take the pages in"
    )
    least = (
        f"{enough.gpus} GPUs with {(enough.local or 0) / 1e9:.3g} GB each keep the step within {slack:.0%}."
        if enough
        else f"No number of GPUs up to {devices} keeps the step within {slack:.0%}."
    )
    return Explanation(
        {
            "conventional_step_time": target,
            "rack_step_time": ahead,
            "rack_over_conventional_ratio": ahead / target,
            "on_demand_step_time": on_demand,
            "local_memory": local,
            "kept_share": kept,
            "paged_memory": paged,
            "crossover_bandwidth": needed if np.isfinite(needed) else None,
            "smallest_gpus": enough.gpus if enough else None,
            "smallest_local_memory": enough.local if enough else None,
        },
        tuple(tables),
        (f"{keeps}; the rack has {remote_bandwidth / 1e12:.3g} TB/s.", least),
    )


TOPIC = Topic(
    "memory-rack",
    "How little local memory, and how few GPUs, does a rack with a shared remote pool need?",
    "Li et al., FengHuang: Next-Generation Memory Orchestration for AI Inferencing, 2025 (arXiv 2511.10753)",
    (
        MODEL,
        GPU,
        Option("devices", int, "GPUs of the conventional server, and the most of the rack.", 8),
        Option("isl", float, "Tokens of a prompt.", 1000.0),
        Option("osl", float, "Tokens of an answer.", 500.0),
        Option("batch", float, "Requests that decode together.", 8.0),
        Option("remote_bandwidth", float, "Bytes/s that a GPU reads from the pool.", 4.8e12),
        Option("latency", float, "Seconds to the pool, one way.", LATENCY),
        Option("local_share", float, "Local memory over the device's own.", 0.07),
        Option("local_speed", float, "Bandwidth of local memory over the device's own.", 2.0),
        Option("lookahead", int, "Operators whose tensors are paged in ahead, 0 for on demand.", 2),
        Option("slack", float, "Share by which a step may take longer.", 0.05),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-405B --gpu h200",
)
