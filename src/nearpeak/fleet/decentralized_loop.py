"""Requests on volunteers, event by event: each finds its way through nodes that hold parts of a model (compiled).

A request's way is a list of spans of layers, each on one node. Its prompt goes through once, then token after token,
from the last node back to the first. A node takes all that waits for it as one batch: the weights of each layer that
any of them needs are read once, and each adds its own work. A node that leaves takes its caches with it: whoever was on
it finds another way, and its prompt and the tokens made so far go through again, so that no request is lost.

**The shortest way** (Parallax, phase 2). Layers are the steps, and nodes that hold them the choices, of a directed
acyclic graph. A vertex costs what a layer takes on its node now; an edge between nodes costs their link and the wait
for the next one; the link back from the last node to the first counts as well. Nodes publish what they see: the share
``u`` of time that they were busy of late, the seconds ``B`` that a batch took, and the ``n`` requests on them,

    wait = u 3/2 B          layer = (1 - u) fixed + each (n + 1)

since who comes to a busy node waits for half of the batch in progress, and then for all of his own.
"""

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
ARRIVAL, AT_NODE, BATCH_ENDS, LEAVES, LOADED = 0, 1, 2, 3, 4
MEMORY = 10.0
"""Seconds over which a node averages what it publishes."""


@njit(cache=True)
def shortest_way(
    layer: Array, enter: Array, link: Array, first: Ints, last: Ints, usable: Mask, layers: int, way: Ints
) -> float:
    """Seconds of a token on the quickest way round; ``way [layers]`` becomes the node of each layer. Infinite if none.

    Args:
        layer, enter: seconds of a layer on each node, and of the wait for it, ``[nodes]``. link: from node to node,
            ``[nodes, nodes]``.
        first, last: layers ``first <= l < last`` that each node holds. usable: whether it may be taken.
    """
    nodes = layer.size
    best = np.inf
    came = np.full((layers, nodes), -1, np.int64)
    for start in range(nodes):
        if not usable[start] or first[start] > 0 or last[start] <= 0:
            continue
        cost = np.full(nodes, np.inf)
        cost[start] = enter[start] + layer[start]
        for k in range(1, layers):
            new = np.full(nodes, np.inf)
            for i in range(nodes):
                if not usable[i] or not first[i] <= k < last[i]:
                    continue
                for j in range(nodes):
                    reached = cost[j] + layer[i] + (0.0 if i == j else link[j, i] + enter[i])
                    if reached < new[i]:
                        new[i], came[k, i] = reached, j
            cost = new
        for end in range(nodes):
            whole = cost[end] + (0.0 if end == start else link[end, start])
            if whole < best:
                best = whole
                way[layers - 1] = end
                for k in range(layers - 1, 0, -1):
                    way[k - 1] = came[k, way[k]]
    return best


@njit(cache=True)
def least_loaded(load: Array, first: Ints, last: Ints, usable: Mask, pipes: Ints, way: Ints) -> bool:
    """The baseline: the fixed pipeline whose most loaded node has least; ``way`` as in ``shortest_way``."""
    fewest, chosen = np.inf, -1
    for p in range(pipes.shape[0]):
        crowd, able = 0.0, pipes[p, 0] >= 0
        for i in pipes[p]:
            if i >= 0:
                able = able and usable[i]
                crowd = max(crowd, load[i])
        if able and crowd < fewest:
            fewest, chosen = crowd, p
    if chosen >= 0:
        for i in pipes[chosen]:
            if i >= 0:
                way[first[i] : last[i]] = i
    return chosen >= 0


@njit(cache=True)
def _busy_share(share: float, since: float, busy: bool, now: float) -> float:
    """The share of time that a node was busy, averaged over ``MEMORY`` seconds."""
    kept = np.exp((since - now) / MEMORY)
    return float(1.0 - (1.0 - share) * kept if busy else share * kept)


@njit(cache=True)
def _book(sign: float, spans: Ints, need: float, first: Ints, last: Ints, free: Array, load: Array) -> None:
    """A request takes (1) or gives back (-1) room and load on its way: rows of node, first and last layer."""
    for k in range(spans.shape[0]):
        i, layers = spans[k, 0], float(spans[k, 2] - spans[k, 1])
        free[i] -= sign * layers * need
        load[i] += sign * layers / (last[i] - first[i])


@njit(cache=True)
def _spanned(way: Ints, spans: Ints) -> int:
    """The spans of a way: rows of node, first and last layer. Returns how many."""
    count = 0
    for k in range(way.size):
        if k == 0 or way[k] != way[k - 1]:
            spans[count, 0], spans[count, 1] = way[k], k
            count += 1
        spans[count - 1, 2] = k + 1
    return count


@njit(cache=True)
def _visit(spans: Ints, tokens: int, each: float, prompt: float, touched: Mask) -> float:
    """Seconds that a request's own work takes in a batch; marks the layers that it needs."""
    touched[spans[1] : spans[2]] = True
    return float((spans[2] - spans[1]) * (each if tokens == 1 else tokens * prompt))


@njit(cache=True)
def serve(
    arrival: Array, isl: Ints, osl: Ints, layers: int,
    fixed: Array, each: Array, prompt: Array, link: Array, pace: Array, width: float,
    firsts: Ints, lasts: Ints, room: Array, leave_time: Array, leave_node: Ints, loading: Array, pipes: Ints,
) -> tuple[Array, Array, Ints, Ints, float]:  # fmt: skip
    """Serve all requests.

    Args:
        arrival, isl, osl: of requests in the order of their arrival, ``[requests]``.
        fixed, each, prompt: seconds of a layer on a node: of a batch, of a decoded token in it, of a prompt's token.
        link, pace: seconds and bytes/s from node to node, ``[nodes, nodes]``. width: bytes of a token between layers.
        firsts, lasts, room: layers that nodes hold and the tokens times layers that their caches have room for,
            ``[1 + leavings, nodes]``, before the first leaving and after each. leave_time, leave_node: of leavings.
        loading: seconds that a node needs after a leaving where it holds other layers than before, ``[leavings]``.
        pipes: nodes of fixed pipelines, -1 for none, ``[1 + leavings, pipelines, stages]``; with none of them, each
            request takes the shortest way.

    Returns:
        Times of the first and of the last token ``[requests]`` (infinite for requests that never ended), ways that each
        request had, tokens made, and the least room that any cache ever had.
    """
    requests, nodes, epochs = arrival.size, fixed.size, leave_time.size
    spans, count, stage = np.zeros((requests, layers, 3), np.int64), np.zeros(requests, np.int64), np.zeros_like(isl)
    version, ways, made, tokens = np.zeros_like(isl), np.zeros_like(isl), np.zeros_like(isl), np.zeros_like(isl)
    running = np.zeros(requests, np.bool_)
    began, ended = np.full(requests, np.inf), np.full(requests, np.inf)
    # What waits at a node and what it serves: rows of request and version. A stale version is skipped.
    waits = np.zeros((nodes, requests * (epochs + 1), 2), np.int64)
    serves = np.zeros_like(waits)
    waiting, serving = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    busy, gone, usable = np.zeros(nodes, np.bool_), np.zeros(nodes, np.bool_), np.zeros(nodes, np.bool_)
    ready, share, since, cost, enter, load, batch_time = np.zeros((7, nodes))
    free, least, epoch = room[0].copy(), np.inf, 0
    way, touched = np.zeros(layers, np.int64), np.zeros(layers, np.bool_)

    events = [(arrival[r], r, ARRIVAL, r, 0) for r in range(requests)]
    events += [(leave_time[k], requests + k, LEAVES, leave_node[k], k) for k in range(epochs)]
    order = requests + epochs
    heapq.heapify(events)
    backlog: list[int] = [r for r in range(0)]

    while events:
        now, _, kind, who, tag = heapq.heappop(events)
        first, last = firsts[epoch], lasts[epoch]
        if kind == ARRIVAL:
            heapq.heappush(backlog, who)
        elif kind == AT_NODE and running[who] and version[who] == tag:
            i = spans[who, stage[who], 0]
            waits[i, waiting[i], 0], waits[i, waiting[i], 1] = who, tag
            waiting[i] += 1
        elif kind == BATCH_ENDS and not gone[who]:
            share[who], since[who] = _busy_share(share[who], since[who], True, now), now
            busy[who] = False
            for k in range(serving[who]):
                r = serves[who, k, 0]
                if not running[r] or serves[who, k, 1] != version[r]:
                    continue
                stage[r] += 1
                if stage[r] == count[r]:
                    stage[r], tokens[r] = 0, 1
                    made[r] += 1
                    if made[r] == 1:
                        began[r] = now
                    if made[r] == osl[r]:
                        ended[r], running[r] = now, False
                        _book(-1.0, spans[r, : count[r]], isl[r] + osl[r], first, last, free, load)
                        continue
                to = spans[r, stage[r], 0]
                hop = 0.0 if to == who else link[who, to] + tokens[r] * width / pace[who, to]
                heapq.heappush(events, (now + hop, order, AT_NODE, r, version[r]))
                order += 1
        elif kind == LEAVES:
            epoch, gone[who] = tag + 1, True
            moved = (firsts[epoch] != first) | (lasts[epoch] != last)
            moved[who] = True
            # Whoever is on a node that left or holds other layers now starts again, in the order in which they came.
            for r in range(requests):
                if running[r] and moved[spans[r, : count[r], 0]].any():
                    _book(-1.0, spans[r, : count[r]], isl[r] + osl[r], first, last, free, load)
                    running[r] = False
                    version[r] += 1
                    heapq.heappush(backlog, r)
            first, last = firsts[epoch], lasts[epoch]
            for i in range(nodes):
                if moved[i]:
                    free[i], load[i], ready[i] = room[epoch, i], 0.0, now + loading[tag]
            heapq.heappush(events, (now + loading[tag], order, LOADED, 0, 0))
            order += 1

        while kind != AT_NODE and len(backlog) > 0:
            r = backlog[0]
            need = isl[r] + osl[r]
            for i in range(nodes):
                held = last[i] - first[i]
                usable[i] = not gone[i] and held > 0 and ready[i] <= now and free[i] >= held * need
                recent = _busy_share(share[i], since[i], busy[i], now)
                enter[i] = 1.5 * recent * batch_time[i]
                cost[i] = fixed[i] * (1.0 - recent) + each[i] * (load[i] + 1.0)
            if pipes.shape[1] == 0:
                found = shortest_way(cost, enter, link, first, last, usable, layers, way) < np.inf
            else:
                found = least_loaded(load, first, last, usable, pipes[epoch], way)
            if not found:
                break
            heapq.heappop(backlog)
            count[r] = _spanned(way, spans[r])
            _book(1.0, spans[r, : count[r]], need, first, last, free, load)
            least = min(least, free.min())
            stage[r], tokens[r], running[r] = 0, isl[r] + made[r], True
            ways[r] += 1
            heapq.heappush(events, (now, order, AT_NODE, r, version[r]))
            order += 1

        # All events of one instant first: what comes together is served together.
        if len(events) > 0 and events[0][0] <= now:
            continue
        for i in range(nodes):
            if busy[i] or gone[i] or waiting[i] == 0:
                continue
            serving[i], work = 0, 0.0
            touched[:] = False
            for k in range(waiting[i]):
                r = waits[i, k, 0]
                if running[r] and waits[i, k, 1] == version[r]:
                    serves[i, serving[i]] = waits[i, k]
                    serving[i] += 1
                    work += _visit(spans[r, stage[r]], tokens[r], each[i], prompt[i], touched)
            waiting[i] = 0
            if serving[i] == 0:
                continue
            share[i], since[i] = _busy_share(share[i], since[i], False, now), now
            busy[i] = True
            work += touched.sum() * fixed[i]
            batch_time[i] += (work - batch_time[i]) * (1.0 - np.exp(-work / MEMORY))
            heapq.heappush(events, (now + work, order, BATCH_ENDS, i, 0))
            order += 1
    return began, ended, ways, made, least
