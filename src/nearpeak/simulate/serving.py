"""Serving under traffic: a deployment of instances, its requests, and the run of the compiled loop over them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError
from nearpeak.simulate import loop, state
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.policies import Policy, policy
from nearpeak.simulate.results import Result, Sketch, Targets
from nearpeak.simulate.state import Rules, State
from nearpeak.simulate.steps import StepTable

ROUTERS = {
    "least-loaded": state.LEAST_LOADED,
    "round-robin": state.ROUND_ROBIN,
    "random": state.RANDOM,
    "same-prefix": state.SAME_PREFIX,
}
KEPT = 1_000_000
"""Requests of which each is kept; of more, distributions alone."""
PART = 1 << 16
"""Requests that are handed to the loop at a time."""
EVENTS = 1 << 62


@dataclass(frozen=True)
class Speculation:
    """Drafted tokens of each sequence and step, and the probability that one is accepted when all before it are."""

    draft: int = 0
    acceptance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.draft <= 8 or not 0 <= self.acceptance <= 1:
            raise UsageError(
                f"{self.draft} drafted tokens, accepted with {self.acceptance}; give 0 to 8 tokens and a probability"
            )


@dataclass(frozen=True)
class Instances:
    """Instances of one kind.

    Attributes:
        kind: row of the step table. count: how many. most: requests that each runs at once.
        blocks: of the KV cache of each. devices: of each.
        role: ``both``, ``prefill`` or ``decode``.
    """

    kind: int
    count: int
    most: int
    blocks: int
    devices: float = 1.0
    role: str = "both"

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"unknown role {self.role!r}; an instance does {', '.join(ROLES)}")
        if min(self.count, self.most, self.blocks) < 1:
            raise UsageError(
                f"{self.count} instances with {self.blocks} blocks of cache for {self.most} requests; each must be 1 "
                "or more: does the model fit?"
            )


ROLES = {"both": state.BOTH, "prefill": state.PREFILLS, "decode": state.DECODES}


@dataclass(frozen=True)
class Deployment:
    """What serves.

    Attributes:
        table: step times of each kind of instance. instances: all of them.
        policy: how steps are composed. router: which instance a request goes to.
        block: tokens of a block of cache. longest: most tokens of a request.
        stages: of a pipeline. ahead: engines compose a step while the one before runs, as vLLM's asynchronous
            scheduling does. reserves: a request is admitted with room for its whole answer.
            caching: what requests leave in the cache is found again until it is overwritten.
        speculation: of decode steps. receive: seconds until an engine sees a request.
        moving_fixed, moving_token: seconds to move a cache from prefill to decode, and for each token of it.
    """

    table: StepTable
    instances: tuple[Instances, ...]
    policy: Policy = field(default_factory=lambda: policy("stall-free"))
    router: str = "least-loaded"
    block: int = 16
    longest: int = 1 << 40
    stages: int = 1
    ahead: bool = False
    reserves: bool = False
    caching: bool = True
    speculation: Speculation = field(default_factory=Speculation)
    receive: float = 0.0
    moving_fixed: float = 0.0
    moving_token: float = 0.0

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise UsageError(f"unknown router {self.router!r}; choose one of {', '.join(ROUTERS)}")
        if self.speculation.draft >= self.block:
            raise UsageError(f"blocks of {self.block} tokens; they must be longer than the drafted tokens")
        roles = {one.role for one in self.instances}
        if not (roles == {"both"} or roles == {"prefill", "decode"}):
            raise UsageError(f"instances do {', '.join(sorted(roles))}; all do both, or some prefill and some decode")

    @property
    def devices(self) -> float:
        """Of all instances."""
        return sum(one.devices * one.count for one in self.instances)

    @property
    def rows(self) -> list[Instances]:
        """The kind of every instance, one by one."""
        return [one for one in self.instances for _ in range(one.count)]

    @property
    def room(self) -> int:
        """Tokens of the longest request that can be served, by context and by the smallest cache less its drafts."""
        cache = self.block * min(one.blocks for one in self.instances) - self.speculation.draft
        return min(self.longest, cache)

    def instance_records(self) -> NDArray[np.void]:
        """The instances as the loop knows them, one record each."""
        rows = self.rows
        records = np.zeros(len(rows), state.INSTANCE)
        for name in ("kind", "most", "blocks"):
            records[name] = [getattr(row, name) for row in rows]
        records["role"] = [ROLES[row.role] for row in rows]
        return records

    def rules(self, clients: int, think: float) -> Rules:
        """What the loop is told."""
        p, s = self.policy, self.speculation
        return Rules(
            policy=p.code, budget=p.budget, tile=p.tile, block=self.block, longest=self.room, ahead=int(self.ahead),
            reserves=int(self.reserves), caching=int(self.caching), padded=int(p.name == "request-level"),
            stages=self.stages,
            draft=s.draft, acceptance=s.acceptance, router=ROUTERS[self.router], request=self.receive,
            moving_fixed=self.moving_fixed, moving_token=self.moving_token, clients=clients, think=think,
        )  # fmt: skip


def compiled_here() -> bool:
    """Whether the loop was compiled on this machine before; else the first run takes about a minute longer."""
    made: Any = loop.advance
    return bool(made.signatures or made._cache._cache_file._load_index())


def feed(
    arrival: ArrayLike,
    isl: ArrayLike,
    osl: ArrayLike,
    rank: ArrayLike = 0,
    prefix: ArrayLike = -1,
    shared: ArrayLike = 0,
) -> Feed:
    """Requests as the loop takes them; see ``Feed``.

    Raises:
        UsageError: times are missing, negative or not in order; a length is below 1; a class is beyond 7; a shared
            prefix is longer than its prompt.
    """
    n = np.size(isl)
    whole: Any = (np.array(np.broadcast_to(c, n), np.int64) for c in (isl, osl, rank, prefix, shared))
    made = Feed(np.array(arrival, float), *whole)
    if not n:
        raise UsageError("there are no requests")
    for name, bad, rule in (
        ("arrival", ~(np.isfinite(made.arrival) & (made.arrival >= 0)), "a time of at least 0 s is needed"),
        ("arrival", np.append(False, np.diff(made.arrival) < 0), "requests must be in the order of arrival"),
        ("isl", made.isl < 1, "a prompt has at least 1 token"),
        ("osl", made.osl < 1, "an answer has at least 1 token"),
        ("rank", (made.rank < 0) | (made.rank >= state.MOST_CLASSES), f"classes are 0 to {state.MOST_CLASSES - 1}"),
        ("shared", (made.shared < 0) | (made.shared > made.isl), "a shared prefix is part of its prompt"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise UsageError(f"request {at}: {name} = {getattr(made, name)[at]}; {rule}")
    return made


def serve(
    deployment: Deployment,
    requests: Feed | Iterable[Feed],
    *,
    clients: int = 0,
    think: float = 0.0,
    targets: dict[int, Targets] | Targets | None = None,
    seed: int = 0,
    timeline: int = 0,
    prefixes: int | None = None,
    keep: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Simulate the serving of requests.

    Args:
        requests: all of them, or parts in the order of arrival: memory then does not grow with their number.
        clients: of a closed loop; each sends its next request ``think`` seconds after its last was answered, the
            lengths are those of ``requests`` in turn and their arrivals are not read. 0: requests arrive as they say.
        targets: limits by class of priority, or one for all.
        seed: of routing at random and of accepted drafts.
        timeline: plans of engines to remember.
        prefixes: groups of shared prefixes in all; those of ``requests`` if they are given at once.
        keep: whether the result holds each request; None: if there are at most a million.
        progress: told how many requests have left.
    """
    if isinstance(requests, Feed):
        prefixes = int(requests.prefix.max()) + 1 if prefixes is None else prefixes
        keep = len(requests.isl) <= KEPT if keep is None else keep
        parts: Iterator[Feed] = _parts(requests)
    else:
        parts = iter(requests)
    if clients < 0 or not think >= 0:
        raise UsageError(f"{clients} clients that think {think} s; neither may be negative")
    s = state.fresh(
        deployment.instance_records(), deployment.stages, deployment.block, prefixes or 0, clients, timeline, 1024, seed
    )
    rules = deployment.rules(clients, think)
    made = _Collected(targets, bool(keep))
    part = next(parts, None)
    if part is None:
        raise UsageError("there are no requests")
    following, at = next(parts, None), 0
    while True:
        reason, at = loop.advance(s, deployment.table, rules, part, at, following is None, EVENTS)
        if reason == loop.WANTS_ROOM:
            s = state.grown(s)
        elif reason == loop.WANTS_REQUESTS and following is not None:
            part, following, at = following, next(parts, None), 0
        made.drain(s)
        if progress is not None:
            progress(made.seen)
        if reason == loop.ENDED:
            return made.result(deployment, s, clients > 0)


def _parts(requests: Feed) -> Iterator[Feed]:
    for start in range(0, len(requests.isl), PART):
        columns: tuple[Any, ...] = tuple(column[start : start + PART] for column in requests)
        yield Feed(*columns)


class _Collected:
    """What has left so far."""

    def __init__(self, targets: dict[int, Targets] | Targets | None, keep: bool) -> None:
        self.targets = targets if isinstance(targets, dict) else {}
        self.default = targets if isinstance(targets, Targets) else Targets()
        self.sketches = {name: Sketch() for name in ("ttft", "tpot", "latency")}
        self.kept: list[NDArray[np.void]] | None = [] if keep else None
        self.seen = self.rejected = self.met = 0
        self.first = np.inf

    def drain(self, s: State) -> None:
        """Take over what the loop has written down."""
        n = int(s.g["out"][0])
        if n == 0:
            return
        out = s.out[:n].copy()
        s.g["out"] = 0
        self.seen += n
        self.first = min(self.first, float(out["arrival"].min()))
        done = out[out["rejected"] == 0]
        self.rejected += n - len(done)
        figures = _figures(done)
        for name, sketch in self.sketches.items():
            sketch.add(figures[name][done["osl"] > 1] if name == "tpot" else figures[name])
        for rank in np.unique(done["rank"]).tolist():
            mine = done["rank"] == rank
            target = self.targets.get(rank, self.default)
            self.met += int(target.met({name: column[mine] for name, column in figures.items()}).sum())
        if self.kept is not None:
            self.kept.append(out)

    def result(self, deployment: Deployment, s: State, closed: bool) -> Result:
        """The run as a whole."""
        g = s.g.view(np.recarray)[0]
        start = self.first if np.isfinite(self.first) else 0.0
        span, offered_span = max(float(g.last_end) - start, 0.0), float(g.last_arrival) - start
        sketches = self.sketches | {"gap": Sketch(s.gaps.copy(), float("nan"))}
        middle = state.LEAST * state.RATIO ** (np.arange(state.BINS) + 0.5)
        sketches["gap"].total = float((s.gaps * middle).sum())
        rows = deployment.rows
        busy = s.e["busy"].reshape(len(rows), -1).sum(axis=1) / (deployment.stages * max(span, 1e-30))
        idle = deployment.table.kinds["idle_watts"][[row.kind for row in rows]]
        joules = float(s.e["joules"].sum() + (idle * np.maximum(span * (1 - busy), 0.0)).sum())
        requests = None
        if self.kept is not None:
            every = np.concatenate(self.kept) if self.kept else s.out[:0]
            every = every[np.argsort(every["id"], kind="stable")]
            done = every[every["rejected"] == 0]
            requests = {name: done[name] for name in DONE_COLUMNS} | _figures(done)
        return Result(
            sketches=sketches, requests=requests, offered=self.seen, completed=self.seen - self.rejected,
            rejected=self.rejected, met=self.met, tokens=int(g.tokens),
            prompt_tokens=int(g.computed), cached_tokens=int(g.hit),
            preemptions=int(g.preemptions), span=span, backlog=int(g.backlog), offered_span=offered_span,
            busy=busy, joules=joules, devices=deployment.devices,
            timeline=s.spans[: int(g.spans)].copy(), closed=closed,
        )  # fmt: skip


DONE_COLUMNS = ("id", "arrival", "first", "finish", "isl", "osl", "hit", "preempted", "instance", "rank")


def _figures(done: NDArray[np.void]) -> dict[str, NDArray[np.float64]]:
    """TTFT, TPOT (0 of answers of one token) and latency of requests, seconds."""
    later = np.maximum(done["osl"] - 1, 1)
    return {
        "ttft": done["first"] - done["arrival"],
        "tpot": (done["finish"] - done["first"]) / later,
        "latency": done["finish"] - done["arrival"],
    }
