"""A pool of cards that people lend: unlike, far apart, and gone without notice (Yu et al., REACH, arXiv 2508.12857).

A task has work (FLOP), needs memory, and finds its data in one region. A card that takes it first fetches the data at
the lower of its own line and the path between the regions, then computes:

    transfer = data / min(line, path[home, region])        compute = work / (utilization * peak)

Cards leave and return. A card that leaves loses what it was at; the task waits again, and has failed when its attempts
are used up. A task that waits beyond its deadline has expired. Times of a stay are Weibull with a shape below one, as
measured on lent machines (Nurmi, Brevik, Wolski, Euro-Par 2005): who has stayed long will stay longer.

Whenever something happens the scheduler is offered pairs (task, card): of the first tasks in the queue (high priority
first, then the earlier deadline) with the idle cards that hold them and end in time if they stay. It takes one, is
offered again, until it declines or no pair is left. All schedulers see the same rows and nothing of the future.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.fleet.community_loop import (
    CARD,
    COMPUTE,
    DONE,
    EXPIRED,
    FAILED,
    LAST,
    PRIORITY,
    SLACK,
    STAY,
    TASK,
    TASK_BEST,
    TRANSFER,
    State,
    begin,
    offer,
    sheet,
    take,
)  # fmt: skip
from nearpeak.fleet.community_pool import HOME, RACK, Community, Trace, draw
from nearpeak.topic import Explanation, Option, Table, Topic, names

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@njit(cache=True)
def fastest(pairs: Array, last: int, chance: float) -> int:
    """Greedy: the first task to the card that computes fastest, wherever the data are."""
    best = 0
    for k in range(pairs.shape[0]):
        if pairs[k, TASK] == pairs[0, TASK] and pairs[k, COMPUTE] < pairs[best, COMPUTE]:
            best = k
    return best


@njit(cache=True)
def earliest(pairs: Array, last: int, chance: float) -> int:
    """Greedy: the first task to the card that ends it first, transfer and compute together."""
    best = 0
    for k in range(pairs.shape[0]):
        if pairs[k, TASK] == pairs[0, TASK] and pairs[k, SLACK] > pairs[best, SLACK]:
            best = k
    return best


@njit(cache=True)
def nearest(pairs: Array, last: int, chance: float) -> int:
    """Bandwidth-aware greedy: the first task to the card that fetches the data first; of equals, that ends it first."""
    best = 0
    for k in range(pairs.shape[0]):
        if pairs[k, TASK] == pairs[0, TASK]:
            ahead = pairs[k, TRANSFER] - pairs[best, TRANSFER]
            if ahead < 0 or (ahead == 0 and pairs[k, SLACK] > pairs[best, SLACK]):
                best = k
    return best


@njit(cache=True)
def round_robin(pairs: Array, last: int, chance: float) -> int:
    """The first task to the card that is next in turn."""
    best = 0
    for k in range(pairs.shape[0]):
        if pairs[k, TASK] != pairs[0, TASK]:
            break
        if pairs[k, CARD] > last:
            return k
    return best


@njit(cache=True)
def at_random(pairs: Array, last: int, chance: float) -> int:
    """The first task to any card."""
    rows = 0
    while rows < pairs.shape[0] and pairs[rows, TASK] == pairs[0, TASK]:
        rows += 1
    return int(chance * rows)


@njit(cache=True)
def shortest(pairs: Array, last: int, chance: float) -> int:
    """Min-min (Ibarra, Kim 1977): of all pairs the one that takes least time."""
    best = 0
    for k in range(pairs.shape[0]):
        if pairs[k, TRANSFER] + pairs[k, COMPUTE] < pairs[best, TRANSFER] + pairs[best, COMPUTE]:
            best = k
    return best


def log_worth(priority: Any, transfer: Any, compute: Any, slack: Any, stay: Any, task_best: Any) -> Any:  # noqa: ANN401
    """How good a pair is by all that is known of it: columns of what is offered, numbers or arrays.

        log of exp(0.4 priority - t / stay - transfer / t) / sqrt((t + slack) t / task_best),   t = transfer + compute

    A card that is likely to stay, little waiting for data, a deadline that is near, a card that suits the task as well
    as any. Form and exponents come from a search (cross-entropy method) over traces that no comparison uses.
    """
    time = transfer + compute
    return 0.4 * priority - time / stay - transfer / time - 0.5 * np.log((time + slack) * time / task_best)


_log_worth = njit(cache=True)(log_worth)


RISK = 0.6
"""Share of its mean stay that ``informed`` asks of a card for one task at most."""


@njit(cache=True)
def informed(pairs: Array, last: int, chance: float) -> int:
    """Of the pairs that will last (t <= RISK stay) the one of most worth (``log_worth``); declines if there is none.

    The best greedy rule that we could write.
    """
    best, most = -1, -np.inf
    for k in range(pairs.shape[0]):
        row = pairs[k]
        worth = _log_worth(row[PRIORITY], row[TRANSFER], row[COMPUTE], row[SLACK], row[STAY], row[TASK_BEST])
        if row[TRANSFER] + row[COMPUTE] <= RISK * row[STAY] and worth > most:
            best, most = k, worth
    return best


RULES = {
    "fastest": fastest,
    "earliest": earliest,
    "nearest": nearest,
    "round-robin": round_robin,
    "random": at_random,
    "shortest": shortest,
    "informed": informed,
}
"""Heuristics by name, in the order of their codes."""


@njit(cache=True)
def _run(trace: Trace, state: State, pairs: Array, code: int, chance: Array) -> None:
    step = 0
    while True:
        count = offer(trace, state, pairs)
        if count == 0:
            return
        open_pairs, last, luck = pairs[:count], state.cursor[LAST], chance[step % chance.size]
        step += 1
        if code == 0:
            row = fastest(open_pairs, last, luck)
        elif code == 1:
            row = earliest(open_pairs, last, luck)
        elif code == 2:
            row = nearest(open_pairs, last, luck)
        elif code == 3:
            row = round_robin(open_pairs, last, luck)
        elif code == 4:
            row = at_random(open_pairs, last, luck)
        elif code == 5:
            row = shortest(open_pairs, last, luck)
        else:
            row = informed(open_pairs, last, luck)
        take(trace, state, pairs, row)


@dataclass(frozen=True)
class Outcome:
    """What came of a trace.

    Attributes:
        done, failed, expired: tasks. completion: share of all that were done; urgent_completion: of high priority.
        bandwidth_penalty: share of the time for which cards were held that they waited for data.
        lost_share: of that time, what went with cards that left.
        latency: mean seconds from arrival to end of what was done.
    """

    done: int
    failed: int
    expired: int
    completion: float
    urgent_completion: float
    bandwidth_penalty: float
    lost_share: float
    latency: float


def outcome(trace: Trace, state: State) -> Outcome:
    """Of a run that has ended."""
    done, urgent = state.status == DONE, trace.priority == 1
    held = max(state.held.sum(), 1e-300)
    return Outcome(
        int(done.sum()), int((state.status == FAILED).sum()), int((state.status == EXPIRED).sum()),
        float(done.mean()), float(done[urgent].mean()) if urgent.any() else 1.0,
        float(state.fetching.sum() / held), float(state.wasted.sum() / held),
        float((state.ended - trace.arrival)[done].mean()) if done.any() else 0.0,
    )  # fmt: skip


def run(trace: Trace, rule: str, seed: int = 0) -> Outcome:
    """What comes of a trace under a heuristic. ``seed``: of the random one.

    Raises:
        UnknownName: there is no such heuristic.
    """
    if rule not in RULES:
        raise UnknownName("rule", rule, RULES)
    state = begin(trace)
    _run(trace, state, sheet(trace), list(RULES).index(rule), np.random.default_rng(seed).random(4096))
    return outcome(trace, state)


def unseen(community: Community, count: int, seed: int = 0) -> list[Trace]:
    """Pools and traces for a comparison. None of them was ever trained on: training draws from odd seeds.

    Raises:
        UsageError: ``count`` or ``seed`` is negative, or as ``draw``.
    """
    if count < 1 or seed < 0:
        raise UsageError(f"{count} traces from seed {seed}; give at least 1 trace and a seed of at least 0")
    return [draw(community, 2 * (1_000_000 * seed + i)) for i in range(count)]


def mean_interval(values: Array, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Bootstrap interval of the mean that covers 95 %. ``values``: ``[traces]``."""
    drawn = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


PLAIN = ("fastest", "earliest", "nearest", "round-robin", "random")
"""Heuristics that take the first task of the queue and look for no more than speed and bandwidth."""
LEARNED = "learned"


def compare(drawn: list[Trace], weights: str | None = None, learned: bool = True) -> dict[str, list[Outcome]]:
    """What comes of traces under each scheduler, by its name.

    Args:
        drawn: traces. weights: a file of ``community_policy.save``; None: those that ship.
        learned: whether the learned policy takes part; it needs torch.
    """
    found = {rule: [run(trace, rule, i) for i, trace in enumerate(drawn)] for rule in RULES}
    if learned:
        from nearpeak.fleet import community_policy

        found[LEARNED] = community_policy.evaluate(community_policy.load(weights), drawn)
    return found


def _explain(
    traces: int, size: int, tasks: int, load: float, churn: float, stay: float, data: float, home: tuple[str, ...],
    rack: tuple[str, ...], weights: str, seed: int,
) -> Explanation:  # fmt: skip
    from importlib.util import find_spec

    own = Community(home, rack, size, tasks=tasks, load=load, churn=churn, stay=stay, data=data)
    learned = find_spec("torch") is not None
    found = compare(unseen(own, traces, seed), weights or None, learned)
    columns = ("completion", "urgent_completion", "bandwidth_penalty", "lost_share", "latency")
    mean = {name: {c: float(np.mean([getattr(o, c) for o in of])) for c in columns} for name, of in found.items()}
    best = max(PLAIN, key=lambda name: mean[name]["completion"])
    table = Table.of(
        f"Means over {traces} traces of {tasks} tasks",
        scheduler=list(mean),
        completion_share=[m["completion"] for m in mean.values()],
        high_priority_share=[m["urgent_completion"] for m in mean.values()],
        waiting_for_data_share=[m["bandwidth_penalty"] for m in mean.values()],
        lost_with_cards_share=[m["lost_share"] for m in mean.values()],
        latency=[m["latency"] for m in mean.values()],
    )
    figures = {"best_plain": best, "best_plain_completion_share": mean[best]["completion"]}
    if not learned:
        return Explanation(figures, (table,), ("The learned policy needs torch: pip install nearpeak[torch].",))
    says = []
    for rival in (best, "informed"):
        gain = np.array([a.completion - b.completion for a, b in zip(found[LEARNED], found[rival], strict=True)])
        low, high = mean_interval(gain)
        word = "ahead of" if low > 0 else "behind" if high < 0 else "no different for certain from"
        says.append(
            f"The learned policy is {word} {rival}: {100 * gain.mean():+.2f} points of completion "
            f"(95 % of bootstrap means: {100 * low:+.2f} to {100 * high:+.2f})."
        )
    figures["learned_completion_share"] = mean[LEARNED]["completion"]
    return Explanation(figures, (table,), tuple(says))


TOPIC = Topic(
    "community",
    "How many tasks does a pool of lent cards complete, and what does a learned scheduler add to simple rules?",
    "Yu et al., REACH: Reinforcement Learning for Efficient Allocation in Community and Heterogeneous Networks, 2025 "
    "(arXiv 2508.12857)",
    (
        Option("traces", int, "Pools and traces drawn for the comparison.", 20),
        Option("size", int, "Cards of a pool.", Community.size),
        Option("tasks", int, "Tasks of a trace.", Community.tasks),
        Option("load", float, "Their work over what the cards could do while they stay.", Community.load),
        Option("churn", float, "How many times as often cards leave and return.", Community.churn),
        Option("stay", float, "Seconds that a home's card stays, in the median over cards.", Community.stay),
        Option("data", float, "Bytes that a task fetches first, in the median.", Community.data),
        Option("home", names, "Devices at people's homes.", HOME),
        Option("rack", names, "Devices in server rooms.", RACK),
        Option("weights", str, "A trained policy's file; empty: the one that ships.", ""),
        Option("seed", int, "Of the traces.", 0),
    ),
    _explain,
    "--traces 2 --size 32 --tasks 200 --churn 2",
)
