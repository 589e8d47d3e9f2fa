"""The event loop of serving, iteration by iteration (compiled): arrivals, steps of engines, caches on their way.

An engine composes a step by its policy, and its plan ends at a known time. Where a step only decodes, and neither an
end, nor memory, nor the next knot of the table comes in between, the plan holds many steps at once: their times are an
arithmetic series. An arrival that could be admitted cuts such a plan at the step in which it came. So a request costs
a handful of events however many tokens it has, and every step still begins and ends when it would.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearpeak.simulate.cache import admit, allot, leave_behind, needed, release, room
from nearpeak.simulate.compiled import compiled, inlined
from nearpeak.simulate.policies import compose
from nearpeak.simulate.queues import draw, leave_queue, pop, push, run_last, stop_running, wait_first, wait_last
from nearpeak.simulate.state import (
    BINS,
    BOTH,
    DECODES,
    DECODING,
    FREE,
    GROUPS,
    LEAST,
    MOST_CLASSES,
    MOVING,
    NEVER,
    PREFILLS,
    RANDOM,
    RATIO,
    ROUND_ROBIN,
    SAME_PREFIX,
    STARTED,
    Rules,
    State,
)
from nearpeak.simulate.steps import StepTable, chunk_attention, line, mixed_seconds

ENDED, WANTS_REQUESTS, WANTS_ROOM, FULL, MORE = range(5)
"""Why the loop returns: all is done; it needs to know what arrives next; it needs more records; ``out`` is full; it has
carried out as many events as it may."""
REQUEST_LEVEL = 4
PER_OCTAVE = 1.0 / np.log(RATIO)


class Feed(NamedTuple):
    """Requests in the order in which they arrive, arrays ``[n]``.

    ``arrival`` in seconds (not read in a closed loop), ``isl`` and ``osl`` in tokens, ``rank`` the class of priority,
    ``prefix`` the group that shares its first ``shared`` tokens, or -1.
    """

    arrival: NDArray[np.float64]
    isl: NDArray[np.int64]
    osl: NDArray[np.int64]
    rank: NDArray[np.int64]
    prefix: NDArray[np.int64]
    shared: NDArray[np.int64]


@compiled
def growth(s: State, rules: Rules, e: int, steps: int) -> int:
    """Blocks that the decoding requests of an engine take in the next ``steps`` steps; drafted tokens need them too."""
    if rules.reserves:
        return 0
    block, n, at = rules.block, s.e[e].decoding, s.e[e].steps
    tokens = steps + rules.draft
    total = tokens // block * n
    for k in range(tokens % block):
        total += s.s[e, (-(at + k)) % block].phase
    return total


@compiled
def series(seconds: float, slope: float, steps: int) -> float:
    """Seconds of some steps, the first of which takes ``seconds`` and each further one ``slope`` more."""
    return steps * (seconds + slope * (steps - 1) / 2)


@compiled
def drop_group(s: State, e: int) -> None:
    """One decoding request less among those whose last token is known: the latest to have joined."""
    g = s.e[e].groups - 1
    while g >= 0 and s.s[e, g].group_n == 0:
        g -= 1
    if g >= 0:
        s.s[e, g].group_n -= 1


@compiled
def no_longer_begun(s: State, e: int, r: int) -> None:
    """Take a prompt off an engine's list of begun ones."""
    n = 0
    for k in range(s.e[e].started):
        if s.s[e, k].started != r:
            s.s[e, n].started = s.s[e, k].started
            n += 1
    s.e[e].started = n


@compiled
def preempt(s: State, rules: Rules, e: int) -> None:
    """The last admitted request of the lowest class gives up its memory, and begins again before those that wait."""
    i, r, other, full = s.e[e].home, s.e[e].tail, s.e[e].tail, 0
    while other >= 0:
        if s.q[other].rank > s.q[r].rank:
            r = other
        other = s.q[other].prev
    if s.q[r].state == DECODING:
        grown = s.e[e].steps - s.q[r].join
        full = (s.q[r].cached + grown) // rules.block
        leave_behind(s, i, r, full * rules.caching)
        leave_decoding(s, rules, e, r)
        drop_group(s, e)
        s.q[r].made += grown
    else:
        no_longer_begun(s, e, r)
        full = (s.q[r].isl + s.q[r].made - s.q[r].left) // rules.block
        leave_behind(s, i, r, full * rules.caching)
        release(s, i, r, s.q[r].blocks, 0, rules.block)
    stop_running(s, e, r)
    s.q[r].left = s.q[r].isl + s.q[r].made
    s.q[r].preempted += 1
    s.g[0].preemptions += 1
    wait_first(s, i, r)


@compiled
def leave_decoding(s: State, rules: Rules, e: int, r: int) -> None:
    """A request stops to decode and gives up its memory; entries of it in the heap are void from now on."""
    i, grown = s.e[e].home, s.e[e].steps - s.q[r].join
    cached, own = s.q[r].cached + grown, s.q[r].blocks
    s.e[e].decoding -= 1
    s.e[e].contexts -= cached
    if rules.reserves == 0:
        own += (cached + rules.block - 1) // rules.block - (s.q[r].cached + rules.block - 1) // rules.block
    s.s[e, (s.q[r].cached - s.q[r].join) % rules.block].phase -= 1
    s.q[r].state = FREE
    release(s, i, r, own, 0 if s.q[r].made + grown < s.q[r].osl else cached, rules.block)


@compiled
def void(s: State, e: int) -> None:
    """Remove entries of requests that were preempted from the front of an engine's heap."""
    while s.e[e].heap > 0:
        r = s.s[e, 0].heap_q
        if s.q[r].state == DECODING and s.q[r].engine == e and s.q[r].finish == s.s[e, 0].heap_key:
            return
        pop(s.s[e]["heap_key"], s.s[e]["heap_q"], s.e[e].heap)
        s.e[e].heap -= 1


@compiled
def rebuild(s: State, e: int) -> None:
    """Make an engine's heap anew of the requests that decode: it is full of void entries."""
    s.e[e].heap = 0
    r = s.e[e].head
    while r >= 0:
        if s.q[r].state == DECODING:
            push(s.s[e]["heap_key"], s.s[e]["heap_q"], s.e[e].heap, s.q[r].finish, r)
            s.e[e].heap += 1
        r = s.q[r].next


@compiled
def span_of(s: State, rules: Rules, r: int) -> int:
    """Tokens that a request is admitted with room for: all it has, or all it will have. Those whose cache came with
    them have not computed their last token.
    """
    if rules.reserves:
        return s.q[r].isl + s.q[r].osl
    return s.q[r].isl + s.q[r].made - (1 if s.q[r].left == 0 else 0)


@compiled
def plan(s: State, t: StepTable, rules: Rules, e: int, now: float, seen: float) -> None:
    """Compose the next step of an engine that is free at ``now``; it rests where there is none.

    ``seen``: requests that came later are not in it yet.
    """
    i, kind = s.e[e].home, s.i[s.e[e].home].kind
    preempted = False
    while s.e[e].decoding > 0 and growth(s, rules, e, 1) > room(s, i):
        preempt(s, rules, e)
        preempted = True
    begun = s.e[e].started
    s.e[e].unseen = 0
    n, left = begun, 0
    for k in range(begun):
        s.s[e, k].take_q = s.s[e, k].started
        left += s.q[s.s[e, k].started].left
    if not preempted and not (rules.policy == REQUEST_LEVEL and s.e[e].running > 0):
        n = offer(s, rules, e, n, left, seen)
    decoding = s.e[e].decoding * (1 + rules.draft)
    for k in range(n):
        s.s[e, k].left = s.q[s.s[e, k].take_q].left
    lists = s.s[e, :n]
    take = lists["part"]
    decodes = compose(rules.policy, decoding, lists["left"], begun, rules.budget, rules.tile, take)
    chunks, tokens, attention, sampled = 0, 0, 0.0, 0
    for k in range(n):
        if take[k] > 0:
            chunks += 1
    for k in range(n):
        r = s.s[e, k].take_q
        if take[k] == 0:
            continue
        if k >= begun:
            start(s, rules, e, r)
            take[k] = min(take[k], s.q[r].left)
        done = s.q[r].isl + s.q[r].made - s.q[r].left
        attention += chunk_attention(t, kind, chunks, float(take[k]), float(done))
        tokens += take[k]
        sampled += 1 if take[k] == s.q[r].left else 0
    # Only what is taken stays in the list.
    m = 0
    for k in range(n):
        if take[k] > 0:
            s.s[e, m].take_q, take[m] = s.s[e, k].take_q, take[k]
            m += 1
    s.e[e].taken = m
    s.e[e].planned = 1 if decodes and s.e[e].decoding > 0 else 0
    if m == 0 and s.e[e].planned == 0:
        s.e[e].end = NEVER
        return
    s.e[e].start = now
    width = s.e[e].width if rules.padded else s.e[e].decoding
    if m > 0:
        users = width if decodes else 0
        context = s.e[e].contexts / max(1, s.e[e].decoding) + 1
        rows = tokens + users * (1 + rules.draft)
        s.e[e].work = mixed_seconds(t, kind, rows, sampled + users, users, context, attention)
        s.e[e].last = now
        s.e[e].end = through(s, rules, e, now, s.e[e].work)
    else:
        decode_plan(s, t, rules, e, now, width)


@compiled
def offer(s: State, rules: Rules, e: int, n: int, left: int, seen: float) -> int:
    """List waiting prompts for the next step after the ``n`` begun ones: in order, seen, and with room in memory."""
    i = s.e[e].home
    claimed, have, begun = growth(s, rules, e, 1), room(s, i), s.e[e].started
    each = (s.i[i].most + rules.stages - 1) // rules.stages
    for rank in range(MOST_CLASSES):
        r = s.w[i, rank].head
        while r >= 0:
            after = s.q[r].next
            new = n - begun
            if s.q[r].ready > seen:
                s.e[e].unseen = 1
                return n
            if s.i[i].running + new >= s.i[i].most or s.e[e].running + new >= each:
                return n
            if left >= rules.budget and rules.policy != REQUEST_LEVEL:
                return n
            here = s.q[r].left == 0  # its cache came with it, so that it decodes in this very step
            tokens = span_of(s, rules, r) + (1 + rules.draft if here and rules.reserves == 0 else 0)
            blocks = needed(s, i, r, rules.block, tokens)
            if claimed + blocks > have:
                return n
            if here:
                leave_queue(s, i, r)
                admit(s, i, r, rules.block, span_of(s, rules, r))
                run_last(s, e, r)
                join(s, rules, e, r, s.q[r].first)
                have = room(s, i)
                claimed = growth(s, rules, e, 1)
                for k in range(begun, n):
                    claimed += needed(s, i, s.s[e, k].take_q, rules.block, span_of(s, rules, s.s[e, k].take_q))
            else:
                claimed += blocks
                s.s[e, n].take_q = r
                left += s.q[r].left
                n += 1
            r = after
    return n


@compiled
def start(s: State, rules: Rules, e: int, r: int) -> None:
    """Admit a waiting request: it gets its memory, and what the cache has of it need not be computed."""
    i = s.e[e].home
    leave_queue(s, i, r)
    hit = admit(s, i, r, rules.block, span_of(s, rules, r))
    s.q[r].left -= hit
    s.q[r].hit += hit
    s.q[r].state = STARTED
    s.g[0].hit += hit
    run_last(s, e, r)
    s.s[e, s.e[e].started].started = r
    s.e[e].started += 1


@compiled
def through(s: State, rules: Rules, e: int, now: float, seconds: float) -> float:
    """When a step that may start at ``now`` is through all stages, each of which serves one step at a time."""
    if rules.stages == 1:
        return now + seconds
    i, at = s.e[e].home, now
    for k in range(rules.stages):
        place = i * rules.stages + k
        at = max(at, s.e[place].stage_free) + seconds / rules.stages
        s.e[place].stage_free = at
    return at


@compiled
def decode_plan(s: State, t: StepTable, rules: Rules, e: int, now: float, width: int) -> None:
    """As many decode steps as are sure to follow one another."""
    i = s.e[e].home
    context = s.e[e].contexts / s.e[e].decoding + 1
    table = t.decode[s.i[i].kind]
    seconds, slope, until = line(table, t.knots, min(width, table.shape[0] - 1), context)
    if rules.stages > 1 or rules.draft > 0:
        s.e[e].work, s.e[e].last = seconds, now
        s.e[e].end = through(s, rules, e, now, seconds)
        return
    void(s, e)
    steps, have = min(s.s[e, 0].heap_key - s.e[e].steps, max(1, int(until - context))), room(s, i)
    if s.e[e].unseen:
        steps = 1  # what came while the step before ran is composed into the next one
    if growth(s, rules, e, steps) > have:
        low, high = 1, steps  # the first is sure to have room
        while high - low > 1:
            middle = (low + high) // 2
            if growth(s, rules, e, middle) <= have:
                low = middle
            else:
                high = middle
        steps = low
    s.e[e].planned = steps
    s.e[e].work = series(seconds, slope, steps)
    s.e[e].last = now + series(seconds, slope, steps - 1)
    s.e[e].end = now + series(seconds, slope, steps)


@compiled
def cut(s: State, t: StepTable, rules: Rules, e: int, now: float) -> None:
    """End a plan of many decode steps with the one that runs at ``now``; or, composing ahead, with the one after."""
    width = s.e[e].width if rules.padded else s.e[e].decoding
    context = s.e[e].contexts / s.e[e].decoding + 1
    table = t.decode[s.i[s.e[e].home].kind]
    seconds, slope, _ = line(table, t.knots, min(width, table.shape[0] - 1), context)
    low, high = 0, s.e[e].planned
    while high - low > 1:
        middle = (low + high) // 2
        if s.e[e].start + series(seconds, slope, middle) < now:
            low = middle
        else:
            high = middle
    steps = min(high + rules.ahead, s.e[e].planned)
    s.e[e].planned = steps
    s.e[e].work = series(seconds, slope, steps)
    s.e[e].last = s.e[e].start + series(seconds, slope, steps - 1)
    s.e[e].end = s.e[e].start + s.e[e].work


@compiled
def count_gaps(s: State, seconds: float, times: int) -> None:
    """Count times between two tokens of a request."""
    place = int(np.log(max(seconds, LEAST) / LEAST) * PER_OCTAVE)
    s.gaps[min(place, BINS - 1)] += times


@inlined
def carry_out(s: State, t: StepTable, rules: Rules, e: int) -> None:
    """Bring about what an engine's plan says, at its end."""
    now, steps, users, work = s.e[e].end, s.e[e].planned, s.e[e].decoding, s.e[e].work
    kind = s.i[s.e[e].home].kind
    tokens = 0
    for k in range(s.e[e].taken):
        tokens += s.s[e, k].part
    s.e[e].busy += work
    s.e[e].prefilling += work if tokens > 0 else 0.0
    watts = t.kinds[kind].prefill_watts
    if tokens == 0:
        watts = t.decode_watts[kind, min(users, t.decode_watts.shape[1] - 1)]
    s.e[e].joules += work * watts / rules.stages
    if s.g[0].spans < s.spans.size:
        k = s.g[0].spans
        s.spans[k].start, s.spans[k].end, s.spans[k].engine = s.e[e].start, now, e
        s.spans[k].decoding, s.spans[k].tokens, s.spans[k].steps = users if steps > 0 else 0, tokens, max(steps, 1)
        s.g[0].spans += 1
    if steps > 0:
        advance_decoding(s, rules, e, steps, now - s.e[e].start, now)
    if tokens > 0:
        advance_prompts(s, rules, e, now)
    s.g[0].last_end = now
    s.e[e].seen = s.e[e].last


@compiled
def advance_decoding(s: State, rules: Rules, e: int, steps: int, took: float, now: float) -> None:
    """All decoding requests of an engine get their tokens of some steps; those that are complete leave."""
    i, users = s.e[e].home, s.e[e].decoding
    each = took / steps
    for g in range(s.e[e].groups):
        if s.s[e, g].group_n > 0:
            count_gaps(s, now - (steps - 1) * each - s.s[e, g].group_t, s.s[e, g].group_n)
    if steps > 1:
        count_gaps(s, each, users * (steps - 1))
    s.s[e, 0].group_n, s.s[e, 0].group_t, s.e[e].groups = users, now, 1
    if rules.draft > 0:
        speculate(s, rules, e)
        return
    allot(s, i, growth(s, rules, e, steps), rules.block)
    s.e[e].steps += steps
    s.e[e].contexts += steps * users
    s.g[0].tokens += steps * users
    void(s, e)
    while s.e[e].heap > 0 and s.s[e, 0].heap_key == s.e[e].steps:
        r = s.s[e, 0].heap_q
        pop(s.s[e]["heap_key"], s.s[e]["heap_q"], s.e[e].heap)
        s.e[e].heap -= 1
        complete_decoding(s, rules, e, r, now)
        void(s, e)


@compiled
def complete_decoding(s: State, rules: Rules, e: int, r: int, now: float) -> None:
    """A decoding request has its last token."""
    leave_decoding(s, rules, e, r)
    drop_group(s, e)
    stop_running(s, e, r)
    depart(s, rules, s.e[e].home, r, now)


@compiled
def speculate(s: State, rules: Rules, e: int) -> None:
    """One step with drafted tokens: each request gets its own token and the drafted ones up to the first rejected.

    A request's clock of steps is its own then: its ``join`` moves back by the tokens that it gained.
    """
    i, block = s.e[e].home, rules.block
    s.e[e].steps += 1
    r = s.e[e].head
    while r >= 0:
        after = s.q[r].next
        if s.q[r].state == DECODING:
            gained = 0
            while gained < rules.draft and draw(s) < rules.acceptance:
                gained += 1
            gained = min(gained, s.q[r].finish - s.e[e].steps)
            cached = s.q[r].cached + s.e[e].steps - 1 - s.q[r].join
            if rules.reserves == 0:
                allot(s, i, (cached + gained + block) // block - (cached + block - 1) // block, block)
            s.s[e, (s.q[r].cached - s.q[r].join) % block].phase -= 1
            s.s[e, (s.q[r].cached - s.q[r].join + gained) % block].phase += 1
            s.q[r].join -= gained
            s.q[r].finish -= gained
            s.e[e].contexts += 1 + gained
            s.g[0].tokens += 1 + gained
            if s.q[r].finish <= s.e[e].steps:
                complete_decoding(s, rules, e, r, s.e[e].end)
        r = after


@compiled
def advance_prompts(s: State, rules: Rules, e: int, now: float) -> None:
    """The prompts of a step are further; those that are through get a token and decode from now on."""
    i = s.e[e].home
    for k in range(s.e[e].taken):
        r = s.s[e, k].take_q
        s.q[r].left -= s.s[e, k].part
        s.g[0].computed += s.s[e, k].part
        if s.q[r].left > 0:
            continue
        no_longer_begun(s, e, r)
        s.g[0].tokens += 1
        s.q[r].made += 1
        if s.q[r].first < 0:
            s.q[r].first = now
        if s.i[i].role == PREFILLS and s.q[r].osl > 1:
            stop_running(s, e, r)
            s.q[r].state = MOVING
            arrives = now + rules.moving_fixed + rules.moving_token * s.q[r].isl
            push(s.m["time"], s.m["q"], s.g[0].moving, arrives, r)
            s.g[0].moving += 1
        elif s.q[r].made >= s.q[r].osl:
            release(s, i, r, s.q[r].blocks, s.q[r].isl, rules.block)
            stop_running(s, e, r)
            depart(s, rules, i, r, now)
        else:
            join(s, rules, e, r, now)
    s.e[e].taken = 0


@compiled
def join(s: State, rules: Rules, e: int, r: int, last: float) -> None:
    """A request whose prompt is in the cache decodes from the next step on; its last token came at ``last``."""
    steps, cached = s.e[e].steps, s.q[r].isl + s.q[r].made - 1
    if s.e[e].decoding == 0:
        s.e[e].width = 0
    s.q[r].state, s.q[r].join, s.q[r].cached = DECODING, steps, cached
    s.q[r].finish = steps + s.q[r].osl - s.q[r].made
    if s.e[e].heap == s.s.shape[1]:
        rebuild(s, e)  # this request is among the running ones already
    else:
        push(s.s[e]["heap_key"], s.s[e]["heap_q"], s.e[e].heap, s.q[r].finish, r)
        s.e[e].heap += 1
    s.e[e].decoding += 1
    s.e[e].contexts += cached
    s.e[e].width = max(s.e[e].width, s.e[e].decoding)
    s.s[e, (cached - steps) % rules.block].phase += 1
    g = s.e[e].groups
    if g > 0 and s.s[e, g - 1].group_t == last:
        s.s[e, g - 1].group_n += 1
    elif g < GROUPS:
        s.s[e, g].group_n, s.s[e, g].group_t = 1, last
        s.e[e].groups = g + 1
    else:
        s.s[e, g - 1].group_n += 1


@compiled
def depart(s: State, rules: Rules, i: int, r: int, now: float) -> None:
    """A request has left; what it was is written down, and its client may send the next."""
    s.i[i].outstanding -= 1
    s.i[i].tokens -= s.q[r].isl + s.q[r].osl
    write_down(s, r, i, now, 0)
    s.q[r].state = FREE
    give_up_record(s, rules, r, now)
    s.g[0].in_system -= 1


@compiled
def give_up_record(s: State, rules: Rules, r: int, now: float) -> None:
    """A request's record is free, and its client thinks of the next request.

    Requests leave in the order of time, so that clients wait in a ring.
    """
    s.q[r].next, s.g[0].free = s.g[0].free, r
    if rules.clients > 0:
        s.clients[(s.g[0].client + s.g[0].clients) % s.clients.size] = now + rules.think
        s.g[0].clients += 1


@compiled
def write_down(s: State, r: int, i: int, now: float, rejected: int) -> None:
    """A line of ``out``."""
    k, q = s.g[0].out, s.q[r]
    o = s.out[k]
    o.id, o.arrival, o.first, o.finish, o.isl, o.osl = q.id, q.arrival, q.first, now, q.isl, q.osl
    o.hit, o.preempted, o.instance, o.rank, o.rejected = q.hit, q.preempted, i, q.rank, rejected
    s.g[0].out += 1


@inlined
def route(s: State, rules: Rules, r: int, role: int) -> int:
    """The instance that a request goes to, among those of a role or of both."""
    chosen, fit = -1, 0
    for i in range(s.i.size):
        if s.i[i].role == role or s.i[i].role == BOTH:
            fit += 1
            better = chosen < 0 or s.i[i].outstanding < s.i[chosen].outstanding
            tied = chosen >= 0 and s.i[i].outstanding == s.i[chosen].outstanding
            if better or (tied and s.i[i].tokens < s.i[chosen].tokens):
                chosen = i
    if rules.router == ROUND_ROBIN:
        turn = s.g[0].turn_decode if role == DECODES else s.g[0].turn
        if role == DECODES:
            s.g[0].turn_decode += 1
        else:
            s.g[0].turn += 1
    elif rules.router == RANDOM:
        turn = int(draw(s) * fit)
    elif rules.router == SAME_PREFIX and s.q[r].prefix >= 0:
        turn = s.q[r].prefix
    else:
        return chosen
    turn = turn % fit
    for i in range(s.i.size):
        if s.i[i].role == role or s.i[i].role == BOTH:
            if turn == 0:
                return i
            turn -= 1
    return chosen


@inlined
def deliver(s: State, t: StepTable, rules: Rules, r: int, role: int, now: float) -> None:
    """A request comes to an instance: one that rests begins, one that only decodes may stop for it."""
    i = route(s, rules, r, role)
    s.i[i].outstanding += 1
    s.i[i].tokens += s.q[r].isl + s.q[r].osl
    s.q[r].ready = now
    wait_last(s, i, r)
    first = i * rules.stages
    for e in range(first, first + rules.stages):
        if s.e[e].end == NEVER:
            plan(s, t, rules, e, now, now)
            return
    many = rules.stages == 1 and s.e[first].taken == 0 and s.e[first].planned > 1
    if many and s.i[i].running < s.i[i].most and needed(s, i, r, rules.block, span_of(s, rules, r)) <= room(s, i):
        cut(s, t, rules, first, now)


@inlined
def move_on(s: State, t: StepTable, rules: Rules, e: int) -> None:
    """An engine's plan ends: it is carried out, and the next one made."""
    now, i = s.e[e].end, s.e[e].home
    carry_out(s, t, rules, e)
    plan(s, t, rules, e, now, s.e[e].last if rules.ahead else now)
    if s.e[e].end == NEVER and s.i[i].waiting > 0:
        plan(s, t, rules, e, now, now)
    if rules.stages > 1:
        wake(s, t, rules, i, now)


@inlined
def arrive(s: State, t: StepTable, rules: Rules, now: float, feed: Feed, k: int) -> None:
    """The ``k``-th request of a feed arrives, or is turned away: it would never fit."""
    r = s.g[0].free
    s.g[0].free = s.q[r].next
    q = s.q[r]
    q.arrival, q.first, q.isl, q.osl, q.made, q.left = (
        now - rules.request,
        -1.0,
        feed.isl[k],
        feed.osl[k],
        0,
        feed.isl[k],
    )
    q.prefix, q.shared, q.rank = feed.prefix[k], feed.shared[k], feed.rank[k]
    q.id, q.hit, q.preempted, q.ghost = s.g[0].next_id, 0, 0, 0
    s.g[0].next_id += 1
    s.g[0].last_arrival = now
    if q.isl + q.osl > rules.longest:
        write_down(s, r, -1, now, 1)
        give_up_record(s, rules, r, now)
        return
    s.g[0].in_system += 1
    s.g[0].backlog = s.g[0].in_system
    deliver(s, t, rules, r, PREFILLS, now)


@inlined
def arrival_of(s: State, rules: Rules, feed: Feed, k: int) -> float:
    """When the next request of a feed has been received."""
    if rules.clients == 0:
        return feed.arrival[k] + rules.request
    return s.clients[s.g[0].client] + rules.request if s.g[0].clients > 0 else NEVER


@compiled
def advance(s: State, t: StepTable, rules: Rules, feed: Feed, k: int, final: bool, events: int) -> tuple[int, int]:
    """Run until all has ended, or there is a reason to return.

    Args:
        feed: requests in the order of arrival, of which the first ``k`` have arrived. final: there are no others.
        events: most events to carry out.

    Returns:
        The reason, and how many of the feed have arrived.
    """
    size = feed.isl.size
    for _ in range(events):
        if s.g[0].out >= s.out.size - s.s.shape[1] // 4:
            return FULL, k
        if k == size and not final:
            return WANTS_REQUESTS, k
        arrival = arrival_of(s, rules, feed, k) if k < size else NEVER
        moved = s.m[0].time if s.g[0].moving > 0 else NEVER
        e, end = 0, s.e[0].end
        for other in range(1, s.e.size):
            if s.e[other].end < end:
                e, end = other, s.e[other].end
        if arrival <= end and arrival <= moved:
            if arrival == NEVER:
                return ENDED, k
            if s.g[0].free < 0:
                return WANTS_ROOM, k
            if rules.clients > 0:
                s.g[0].client = (s.g[0].client + 1) % s.clients.size
                s.g[0].clients -= 1
            s.g[0].now = arrival
            arrive(s, t, rules, arrival, feed, k)
            k += 1
        elif moved <= end:
            s.g[0].now = moved
            r = s.m[0].q
            pop(s.m["time"], s.m["q"], s.g[0].moving)
            s.g[0].moving -= 1
            i = s.e[s.q[r].engine].home
            release(s, i, r, s.q[r].blocks, s.q[r].isl, rules.block)
            s.i[i].outstanding -= 1
            s.i[i].tokens -= s.q[r].isl + s.q[r].osl
            s.q[r].first = moved
            deliver(s, t, rules, r, DECODES, moved)
            wake(s, t, rules, i, moved)
        else:
            s.g[0].now = end
            move_on(s, t, rules, e)
    return MORE, k


@compiled
def wake(s: State, t: StepTable, rules: Rules, i: int, now: float) -> None:
    """Engines of an instance that rest begin, where something waits."""
    for e in range(i * rules.stages, (i + 1) * rules.stages):
        if s.i[i].waiting > 0 and s.e[e].end == NEVER:
            plan(s, t, rules, e, now, now)
