"""The planner: prices every Setup in the space and keeps the best, the Pareto front, and the nearest miss.

For each device, engine and structure (aggregated, disaggregated) the space is a dense block of arrays
``[prefill layouts, decode layouts, variants, batches]``, priced slice by slice, each slice small enough for the
processor's cache. Nothing is sampled: what the space holds is what is priced.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import Platform, Prediction, costs, largest_batch, platform_of, predict
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.formats import code
from nearpeak.hardware import Node
from nearpeak.plan import space
from nearpeak.plan.goal import Goal, excess, score
from nearpeak.plan.space import Fleet, Variant
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
SLICE = 1 << 15
"""Setups priced in one call: their intermediate arrays (256 kB each) stay in the processor's second-level cache."""
TYPICAL_BATCHES = 200
"""Batches of a layout, about: what the size of a slice is reckoned with."""
MOST_SETUPS = 2e9
"""Setups that a search is let begin with: about ten minutes."""
KEPT = 256
"""Candidates kept of a slice, the best: far more than anyone reads, and memory stays bounded."""
MOST_BATCH = 4096


@dataclass(frozen=True)
class Candidate:
    """One Setup that was priced, the techniques in it, and what the goal makes of it (less is better).

    It is the one at ``index`` of a ``block``, and is taken out of it when it is asked for.
    """

    score: float
    variant: Variant
    block: Setup
    index: tuple[int, ...]

    @cached_property
    def setup(self) -> Setup:
        """The single configuration."""
        return self.block.at(self.index)

    @cached_property
    def devices(self) -> int:
        """Devices in all."""
        return int(np.broadcast_to(self.block.devices, self.block.shape)[self.index])


@dataclass(frozen=True)
class Point:
    """A point of the trade-off: output tokens/s that each user sees, and that each device makes.

    ``meets``: whether every limit of the goal holds.
    """

    per_user: float
    per_device: float
    meets: bool
    candidate: Candidate


@dataclass(frozen=True)
class Miss:
    """The Setup that comes nearest to a goal nothing meets, and each limit's value over what it allows."""

    candidate: Candidate
    excess: dict[str, float]

    @property
    def binding(self) -> str:
        """The limit that is exceeded most."""
        return max(self.excess, key=lambda name: self.excess[name])


@dataclass(frozen=True)
class Plans:
    """The answer.

    Attributes:
        candidates: the best batches of layouts and choices of techniques, from best to worst.
        front: the Pareto front of speed for a user against throughput of a device, from slow to fast.
        priced: distinct Setups priced. started: of those, how many fit in memory and have a steady state.
        met: layouts and choices of techniques that meet the goal at some batch.
        seconds: processor seconds of the search.
        miss: the nearest miss where nothing meets the goal.
        left_out: devices that could not be considered, and why.
    """

    candidates: tuple[Candidate, ...]
    front: tuple[Point, ...]
    priced: int
    started: int
    met: int
    seconds: float
    miss: Miss | None
    left_out: dict[str, str]


@dataclass
class _Seen:
    """What the search has found so far."""

    priced: int = 0
    started: int = 0
    met: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    miss: Miss | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def plan(
    model: Architecture,
    fleets: Sequence[Fleet],
    goal: Goal,
    isl: float,
    osl: float,
    engines: Sequence[str] = ("vllm",),
    techniques: Iterable[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plans:
    """The best Setups for serving ``model`` to requests of ``isl`` prompt and ``osl`` answer tokens.

    Args:
        techniques: names to choose from; all registered ones if None.
        progress: called with the blocks done and the blocks in all.

    Raises:
        UsageError: lengths that are not positive or beyond the model's context, a device named twice, an encoder.
        NearpeakError: nothing fits in memory, or no price is known for any device and the goal is money.
    """
    check_lengths(model, isl, osl)
    _check_fleets(fleets)
    chosen = None if techniques is None else tuple(techniques)
    began = time.process_time()
    seen = _Seen()
    bases = [(base_setup(model, fleet.node, engine, isl, osl), fleet) for fleet in fleets for engine in engines]
    jobs = []
    for base, fleet in bases:
        _check_size(base, fleet, chosen)
        try:
            platform = platform_of(base)
        except UsageError as error:
            seen.left_out[fleet.node.device.name] = str(error)
            continue
        jobs += [(platform, fleet, kept, block) for kept, block in _blocks(base, fleet, goal, chosen)]
    for done, (platform, fleet, kept, block) in enumerate(jobs):
        _price(seen, platform, goal, fleet, kept, block)
        if progress:
            progress(done + 1, len(jobs))
    if seen.started == 0 and not seen.left_out:
        raise NearpeakError(_nothing_fits(model, fleets))
    if seen.left_out and not seen.candidates and seen.miss is None:
        raise NearpeakError("; ".join(seen.left_out.values()))
    candidates = sorted(seen.candidates, key=lambda c: (c.score, c.devices, -c.variant.quality))
    return Plans(
        candidates=tuple(candidates),
        front=_skyline(seen.points),
        priced=seen.priced,
        started=seen.started,
        met=seen.met,
        seconds=time.process_time() - began,
        miss=None if candidates else seen.miss,
        left_out=seen.left_out,
    )


def base_setup(model: Architecture, node: Node, engine: str, isl: float, osl: float) -> Setup:
    """The model as its checkpoint stores it, on one device, one request at a time."""
    held = model.checkpoint
    formats: dict[str, Any] = {part: code(getattr(held, part)) for part in ("attention", "ffn", "experts", "kv")}
    return Setup(model, node, engine, isl, osl, Pool(), **formats)


def check_lengths(model: Architecture, isl: float, osl: float) -> None:
    """Raise UsageError for lengths that are not positive or beyond the model's context."""
    for name, value in (("isl", isl), ("osl", osl)):
        if not value >= 1:  # nan too
            raise UsageError(f"{name} {value:g} is no length; give at least 1 token")
    if isl + osl > model.context:
        raise UsageError(
            f"isl {isl:g} + osl {osl:g} tokens exceed the {model.context} that {model.name} was made for; shorten them"
        )


def _check_size(base: Setup, fleet: Fleet, allowed: Iterable[str] | None) -> None:
    """Refuse a search of hours before it begins."""
    found = space.variants(base, allowed)
    split = sum(v.setup.prefill is not None for v in found)
    rows = float(np.sum(fleet.most // space.layouts(base.model, fleet.node, base.engine, fleet.most).instance_devices))
    setups = TYPICAL_BATCHES * (rows * (len(found) - split) + rows**2 / 2 * split)
    if setups > MOST_SETUPS:
        raise UsageError(
            f"up to {fleet.most} {fleet.node.device.name} make some {setups:.0e} Setups, which would take hours; plan "
            "for fewer devices and multiply, or choose from fewer techniques (disaggregation makes most of them)"
        )


def _check_fleets(fleets: Sequence[Fleet]) -> None:
    named = [f.node.device.name for f in fleets]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is named twice; give each device one range")


def _nothing_fits(model: Architecture, fleets: Sequence[Fleet]) -> str:
    asked = ", ".join(
        f"{f.most} x {f.node.device.title} ({f.node.device.memory_capacity / 1e9:.0f} GB)" for f in fleets
    )
    return (
        f"{model.name} fits in no layout of {asked}, not even for one request: give more devices, devices with more "
        "memory, shorter prompts, or allow techniques that store weights in fewer bits"
    )


def _blocks(
    base: Setup, fleet: Fleet, goal: Goal, allowed: Iterable[str] | None
) -> Iterator[tuple[list[Variant], Setup]]:
    """Slices of the space: Setups of shape ``[prefill layouts, decode layouts, variants, batches]``."""
    variants = [v for v in space.variants(base, allowed) if v.quality >= (goal.accuracy or 0.0)]
    rows = space.replicated(space.layouts(base.model, fleet.node, base.engine, fleet.most), fleet.most)
    rows = space.picked(rows, np.argsort(rows.devices, kind="stable"))
    for split in (False, True):
        kept = [v for v in variants if (v.setup.prefill is not None) == split]
        usable = space.picked(rows, rows.devices < fleet.most) if split else rows
        if not kept or not len(usable.devices):
            continue
        every = stacked(kept)
        step = max(1, SLICE // (len(kept) * TYPICAL_BATCHES * (len(usable.devices) if split else 1)))
        for at in range(0, len(usable.devices), step):
            pool = space.picked(usable, slice(at, at + step))
            # Only batches that one of these layouts can hold, and prefill pools that fit beside the smallest.
            most = largest_batch(every, space.reshaped(pool, (-1, 1, 1))).max()
            batch = space.batches(int(min(MOST_BATCH, most)))
            beside = space.picked(usable, usable.devices <= fleet.most - pool.devices[0])
            decode = replace(space.reshaped(pool, (1, -1, 1, 1)), batch=batch)
            yield (
                kept,
                replace(every, decode=decode, prefill=space.reshaped(beside, (-1, 1, 1, 1)) if split else None),
            )


def stacked(variants: list[Variant]) -> Setup:
    """One Setup whose own fields hold every variant's, shape ``[variants, 1]`` where they differ."""
    setups = [v.setup for v in variants]
    columns = {name: np.array([[s.arrays()[name]] for s in setups]) for name in setups[0].arrays()}
    differing: dict[str, Any] = {n: a if (a != a.flat[0]).any() else a.flat[0] for n, a in columns.items()}
    return replace(setups[0], **differing)


def _price(seen: _Seen, platform: Platform, goal: Goal, fleet: Fleet, variants: list[Variant], block: Setup) -> None:
    """Price a block; keep the best batch of each layout and variant, the trade-off, and the nearest miss."""
    predicted = predict(platform, block)
    bill = costs(block, predicted)
    shape = block.shape
    asked = (block.devices >= fleet.least) & (block.devices <= fleet.most)
    allowed = np.broadcast_to(asked & space.whole_blocks(block), shape)
    seen.priced += int(allowed.sum())
    starts = allowed & predicted.fits
    seen.started += int(starts.sum())
    if not starts.any():
        return
    price = block.node.device.price_per_hour
    if price is None and (goal.objective == "cost" or goal.budget is not None):
        name = block.node.device.name
        seen.left_out[name] = f"no price is catalogued for {name}; give one with --price {name}=DOLLARS"
        return
    value = np.broadcast_to(score(goal, predicted, bill, np.asarray(block.osl, float)), shape)
    over = excess(goal, predicted, 0.0 if price is None else price)
    worst = np.broadcast_to(np.maximum.reduce(np.broadcast_arrays(0.0, *over.values())), shape)
    meets = starts & (worst <= 1)

    def candidate(index: tuple[int, ...]) -> Candidate:
        return Candidate(float(value[index]), variants[index[2]], block, index)

    _keep_points(seen, predicted, block, starts & _within(over, shape), meets, candidate)
    if meets.any():
        masked = np.where(meets, value, np.inf)
        best = masked.argmin(axis=-1)
        reached = np.take_along_axis(masked, best[..., None], -1)[..., 0]
        seen.met += int(np.isfinite(reached).sum())
        ranked = np.argsort(reached, axis=None)[: min(KEPT, int(np.isfinite(reached).sum()))]
        for index in zip(*(a.tolist() for a in np.unravel_index(ranked, reached.shape)), strict=True):
            seen.candidates.append(candidate((*index, int(best[index]))))
    elif not seen.candidates:
        nearest = np.unravel_index(int(np.where(starts, worst, np.inf).argmin()), shape)
        index = tuple(int(i) for i in nearest)
        if seen.miss is None or worst[index] < max(seen.miss.excess.values()):
            exceeded = {name: float(np.broadcast_to(a, shape)[index]) for name, a in over.items()}
            seen.miss = Miss(candidate(index), exceeded)


def _within(over: dict[str, Array], shape: tuple[int, ...]) -> Mask:
    """Where every limit holds but those on speed, which the trade-off itself shows."""
    others = [a <= 1 for name, a in over.items() if name not in ("tpot", "latency")]
    return np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(True, *others)), shape)


def _keep_points(
    seen: _Seen,
    predicted: Prediction,
    block: Setup,
    keep: Mask,
    meets: Mask,
    candidate: Callable[[tuple[int, ...]], Candidate],
) -> None:
    """Add the block's own Pareto front to the points."""
    if not keep.any():
        return
    shape = block.shape
    flat = np.flatnonzero(keep)
    per_device = predicted.request_rate * np.asarray(block.osl, float) / predicted.devices
    speed = np.broadcast_to(1 / predicted.tpot, shape).ravel()[flat]
    made = np.broadcast_to(per_device, shape).ravel()[flat]
    for i in _undominated(speed, made):
        index = tuple(int(j) for j in np.unravel_index(flat[i], shape))
        seen.points.append(Point(float(speed[i]), float(made[i]), bool(meets[index]), candidate(index)))


def _undominated(x: Array, y: Array) -> NDArray[np.intp]:
    """Indices of the points that no other point beats in both ``x`` and ``y``, by growing ``x``."""
    order = np.lexsort((-y, -x))
    ahead = np.concatenate(([-np.inf], np.maximum.accumulate(y[order])[:-1]))
    return order[y[order] > ahead][::-1]


def _skyline(points: list[Point]) -> tuple[Point, ...]:
    if not points:
        return ()
    best = _undominated(np.array([p.per_user for p in points]), np.array([p.per_device for p in points]))
    return tuple(points[i] for i in best)
