"""Pools of lent cards and the tasks that come upon them, drawn at random."""

from dataclasses import dataclass
from math import gamma
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.topic import require_positive

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

HOME = ("rtx_3090", "rtx_4060", "rtx_4070", "rtx_4090", "rtx_5090")
RACK = ("t4", "a10", "l40s", "a100_pcie", "h100_pcie")
HISTORY = 24 * 3600.0
"""Seconds for which cards came and went before the first task: what a scheduler knows of them."""


@dataclass(frozen=True)
class Community:
    """How a pool and its tasks are drawn. Defaults are assumptions of a plausible pool, not measurements.

    Attributes:
        home, rack: devices of the catalogue that stand at people's homes and in server rooms.
        size: cards. rack_share: of them in server rooms.
        stay, rack_stay: seconds for which a card of either kind stays, the median over cards of their means; spread:
            of the logarithm, from card to card. away: mean seconds until it returns. shape: Weibull's.
        churn: how many times as often cards leave and return.
        line, rack_line: bytes/s of a card's own network, the median over cards (a rack's is the same for all).
        regions: where cards and data are. near, far: bytes/s of a path within a region, and to the farthest.
        tasks: in a trace. load: their work over what all cards could do while they stay.
        seconds: median of a task's compute on the pool's mean card. memory, data: medians of bytes.
        urgent: share of high priority. attempts: after which a task has failed.
        tight, loose: bounds of the deadline, in multiples of the task's median time over the cards that hold it.
        utilization: of a card's peak in bf16 or fp16.
    """

    home: tuple[str, ...] = HOME
    rack: tuple[str, ...] = RACK
    size: int = 64
    rack_share: float = 0.25
    stay: float = 1.5 * 3600.0
    rack_stay: float = 72 * 3600.0
    spread: float = 0.8
    away: float = 3600.0
    shape: float = 0.7
    churn: float = 1.0
    line: float = 25e6
    rack_line: float = 1.25e9
    regions: int = 6
    near: float = 125e6
    far: float = 8e6
    tasks: int = 600
    load: float = 0.9
    seconds: float = 1200.0
    memory: float = 10e9
    data: float = 8e9
    urgent: float = 0.2
    attempts: int = 2
    tight: float = 0.8
    loose: float = 2.5
    utilization: float = 0.4

    def __post_init__(self) -> None:
        positive = ("size", "stay", "rack_stay", "away", "shape", "churn", "line", "rack_line", "regions", "near")
        rest = ("far", "tasks", "load", "seconds", "memory", "data", "attempts", "tight", "utilization")
        require_positive(**{name: getattr(self, name) for name in positive + rest})
        for name in ("rack_share", "urgent"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is a share; give a number from 0 to 1")
        if self.loose < self.tight:
            raise UsageError(f"loose {self.loose} is below tight {self.tight}; it bounds deadlines from above")
        if not self.home or not self.rack:
            raise UsageError("home and rack each need a device; a share of 0 or 1 leaves one of them out")


class Trace(NamedTuple):
    """A pool and what comes upon it, whatever the scheduler does.

    Of tasks ``[tasks]``, by arrival: ``arrival``, ``deadline`` (seconds), ``priority`` (1: high), ``work`` (FLOP),
    ``memory``, ``data`` (bytes), ``home`` (region of the data). Of cards ``[cards]``: ``rate`` (FLOP/s reached),
    ``capacity`` (bytes), ``line`` (bytes/s), ``region``. ``path``: bytes/s ``[regions, regions]``. ``toggle``: when a
    card ``toggled`` leaves or returns, in order; all are away before the first. ``attempts``: ``[1]``.
    """

    arrival: Array
    deadline: Array
    priority: Ints
    work: Array
    memory: Array
    data: Array
    home: Ints
    rate: Array
    capacity: Array
    line: Array
    region: Ints
    path: Array
    toggle: Array
    toggled: Ints
    attempts: Ints


def draw(community: Community, seed: int) -> Trace:
    """A pool and a trace at random: cards, their comings and goings, tasks.

    Raises:
        UnknownName: a device is not in the catalogue. UsageError: it multiplies neither bf16 nor fp16.
    """
    from nearpeak.hardware import device

    rng, c = np.random.default_rng(seed), community
    in_rack = rng.random(c.size) < c.rack_share
    cards = [device(str(rng.choice(c.rack if r else c.home))) for r in in_rack]
    for card in cards:
        if not card.rates.keys() & {"bf16", "fp16"}:
            raise UsageError(f"{card.name} multiplies neither bf16 nor fp16; its rates: {', '.join(card.rates)}")
    rate = c.utilization * np.array([max(d.rates.get("bf16", 0.0), d.rates.get("fp16", 0.0)) for d in cards])
    capacity = np.array([d.memory_capacity for d in cards])
    line = np.where(in_rack, c.rack_line, c.line * np.exp(c.spread * rng.standard_normal(c.size)))
    region = rng.integers(c.regions, size=c.size)
    # Regions lie on a circle; a path's rate falls geometrically with the distance.
    apart = np.abs(np.subtract.outer(np.arange(c.regions), np.arange(c.regions)))
    apart = np.minimum(apart, c.regions - apart)
    path = c.near * (c.far / c.near) ** (apart / max(1, apart.max()))

    mean_stay = np.where(in_rack, c.rack_stay, c.stay) * np.exp(c.spread * rng.standard_normal(c.size)) / c.churn
    up_share = mean_stay / (mean_stay + c.away / c.churn)
    work = c.seconds * rate.mean() * np.exp(0.8 * rng.standard_normal(c.tasks))
    arrival = np.cumsum(rng.exponential(work.mean() / (c.load * (rate * up_share).sum()), c.tasks))
    memory = np.minimum(c.memory * np.exp(0.7 * rng.standard_normal(c.tasks)), 0.95 * capacity.max())
    data = c.data * np.exp(rng.standard_normal(c.tasks))
    home = rng.integers(c.regions, size=c.tasks)
    bandwidth = np.minimum(line, path[home][:, region])
    duration = data[:, None] / bandwidth + work[:, None] / rate
    usual = np.nanmedian(np.where(memory[:, None] <= capacity, duration, np.nan), axis=1)
    deadline = arrival + usual * rng.uniform(c.tight, c.loose, c.tasks)
    toggle, toggled = _comings_and_goings(rng, mean_stay, c.away / c.churn, c.shape, float(deadline.max()))
    return Trace(
        arrival, deadline, (rng.random(c.tasks) < c.urgent).astype(np.int64), work, memory, data, home, rate, capacity,
        line, region, path, toggle, toggled, np.array([c.attempts]),
    )  # fmt: skip


def _comings_and_goings(
    rng: np.random.Generator, stay: Array, away: float, shape: float, end: float
) -> tuple[Array, Ints]:
    """Times at which cards return and leave in turns, and which, in order, from ``HISTORY`` before 0 to ``end``."""
    times, cards = [], []
    for card, mean in enumerate(stay):
        # Four times the turns that are expected; a card that outlived them by luck would just stay.
        turns = 16 + int(4 * (end + HISTORY) / (mean + away))
        steps = np.empty(2 * turns)
        steps[0::2] = rng.exponential(away, turns)
        steps[1::2] = mean / gamma(1 + 1 / shape) * rng.weibull(shape, turns)
        steps[0] *= rng.random() > mean / (mean + away)
        at = np.cumsum(steps) - HISTORY
        at = at[at <= end]
        times.append(at)
        cards.append(np.full(at.size, card))
    when, which = np.concatenate(times), np.concatenate(cards)
    order = np.argsort(when, kind="stable")
    return when[order], which[order]
