"""The event loop of a pool of lent cards: what happens, what pairs a scheduler is offered, what it takes.

``begin`` a run, then in turns ``offer`` (go on to the next choice; 0 rows: all is over) and ``take`` a row of it. The
heuristics' compiled loop and the learned policy call the same functions.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.fleet.community_pool import HISTORY, Trace

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOW = 32
"""Tasks of the queue that are offered at once."""
OFFERED = 64
"""Most pairs that are offered at once, if there are no more cards than that."""
UNSEEN, WAITING, RUNNING, DONE, FAILED, EXPIRED = range(6)
"""What becomes of a task."""

COLUMNS = (
    "task", "card", "priority", "transfer", "compute", "slack", "uptime", "stay", "peak", "memory", "attempt", "idle",
    "waiting", "urgent", "contenders", "choices", "task_best", "card_best",
)  # fmt: skip
"""What a scheduler knows of a pair: numbers of the task and the card; 1 for high priority; seconds of transfer, of
compute, and from their end to the deadline; seconds since the card returned, and its mean stay as observed; its FLOP/s
over the pool's mean; memory used over its memory; attempts lost; share of the cards that are idle; tasks that wait, and
those of high priority; offered tasks that this card could take, and cards that could take this task; shortest transfer
and compute together of the task over the cards, and of the card over the tasks."""
(
    TASK, CARD, PRIORITY, TRANSFER, COMPUTE, SLACK, UPTIME, STAY, PEAK, MEMORY, ATTEMPT, IDLE,
    WAIT, URGENT, CONTENDERS, CHOICES, TASK_BEST, CARD_BEST,
) = range(len(COLUMNS))  # fmt: skip


class State(NamedTuple):
    """Where a run stands.

    Of tasks: ``status``, when it ``ended``, attempts ``lost``, card seconds ``fetching`` data, ``wasted`` in lost
    attempts and ``held`` in all; ``queue``: those that wait, in order. Of cards: the task it is ``at`` (-1: none), from
    ``start``, with ``data_at`` there, to ``finish``; whether it is ``up``, ``since`` when, its ``stayed`` seconds in
    ``left`` completed stays. ``clock``: ``[1]``; ``cursor``: next arrival, next toggle, tasks waiting, whether pairs
    are open, card used last.
    """

    status: Ints
    ended: Array
    lost: Ints
    fetching: Array
    wasted: Array
    held: Array
    queue: Ints
    at: Ints
    start: Array
    data_at: Array
    finish: Array
    up: Ints
    since: Array
    stayed: Array
    left: Ints
    clock: Array
    cursor: Ints


NEXT, TOGGLE, QUEUED, OPEN, LAST = range(5)


def begin(trace: Trace) -> State:
    """Nothing has happened yet."""
    tasks, cards = trace.arrival.size, trace.rate.size

    def whole(size: int) -> Ints:
        return np.zeros(size, np.int64)

    return State(
        status=whole(tasks), ended=np.full(tasks, np.nan), lost=whole(tasks), fetching=np.zeros(tasks),
        wasted=np.zeros(tasks), held=np.zeros(tasks), queue=whole(tasks), at=whole(cards) - 1, start=np.zeros(cards),
        data_at=np.zeros(cards), finish=np.full(cards, np.inf), up=whole(cards), since=np.zeros(cards),
        stayed=np.zeros(cards), left=whole(cards), clock=np.full(1, -HISTORY), cursor=np.array([0, 0, 0, 0, -1]),
    )  # fmt: skip


def sheet(trace: Trace) -> Array:
    """Room for what is offered at once, ``[most, COLUMNS]``: at least every card for the first task."""
    return np.ones((max(OFFERED, trace.rate.size), len(COLUMNS)))


@njit(cache=True)
def _enqueue(trace: Trace, state: State, task: int) -> None:
    """Into the queue: high priority first, then the earlier deadline."""
    state.status[task] = WAITING
    i = state.cursor[QUEUED]
    while i > 0:
        other = state.queue[i - 1]
        ahead = trace.priority[task] - trace.priority[other]
        if ahead < 0 or (ahead == 0 and trace.deadline[task] >= trace.deadline[other]):
            break
        state.queue[i] = other
        i -= 1
    state.queue[i] = task
    state.cursor[QUEUED] += 1


@njit(cache=True)
def _release(trace: Trace, state: State, card: int) -> None:
    """The card's task has ended or is lost: what it took of the card."""
    task, now = state.at[card], state.clock[0]
    state.fetching[task] += min(now, state.data_at[card]) - state.start[card]
    state.held[task] += now - state.start[card]
    state.at[card], state.finish[card] = -1, np.inf


@njit(cache=True)
def _happen(trace: Trace, state: State) -> bool:
    """The next arrival, toggle or completion; whether there was one. Tasks whose deadline has passed expire."""
    cursor = state.cursor
    card = int(np.argmin(state.finish))
    arrival = trace.arrival[cursor[NEXT]] if cursor[NEXT] < trace.arrival.size else np.inf
    toggle = trace.toggle[cursor[TOGGLE]] if cursor[TOGGLE] < trace.toggle.size else np.inf
    now = min(arrival, toggle, state.finish[card])
    kept = 0
    for i in range(cursor[QUEUED]):
        task = state.queue[i]
        if trace.deadline[task] < now:
            state.status[task], state.ended[task] = EXPIRED, trace.deadline[task]
        else:
            state.queue[kept] = task
            kept += 1
    cursor[QUEUED] = kept
    if now == np.inf:
        return False
    state.clock[0] = now
    if state.finish[card] == now:
        task = state.at[card]
        state.status[task], state.ended[task] = DONE, now
        _release(trace, state, card)
    elif arrival == now:
        _enqueue(trace, state, cursor[NEXT])
        cursor[NEXT] += 1
    else:
        card = int(trace.toggled[cursor[TOGGLE]])
        cursor[TOGGLE] += 1
        if state.up[card]:
            state.stayed[card] += now - state.since[card]
            state.left[card] += 1
            task = state.at[card]
            if task >= 0:
                state.wasted[task] += now - state.start[card]
                _release(trace, state, card)
                state.lost[task] += 1
                if state.lost[task] >= trace.attempts[0]:
                    state.status[task], state.ended[task] = FAILED, now
                else:
                    _enqueue(trace, state, task)
        state.up[card] = 1 - state.up[card]
        state.since[card] = now
    return True


@njit(cache=True)
def _pairs(trace: Trace, state: State, pairs: Array) -> int:
    """Write the open pairs ``[most, COLUMNS]``; how many."""
    now, cards = state.clock[0], trace.rate.size
    stayed, left, idle, urgent = 0.0, 0, 0, 0
    for g in range(cards):
        stayed += state.stayed[g] + (now - state.since[g] if state.up[g] else 0.0)
        left += state.left[g]
        idle += state.up[g] == 1 and state.at[g] < 0
    if idle == 0:
        return 0
    for i in range(state.cursor[QUEUED]):
        urgent += trace.priority[state.queue[i]]
    usual, mean_rate = stayed / (left + 1), trace.rate.mean()
    task_best, choices = np.full(WINDOW, np.inf), np.zeros(WINDOW)
    card_best, contenders = np.full(cards, np.inf), np.zeros(cards)
    slot = np.empty(pairs.shape[0], np.int64)
    count, seen, most = 0, 0, pairs.shape[0]
    for i in range(state.cursor[QUEUED]):
        if seen == WINDOW or count == most:
            break
        task, first = state.queue[i], count
        for g in range(cards):
            if count == most or not state.up[g] or state.at[g] >= 0 or trace.memory[task] > trace.capacity[g]:
                continue
            transfer = trace.data[task] / min(trace.line[g], trace.path[trace.home[task], trace.region[g]])
            compute = trace.work[task] / trace.rate[g]
            slack = trace.deadline[task] - now - transfer - compute
            if slack < 0:
                continue
            uptime = now - state.since[g]
            row = pairs[count]
            row[TASK], row[CARD], row[PRIORITY] = task, g, trace.priority[task]
            row[TRANSFER], row[COMPUTE], row[SLACK], row[UPTIME] = transfer, compute, slack, uptime
            # The mean of its own stays, drawn towards the pool's as if two of those had been seen.
            row[STAY] = (state.stayed[g] + uptime + 2 * usual) / (state.left[g] + 2)
            row[PEAK], row[MEMORY] = trace.rate[g] / mean_rate, trace.memory[task] / trace.capacity[g]
            row[ATTEMPT], row[IDLE] = state.lost[task], idle / cards
            row[WAIT], row[URGENT] = state.cursor[QUEUED], urgent
            slot[count] = seen
            task_best[seen] = min(task_best[seen], transfer + compute)
            card_best[g] = min(card_best[g], transfer + compute)
            choices[seen] += 1
            contenders[g] += 1
            count += 1
        seen += count > first
    for k in range(count):
        row, g = pairs[k], int(pairs[k, CARD])
        row[CONTENDERS], row[CHOICES] = contenders[g], choices[slot[k]]
        row[TASK_BEST], row[CARD_BEST] = task_best[slot[k]], card_best[g]
    return count


@njit(cache=True)
def offer(trace: Trace, state: State, pairs: Array) -> int:
    """Go on until there are pairs to choose from, and write them ``[most, COLUMNS]``; 0: every task has ended."""
    while True:
        if state.cursor[OPEN]:
            count = _pairs(trace, state, pairs)
            if count:
                return count
        if not _happen(trace, state):
            return 0
        # Nothing can start before the first task is there.
        state.cursor[OPEN] = 1 if state.cursor[QUEUED] else 0


@njit(cache=True)
def take(trace: Trace, state: State, pairs: Array, row: int) -> None:
    """Start the pair of this row of what was offered; below 0: decline until something happens."""
    if row < 0:
        state.cursor[OPEN] = 0
        return
    task, card, now = int(pairs[row, TASK]), int(pairs[row, CARD]), state.clock[0]
    i = 0
    while state.queue[i] != task:
        i += 1
    for k in range(i, state.cursor[QUEUED] - 1):
        state.queue[k] = state.queue[k + 1]
    state.cursor[QUEUED] -= 1
    state.status[task] = RUNNING
    state.at[card], state.start[card], state.cursor[LAST] = task, now, card
    state.data_at[card] = now + pairs[row, TRANSFER]
    state.finish[card] = state.data_at[card] + pairs[row, COMPUTE]
