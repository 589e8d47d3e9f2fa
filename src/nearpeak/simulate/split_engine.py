"""Prefill and decode on one device, event by event: in mixed steps, or at once, each on its share of the units.

Requests, prompts and caches are the same in both; ``split`` says what is what, ``split_model`` what a step takes. At
once, both phases go through their layers kernel by kernel: a phase's kernel is the slower for the bandwidth that the
other's draws meanwhile.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.simulate.split_model import KINDS, LEAST, add_dense, alone, look_up, part, search, stretched
from nearpeak.simulate.steps import overlapped

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

FCFS, SHORTEST = 0, 1
STATIC, PROACTIVE, BLIND, REACTIVE = 0, 1, 2, 3
"""Who sets the shares: nobody; the search; the search without contention; thresholds on what was missed."""


@njit(cache=True)
def take_prompts(
    waiting: Counts, count: int, left: Counts, arrival: Array, begun: NDArray[np.bool_], need: Counts, free: int,
    budget: int, order: int, age: float, now: float, slots: int, take: Counts,
) -> int:  # fmt: skip
    """Tokens of each waiting prompt that the next step prefills, into ``take``; returns the free tokens of cache left.

    Args:
        waiting: prompts in order of arrival, the first ``count`` count. order: ``FCFS``, or ``SHORTEST``: by tokens
            that are left less ``age`` tokens for each second since arrival, so that no prompt starves.
        need: tokens of cache that a request reserves when it begins. slots: requests that may still begin.
    """
    scores, room = np.empty(count), budget
    for i in range(count):
        r = waiting[i]
        take[i], scores[i] = 0, i if order == FCFS else left[r] - age * (now - arrival[r])
    while room > 0:
        best = -1
        for i in range(count):
            if scores[i] < np.inf and (best < 0 or scores[i] < scores[best]):
                best = i
        if best < 0:
            break
        r = waiting[best]
        scores[best] = np.inf
        if not begun[r]:
            if need[r] > free or slots <= 0:
                if order == FCFS:
                    break
                continue
            free -= need[r]
            slots -= 1
            begun[r] = True
        take[best] = min(room, left[r])
        room -= take[best]
    return free


@njit(cache=True)
def emit(
    running: Counts, count: int, now: float, first: Counts, isl: Counts, osl: Counts, need: Counts, last: Array,
    done: Counts, end: Array, gaps: Array, limit: float,
) -> tuple[int, int, int, int]:  # fmt: skip
    """All running requests get a token at ``now``; those that are complete leave ``running``.

    Returns:
        How many go on, tokens of cache that the others give back, tokens by which the contexts grow in all, and gaps
        above ``limit``.
    """
    kept, freed, grown, late = 0, 0, count, 0
    for i in range(count):
        r = running[i]
        gap = now - last[r]
        gaps[first[r] + done[r] - 1] = gap
        late += gap > limit
        last[r] = now
        done[r] += 1
        if done[r] == osl[r]:
            end[r] = now
            freed += need[r]
            grown -= isl[r] + done[r]
        else:
            running[kept] = r
            kept += 1
    return kept, freed, grown, late


@njit(cache=True)
def run_chunked(
    arrival: Array, isl: Counts, osl: Counts, first: Counts, dense: Array, attend: Array, read: Array, host: Array,
    capacity: int, batch: int, budget: int, order: int, age: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Chunked prefill: every step takes all running requests and, up to ``budget`` tokens, parts of prompts.

    Args:
        first: index of each request's first gap. dense, attend, read: tables of parts. host: seconds of a step, of a
            sequence, of launching a step with prompts. age: see ``take_prompts``.

    Returns:
        Seconds to the first token, end of each request, and gaps between its tokens, one request after another.
    """
    n = arrival.size
    left, need = isl.copy(), isl + osl
    begun = np.zeros(n, np.bool_)
    waiting, take, queued = np.empty(n, np.int64), np.empty(n, np.int64), 0
    running, done, count = np.empty(batch, np.int64), np.zeros(n, np.int64), 0
    ttft, end, last, gaps = np.empty(n), np.empty(n), np.empty(n), np.empty(first[n])
    free, now, coming, over, held, context = capacity, 0.0, 0, 0, 0, 0
    work = np.zeros((KINDS, 3))
    while over < n:
        while coming < n and arrival[coming] <= now:
            waiting[queued] = coming
            queued, coming = queued + 1, coming + 1
        if queued == 0 and count == 0:
            now = arrival[coming]
            continue
        free = take_prompts(
            waiting, queued, left, arrival, begun, need, free, budget - count, order, age, now, batch - held, take
        )
        work[:] = 0.0
        new = 0
        for i in range(queued):
            if take[i]:
                r = waiting[i]
                look_up(attend, take[i], isl[r] - left[r], 1.0, work[4])
                new += take[i]
        add_dense(dense, new, count, work)
        if count:
            look_up(read, count, context / count, 1.0, work[5])
        seconds = alone(work, 1.0, 1.0)
        if new:
            seconds = overlapped(seconds, host[2])
        now += seconds + host[0] + host[1] * (count + (1 if new else 0))
        kept, freed, grown, _ = emit(running, count, now, first, isl, osl, need, last, done, end, gaps, np.inf)
        over, held, count = over + count - kept, held - (count - kept), kept
        free, context = free + freed, context + grown
        kept = 0
        for i in range(queued):
            r = waiting[i]
            if take[i] and left[r] == isl[r]:
                held += 1
            left[r] -= take[i]
            if left[r]:
                waiting[kept] = r
                kept += 1
                continue
            ttft[r], last[r], done[r] = now - arrival[r], now, 1
            if osl[r] == 1:
                end[r] = now
                free += need[r]
                over, held = over + 1, held - 1
            else:
                running[count] = r
                context += isl[r] + 1
                count += 1
        queued = kept
    return ttft, end, gaps


@njit(cache=True)
def run_split(
    arrival: Array, isl: Counts, osl: Counts, first: Counts, dense: Array, attend: Array, read: Array, host: Array,
    capacity: int, batch: int, budget: int, order: int, age: float,
    layers: int, reach: float, control: int, share: float, grain: float, hysteresis: float, slack: Array,
    decode_first_at: float, thresholds: Array,
) -> tuple[Array, Array, Array, Array, Array]:  # fmt: skip
    """Prefill and decode at once, each on its share of the units; arguments and returns as of ``run_chunked``.

    A step's share is set when it begins; where steps begun before still hold more, all get proportionally less.

    Args:
        control: who sets the shares. share: the prefill's to begin with. grain, slack: see ``search``.
        hysteresis: least change of share that is carried out.
        decode_first_at: share of the cache in use from which decode comes first, so that memory frees up.
        thresholds: of the reactive controller: seconds of its window, its step, the part of tokens that may be late,
            and what is late, for later tokens and for first ones.

    Returns:
        Besides, the times at which the prefill's share changed, and what it became.
    """
    n = arrival.size
    left, need = isl.copy(), isl + osl
    begun = np.zeros(n, np.bool_)
    waiting, take, queued = np.empty(n, np.int64), np.zeros(n, np.int64), 0
    running, done, count = np.empty(batch, np.int64), np.zeros(n, np.int64), 0
    joining, joined = np.empty(batch, np.int64), 0
    ttft, end, last, gaps = np.empty(n), np.empty(n), np.empty(n), np.empty(first[n])
    free, now, coming, over, held, context = capacity, 0.0, 0, 0, 0, 0
    work = np.zeros((2, KINDS, 3))
    active, kind, layer = np.zeros(2, np.bool_), np.zeros(2, np.int64), np.zeros(2, np.int64)
    remaining, delay, own = np.zeros(2), np.zeros(2), np.zeros(2)
    changed, became = [0.0], [share]
    check, late, seen, late_first, seen_first = thresholds[0], 0, 0, 0, 0
    look = True
    while over < n:
        while coming < n and arrival[coming] <= now:
            waiting[queued] = coming
            queued, coming, look = queued + 1, coming + 1, True
        starts_prefill = False
        if look and not active[0] and queued:
            free = take_prompts(
                waiting, queued, left, arrival, begun, need, free, budget, order, age, now, batch - held, take
            )
            work[0], new = 0.0, 0
            for i in range(queued):
                if take[i]:
                    r = waiting[i]
                    look_up(attend, take[i], isl[r] - left[r], 1.0, work[0, 4])
                    new += take[i]
                    if left[r] == isl[r]:
                        held += 1
            if new:
                starts_prefill = True
                add_dense(dense, new, 0.0, work[0])
                whole = alone(work[0], 1.0, reach)
                delay[0] = overlapped(whole, host[2]) - whole + host[0] + host[1]
            look = False
        starts_decode = not active[1] and count + joined > 0
        if starts_decode:
            for i in range(joined):
                running[count + i] = joining[i]
                context += isl[joining[i]] + 1
            count, joined = count + joined, 0
            work[1] = 0.0
            add_dense(dense, 0.0, count, work[1])
            look_up(read, count, context / count, 1.0, work[1, 5])
            delay[1] = host[0] + host[1] * count
        if starts_prefill or starts_decode:
            both = (active[0] or starts_prefill) and (active[1] or starts_decode)
            if both and (control in (PROACTIVE, BLIND)):
                decode_first = capacity - free > decode_first_at * capacity
                found = search(work[0], work[1], share, grain, reach, decode_first, slack, control == PROACTIVE)
                if abs(found - share) >= hysteresis - LEAST:
                    share = found
                    changed.append(now)
                    became.append(share)
            for side in range(2):
                if starts_decode if side else starts_prefill:
                    own[side] = 1.0 if not both else (1 - share if side else share)
                    active[side], kind[side], layer[side], remaining[side] = True, -1, 0, 1.0
        if not (active[0] or active[1]):
            now = arrival[coming]
            continue
        given = max(1.0, (own[0] if active[0] else 0.0) + (own[1] if active[1] else 0.0))
        stretch = 1.0
        if active[0] and active[1] and kind[0] >= 0 and kind[1] >= 0:
            stretch = stretched(work[0, kind[0]], own[0] / given, work[1, kind[1]], own[1] / given, reach)
        took, soonest, pace = np.inf, -1, np.zeros(2)
        for side in range(2):
            if active[side]:
                if kind[side] < 0:
                    pace[side] = delay[side]
                else:
                    pace[side] = part(work[side, kind[side]], own[side] / given, stretch, reach) / layers
                if remaining[side] * pace[side] < took:
                    took, soonest = remaining[side] * pace[side], side
        if not active[0] and coming < n and arrival[coming] - now < took:
            took, soonest = arrival[coming] - now, -1
        now += took
        for side in range(2):
            if active[side] and pace[side] > 0:
                remaining[side] -= took / pace[side]
        if soonest < 0:
            continue
        remaining[soonest] = 1.0
        kind[soonest] += 1
        while layer[soonest] < layers:
            while kind[soonest] < KINDS and work[soonest, kind[soonest]].sum() <= 0:
                kind[soonest] += 1
            if kind[soonest] < KINDS:
                break
            kind[soonest], layer[soonest] = 0, layer[soonest] + 1
        if layer[soonest] < layers:
            continue
        active[soonest] = False
        look = True
        if soonest == 0:
            kept = 0
            for i in range(queued):
                r = waiting[i]
                left[r] -= take[i]
                take[i] = 0
                if left[r]:
                    waiting[kept] = r
                    kept += 1
                    continue
                ttft[r], last[r], done[r] = now - arrival[r], now, 1
                seen_first += 1
                late_first += ttft[r] > thresholds[4]
                if osl[r] == 1:
                    end[r] = now
                    free += need[r]
                    over, held = over + 1, held - 1
                else:
                    joining[joined] = r
                    joined += 1
            queued = kept
        else:
            seen += count
            kept, freed, grown, missed = emit(
                running, count, now, first, isl, osl, need, last, done, end, gaps, thresholds[3]
            )
            over, held, count = over + count - kept, held - (count - kept), kept
            free, context, late = free + freed, context + grown, late + missed
        if control == REACTIVE and now >= check:
            for i in range(queued):
                seen_first += 1
                late_first += now - arrival[waiting[i]] > thresholds[4]
            step = 0.0
            if late > thresholds[2] * seen:
                step = -thresholds[1]
            elif late_first > thresholds[2] * seen_first:
                step = thresholds[1]
            following = min(max(share + step, grain), 1 - grain)
            if following != share:
                share = following
                changed.append(now)
                became.append(share)
            check, late, seen, late_first, seen_first = now + thresholds[0], 0, 0, 0, 0
    return ttft, end, gaps, np.array(changed), np.array(became)
