"""Pipelines of stages: sends that block or do not, and the bubbles that uneven micro-batches leave.

Sends (Du et al., "EnergonAI", arXiv 2209.02341, section 4.2). Job ``n`` computes ``t[n, s]`` seconds on stage ``s`` and
its result travels ``h[n]`` seconds. A stage whose sends block keeps its result until the next stage takes it, and it
computes nothing meanwhile: a flow shop with blocking. With ``C`` the end of computing and ``D`` the end of sending::

    C[n, s] = D[n, s-1] + t[n, s]          D[n, s] = max(C[n, s], D[n-1, s+1]) + h[n]

A stage that sends without blocking leaves the result to its link, which carries one after another, and goes on with
what has arrived ``A``: a flow shop with buffers. No job of it is ever later than in the one that blocks::

    C[n, s] = max(A[n, s], C[n-1, s]) + t[n, s]          A[n, s+1] = max(C[n, s], A[n-1, s+1]) + h[n]

Bubbles (Agrawal et al., "SARATHI", arXiv 2308.16369, section 3.2). Between two jobs a stage idles where the second
arrives late: prompts differ in length, prompts differ from decodes, caches differ in length. Micro-batches of whole
prompts (``iteration_level``, Orca) are uneven; ``piggyback`` fills each up to the same tokens with a part of a prompt.
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import platform_of
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.simulate import peer_memory
from nearpeak.simulate.micro_batches import MicroBatches, hop_seconds, micro_batches, pass_seconds, stage_seconds
from nearpeak.simulate.policies import Policy, policy
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, numbers, require_positive
from nearpeak.workload.traffic import LogNormal, Requests, Traffic, read_trace

Array = NDArray[np.float64]
Count = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Flow:
    """When jobs computed on stages, ``[jobs, stages]``, seconds."""

    start: Array
    end: Array

    @property
    def makespan(self) -> float:
        """Seconds from the first job's start to the last one's end."""
        return float(self.end[-1, -1] - self.start[0, 0])

    @property
    def throughput(self) -> float:
        """Jobs/s."""
        return len(self.end) / self.makespan

    @property
    def bubbles(self) -> Array:
        """Seconds that each stage idled before each job, ``[jobs, stages]``; filling the pipeline does not count."""
        idle = np.zeros_like(self.start)
        idle[1:] = self.start[1:] - self.end[:-1]
        return idle

    @property
    def waiting(self) -> int:
        """Most jobs at once that one stage had ended and the next had not begun: buffers, where sends do not block."""
        n = np.arange(self.end.shape[0])
        ended = [np.searchsorted(self.end[:, s], self.start[:, s + 1], "right") for s in range(self.end.shape[1] - 1)]
        return int(max((np.max(e - n) for e in ended), default=0))


def flow(
    seconds: ArrayLike,
    hop: ArrayLike = 0.0,
    release: ArrayLike = 0.0,
    blocking: bool = False,
    previous: Count | None = None,
) -> Flow:
    """Jobs through stages in their order.

    Args:
        seconds: ``[jobs, stages]``. hop: of sending a job's result, ``[jobs]``. release: when a job is there,
            ``[jobs]``. previous: the job that must have left the last stage before, -1 for none; ``[jobs]``.

    Raises:
        UsageError: a time is negative or not finite.
    """
    times = np.ascontiguousarray(seconds, float)
    jobs = times.shape[0]
    sent, there = (np.broadcast_to(np.asarray(a, float), (jobs,)).copy() for a in (hop, release))
    for name, given in (("seconds", times), ("hop", sent), ("release", there)):
        if not (np.isfinite(given) & (given >= 0)).all():
            raise UsageError(f"{name} of a pipeline's jobs must be finite and not below 0, not {np.min(given):g}")
    after = np.full(jobs, -1) if previous is None else previous
    return Flow(*(_blocking if blocking else _buffered)(times, sent, there, after))


@njit(cache=True)
def _buffered(seconds: Array, hop: Array, release: Array, previous: Count) -> tuple[Array, Array]:
    jobs, stages = seconds.shape
    start, end = np.zeros((jobs, stages)), np.zeros((jobs, stages))
    free, arrived = np.zeros(stages), np.zeros(stages)
    for n in range(jobs):
        there = release[n]
        if previous[n] >= 0:
            there = max(there, end[previous[n], stages - 1])
        for s in range(stages):
            start[n, s] = max(there, free[s])
            end[n, s] = free[s] = start[n, s] + seconds[n, s]
            there = arrived[s] = max(free[s], arrived[s]) + hop[n]
    return start, end


@njit(cache=True)
def _blocking(seconds: Array, hop: Array, release: Array, previous: Count) -> tuple[Array, Array]:
    jobs, stages = seconds.shape
    start, end = np.zeros((jobs, stages)), np.zeros((jobs, stages))
    free = np.zeros(stages)  # when a stage has handed over the job before
    for n in range(jobs):
        there = release[n]
        if previous[n] >= 0:
            there = max(there, end[previous[n], stages - 1])
        taken = max(there, free[0])
        for s in range(stages):
            start[n, s] = taken
            end[n, s] = taken + seconds[n, s]
            if s + 1 < stages:
                taken = max(end[n, s], free[s + 1]) + hop[n]
                free[s] = taken
            else:
                free[s] = end[n, s]
    return start, end


def jittered(seconds: Array, cv: float, seed: int) -> Array:
    """Times with lognormal noise of mean 1 and coefficient of variation ``cv``, each by itself.

    Raises:
        UsageError: ``cv`` is negative or not finite.
    """
    if not (np.isfinite(cv) and cv >= 0):
        raise UsageError(f"jitter must be finite and not below 0, not {cv:g}")
    spread = np.sqrt(np.log1p(cv**2))
    return np.asarray(seconds * np.random.default_rng(seed).lognormal(-(spread**2) / 2, spread, seconds.shape))


@dataclass(frozen=True, eq=False)
class Rounds:
    """Requests that went through a pipeline under a policy.

    Attributes:
        policy: with its budget. made: the micro-batches. flow: when they were where.
        tokens: of all answers.
    """

    policy: Policy
    made: MicroBatches
    flow: Flow
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Of answers, over all stages together."""
        return self.tokens / self.flow.makespan

    @property
    def bubble_time(self) -> float:
        """Seconds that all stages idled, by request."""
        return float(self.flow.bubbles.sum()) / self.made.first.size

    @property
    def bubble_share(self) -> float:
        """Share of the stages' time."""
        start, end = self.flow.start, self.flow.end
        return float(self.flow.bubbles.sum() / (end[-1] - start[0]).sum())

    @property
    def request_bubbles(self) -> Array:
        """Seconds that stages idled before each request's own micro-batches, ``[requests]``."""
        along, idle = np.zeros(self.made.previous.size + 1), self.flow.bubbles.sum(1)
        for n, before in enumerate(self.made.previous):  # place -1 stands for "none before"
            along[n] = along[before] + idle[n]
        return np.asarray(along[self.made.last] - along[self.made.previous[self.made.first]])


def rounds(
    setup: Setup, requests: Requests, policy: Policy, slots: int, blocking: bool = False, cv: float = 0.0, seed: int = 0
) -> Rounds:
    """Requests, all there from the start, through the stages of ``setup.decode``; a micro-batch has ``slots`` of them.

    ``cv``: jitter of each stage's times.
    """
    made = micro_batches(policy, requests, int(setup.decode.pp), slots)
    seconds = jittered(stage_seconds(setup, pass_seconds(setup, made)), cv, seed)
    hop = hop_seconds(platform_of(setup), setup, made.tokens)
    return Rounds(policy, made, flow(seconds, hop, 0.0, blocking, made.previous), int(requests.osl.sum()))


def prompts_flow(
    setup: Setup, requests: Requests, blocking: bool, cv: float = 0.0, seed: int = 0, offline: bool = False
) -> Flow:
    """Prompts one by one through the stages of ``setup.decode``, each from its arrival on, or all there from the start.

    ``cv``: jitter of each stage's times.
    """
    one = np.ones(requests.isl.size, np.int64)
    none = np.zeros_like(one)
    made = MicroBatches(one, requests.isl, none, none, none, none, none, none)
    seconds = jittered(stage_seconds(setup, pass_seconds(setup, made)), cv, seed)
    hop = hop_seconds(platform_of(setup), setup, requests.isl)
    return flow(seconds, hop, 0.0 if offline else requests.arrival, blocking)


def _explain(
    model: str, gpu: str, devices: int, stages: int, slots: int, requests: int, isl: float, osl: float,
    spread: float, trace: str | None, jitter: float, chunks: tuple[float, ...], buffers: int, seed: int,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup

    require_positive(isl=isl, osl=osl, stages=stages, requests=requests, slots=slots)
    if trace is None:
        drawn = Traffic(LogNormal(isl, spread), LogNormal(osl, spread)).sample(requests, seed)
    else:
        drawn = read_trace(trace).sample(requests, seed)
    own = setup(model, gpu, devices, float(drawn.isl.mean()), float(drawn.osl.mean()))
    own = replace(own, decode=replace(own.decode, pp=stages))

    noises = np.array([0.0, jitter])
    blocked, free = (
        [prompts_flow(own, drawn, blocking, float(cv), seed, offline=True) for cv in noises]
        for blocking in (True, False)
    )
    gains = np.array([f.throughput / b.throughput for f, b in zip(free, blocked, strict=True)])

    uneven = policy("iteration-level")
    ways = [uneven, *(policy("piggyback", budget=int(c), tile=min(int(c), 128)) for c in chunks)]
    went = [rounds(own, drawn, way, slots, cv=jitter, seed=seed) for way in ways]
    best = min(went[1:], key=lambda r: r.bubble_time, default=went[0])
    fall = went[0].bubble_time / best.bubble_time

    layers = own.model.layers
    borrowed = np.unique(layers // np.array([layers, 16, 8, 4, 2]))
    lent = peer_memory.borrowing(own, float(own.isl), np.append(0, borrowed), buffers)
    hidden = np.append(0, borrowed)[lent["peer"] <= 1.01 * lent["peer"][0]].max()
    return Explanation(
        {
            "non_blocking_gain_ratio": gains[-1].item(),
            "bubbles_fall_ratio": fall,
            "throughput_gain_ratio": best.tokens_per_second / went[0].tokens_per_second,
            "chunk_tokens": best.policy.budget,
            "layer_memory": peer_memory.layer_bytes(own),
            "borrowed_for_nothing_layers": int(hidden),
        },
        (
            Table.of(
                "Prompts one by one, by the jitter of stages",
                jitter=noises,
                blocking_prompts_per_second=[f.throughput for f in blocked],
                non_blocking_prompts_per_second=[f.throughput for f in free],
                gain_ratio=gains,
                waiting_results=[f.waiting for f in free],
            ),
            Table.of(
                "Prompts and answers in micro-batches",
                policy=[r.policy.name for r in went],
                chunk_tokens=[r.policy.budget for r in went],
                bubble_time=[r.bubble_time for r in went],
                bubble_share=[r.bubble_share for r in went],
                tokens_per_second=[r.tokens_per_second for r in went],
                bubbles_fall_ratio=[went[0].bubble_time / r.bubble_time for r in went],
            ),
            Table.of(
                "A prompt's pass on one stage that holds all layers, by layers that lie elsewhere",
                borrowed_layers=np.append(0, borrowed),
                memory=np.append(0, borrowed) * peer_memory.layer_bytes(own),
                peer_time=lent["peer"],
                peer_unplanned_time=lent["on_demand"],
                host_time=lent["host"],
            ),
        ),
        (
            f"Sends that do not block make {100 * (gains[-1] - 1):.3g} % more prompts a second when stages jitter by "
            f"{100 * jitter:.3g} %.",
            f"Micro-batches of {best.policy.budget} tokens leave {fall:.3g} times less bubble time than whole prompts.",
            f"Up to {hidden} of {layers} layers can lie with a peer at no more than 1 % of a pass.",
        ),
    )


TOPIC = Topic(
    "pipeline",
    "What do sends that do not block, even micro-batches and layers in a peer's memory give a pipeline?",
    "Du et al., EnergonAI, 2022 (arXiv 2209.02341); Agrawal et al., SARATHI, 2023 (arXiv 2308.16369)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices of a stage, by tensor parallelism.", 1),
        Option("stages", int, "Pipeline stages.", 4),
        Option("slots", int, "Requests of a micro-batch.", 16),
        Option("requests", int, "Requests that go through.", 1000),
        Option("isl", float, "Mean tokens of a prompt.", 1000.0),
        Option("osl", float, "Mean tokens of an answer.", 100.0),
        Option("spread", float, "Standard deviation of both lengths, over their means.", 0.5),
        Option("trace", str, "File of recorded requests, whose lengths count instead.", None),
        Option("jitter", float, "Coefficient of variation of a stage's time.", 0.1),
        Option("chunks", numbers, "Tokens of a micro-batch with a part of a prompt.", (128.0, 256.0, 512.0)),
        Option("buffers", int, "Borrowed layers that a device has room for at a time.", 1),
        Option("seed", int, "Of lengths and jitter.", 0),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-70B --gpu a100_sxm_80gb --devices 2 --stages 4",
)
