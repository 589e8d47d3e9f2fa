"""The state of a simulation as flat records: requests in the system, engines, and the memory that engines share.

Compiled code reads and writes them in place; between two calls Python may look at them, grow them, or save them. A
finished request leaves its record, so that memory goes with the requests in the system and not with those of the run.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FREE, WAITING, STARTED, DECODING, MOVING = range(5)
"""States of a request's record. Moving: its cache travels from a prefill to a decode instance."""
BOTH, PREFILLS, DECODES = range(3)
"""Roles of an instance."""
ROUND_ROBIN, LEAST_LOADED, RANDOM, SAME_PREFIX = range(4)
"""Codes of routers."""
MOST_CLASSES = 8
NEVER = np.inf

REQUEST = np.dtype(
    [
        ("arrival", "f8"),  # seconds
        ("ready", "f8"),  # seconds from when an engine may take it
        ("first", "f8"),  # seconds of its first token, negative before
        ("isl", "i8"), ("osl", "i8"),  # tokens
        ("made", "i8"),  # tokens of the answer when it last joined or waited
        ("left", "i8"),  # tokens still to prefill
        ("cached", "i8"),  # tokens in the cache when it joined the decoding requests
        ("join", "i8"), ("finish", "i8"),  # steps of its engine at which it joined, and at which it ends
        ("blocks", "i8"),  # of the cache that are its own, when it joined
        ("prefix", "i8"), ("shared", "i8"),  # the group that it shares a prefix with, and its tokens
        ("hit", "i8"),  # tokens that it found in the cache, over all its admissions
        ("ghost", "i8"), ("ghost_at", "i8"),  # full blocks that it gave up, and the count of freed blocks before them
        ("rank", "i8"),  # class of priority, 0 first
        ("id", "i8"), ("state", "i8"), ("engine", "i8"),
        ("preempted", "i8"),  # times
        ("prev", "i8"), ("next", "i8"),  # neighbours in the list that it is in
    ],
    align=True,
)  # fmt: skip

ENGINE = np.dtype(
    [
        ("home", "i8"),  # its instance
        ("end", "f8"), ("start", "f8"), ("last", "f8"),  # of its plan, and the start of the plan's last step
        ("seen", "f8"),  # start of the step before: with scheduling ahead, what came later is not yet seen
        ("planned", "i8"),  # decode steps of the plan
        ("unseen", "i8"),  # whether requests wait that came too late for the plan
        ("decoding", "i8"), ("contexts", "i8"), ("steps", "i8"),  # requests, the sum of their caches, steps done
        ("width", "i8"),  # requests of the batch when it began, for engines that pad to it
        ("head", "i8"), ("tail", "i8"), ("running", "i8"),  # its admitted requests, in that order
        ("started", "i8"), ("taken", "i8"), ("heap", "i8"),  # lengths of its arrays
        ("groups", "i8"),  # times at which decoding requests got their last token
        ("work", "f8"),  # seconds that the plan keeps a device busy
        ("stage_free", "f8"),  # when the stage of its place in the pipeline has nothing to do
        ("busy", "f8"), ("prefilling", "f8"), ("joules", "f8"),
    ],
    align=True,
)  # fmt: skip

INSTANCE = np.dtype(
    [
        ("role", "i8"), ("kind", "i8"),  # the kind is the row of its step times
        ("most", "i8"),  # requests that it runs at once
        ("blocks", "i8"), ("free", "i8"), ("idle", "i8"),  # all, unused, and held by prefixes that none uses now
        ("freed", "i8"), ("reused", "i8"),  # blocks given back, and taken again, since the start
        ("waiting", "i8"), ("running", "i8"), ("outstanding", "i8"), ("tokens", "i8"),
        ("oldest", "i8"), ("newest", "i8"),  # prefixes that none uses, by when they were used last
    ],
    align=True,
)  # fmt: skip

DONE = np.dtype(
    [
        ("id", "i8"), ("arrival", "f8"), ("first", "f8"), ("finish", "f8"), ("isl", "i8"), ("osl", "i8"),
        ("hit", "i8"), ("preempted", "i8"), ("instance", "i8"), ("rank", "i8"), ("rejected", "i8"),
    ],
    align=True,
)  # fmt: skip
"""What is known of a request that has left, in the order in which they leave. Rejected ones have no times."""

SPAN = np.dtype(
    [("start", "f8"), ("end", "f8"), ("engine", "i8"), ("decoding", "i8"), ("tokens", "i8"), ("steps", "i8")],
    align=True,
)  # fmt: skip
"""A plan that an engine carried out: ``steps`` alike, or one with chunks of ``tokens`` tokens."""


class Rules(NamedTuple):
    """What does not change in a run. Tokens, seconds.

    ``ahead``: an engine composes a step while the one before runs. ``reserves``: it admits a request with room for its
    whole answer. ``caching``: what a request leaves in the cache is found again until it is overwritten. ``padded``: a
    batch keeps its first width. ``stages``: engines of an instance, one a stage. ``draft``, ``acceptance``: of
    speculative decoding. ``request``: seconds until an engine sees a request. ``moving_fixed``, ``moving_token``:
    seconds to move a cache. ``clients``: of a closed loop, 0 for an open one, that ``think`` between requests.
    """

    policy: int
    budget: int
    tile: int
    block: int
    longest: int
    ahead: int
    reserves: int
    caching: int
    padded: int
    stages: int
    draft: int
    acceptance: float
    router: int
    request: float
    moving_fixed: float
    moving_token: float
    clients: int
    think: float


SLOT = np.dtype(
    [
        ("heap_key", "i8"), ("heap_q", "i8"),  # heap of decoding requests by the step at which they end
        ("started", "i8"),  # begun prompts
        ("take_q", "i8"), ("part", "i8"), ("left", "i8"),  # prompts in the step, tokens of each in it, and still to do
        ("phase", "i8"),  # decoding requests by the step, modulo a block, at which they need one
        ("group_n", "i8"), ("group_t", "f8"),  # decoding requests whose last token came at a time
    ],
    align=True,
)  # fmt: skip
"""Lists of an engine, side by side."""

LINE = np.dtype([("head", "i8"), ("tail", "i8")], align=True)
"""A class's queue at an instance: the first and the last request of it."""

PREFIX = np.dtype([("held", "i8"), ("users", "i8"), ("older", "i8"), ("newer", "i8")], align=True)
"""A shared prefix at an instance: its tokens in the cache, the requests that use it, and its neighbours among those
that none uses."""

MOVE = np.dtype([("time", "f8"), ("q", "i8")], align=True)
"""A cache on its way, and when it will be there."""

TOTALS = np.dtype(
    [
        ("now", "f8"), ("last_arrival", "f8"), ("last_end", "f8"),
        ("free", "i8"),  # first free record of a request, or -1
        ("out", "i8"), ("spans", "i8"), ("moving", "i8"), ("clients", "i8"), ("client", "i8"),  # lengths of lists
        ("turn", "i8"), ("turn_decode", "i8"),  # of the routers
        ("next_id", "i8"), ("in_system", "i8"), ("backlog", "i8"),
        ("tokens", "i8"), ("hit", "i8"), ("computed", "i8"), ("preemptions", "i8"),
        ("seed", "u8"),
    ],
    align=True,
)  # fmt: skip
"""What is known of all together: times, lengths of lists, requests, tokens. Backlog: in the system at the last
arrival."""


class State(NamedTuple):
    """Everything that changes: requests ``q[r]``, engines ``e[e]``, instances ``i[i]``, lists of engines ``s[e, k]``,
    queues ``w[i, rank]``, prefixes ``p[i, g]``, caches on their way ``m`` (a heap), times at which clients send
    (a ring), requests that have left, plans carried out, times between tokens in logarithmic bins, and ``g[0]``.
    """

    q: NDArray[np.void]
    e: NDArray[np.void]
    i: NDArray[np.void]
    s: NDArray[np.void]
    w: NDArray[np.void]
    p: NDArray[np.void]
    m: NDArray[np.void]
    clients: NDArray[np.float64]
    out: NDArray[np.void]
    spans: NDArray[np.void]
    gaps: NDArray[np.int64]
    g: NDArray[np.void]


BINS, LEAST, RATIO = 1 << 15, 1e-7, 1.001
"""Logarithmic bins of times: from 0.1 µs by factors of 1.001, to half a year."""
GROUPS = 64
"""Times of last tokens that an engine tells apart."""


def fresh(
    instances: NDArray[np.void],
    stages: int,
    block: int,
    prefixes: int,
    clients: int,
    spans: int,
    records: int,
    seed: int,
) -> State:
    """An empty system.

    Args:
        instances: with their ``role``, ``kind``, ``most`` and ``blocks``. stages: engines of each. block: tokens.
        prefixes: groups of requests that share one. clients: of a closed loop, 0 for an open one.
        spans: plans to remember. records: of requests, to begin with.
    """
    i = instances.copy()
    i["free"] = i["freed"] = i["blocks"]
    i["oldest"] = i["newest"] = -1
    most, engines = int(i["most"].max()), len(i) * stages
    q, e, g = np.zeros(records, REQUEST), np.zeros(engines, ENGINE), np.zeros(1, TOTALS)
    q["next"] = np.append(np.arange(1, records), -1)
    e["home"] = np.arange(engines) // stages
    e["end"] = NEVER
    e["head"] = e["tail"] = -1
    g["clients"], g["seed"] = clients, seed
    w, p = np.zeros((len(i), MOST_CLASSES), LINE), np.zeros((len(i), max(prefixes, 1)), PREFIX)
    w["head"] = w["tail"] = p["older"] = p["newer"] = -1
    lists = np.zeros((engines, max(4 * most + 8, block, GROUPS)), SLOT)
    return State(
        q, e, i, lists, w, p, np.zeros(records, MOVE), np.zeros(max(clients, 1)),
        np.zeros(max(1 << 14, 8 * most), DONE),
        np.zeros(spans, SPAN), np.zeros(BINS, np.int64), g,
    )  # fmt: skip


def grown(s: State) -> State:
    """The same with twice the records for requests."""
    old, new = len(s.q), 2 * len(s.q)
    q, m = np.zeros(new, REQUEST), np.zeros(new, MOVE)
    q[:old], m[:old] = s.q, s.m
    q["next"][old:] = np.append(np.arange(old + 1, new), s.g["free"][0])
    s.g["free"] = old
    return s._replace(q=q, m=m)
