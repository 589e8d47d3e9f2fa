"""An engine that decides at every iteration what runs in it, by the same policies as the simulator, on a real model.

One decode loop never stops: a request joins it at any step after its prompt was read and leaves it at any step, its
cache row freed by moving the last one (``slots``). What a step holds is composed by a rule of
``nearpeak.simulate.policies``: parts of prompts beside decodes (SARATHI, Sarathi-Serve), whole prompts first (vLLM
before version 1), one prompt by itself (Flover), a batch after a batch (dynamic batching). Greedy decoding.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nearpeak.decode.forward import Step, logits
from nearpeak.decode.slots import Slots
from nearpeak.errors import UsageError
from nearpeak.simulate.policies import Policy, request_level
from nearpeak.workload.traffic import Requests

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass
class Clock:
    """Seconds since it was made.

    Attributes:
        read: the clock below. real: whether it waits for arrivals; else it skips the time in which nothing runs, so
            that a trace of little load takes no longer than its steps.
    """

    read: Callable[[], float] = time.perf_counter
    real: bool = False
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.read()

    def now(self) -> float:
        """Seconds since the start."""
        return self.read() - self.start

    def wait(self, until: float) -> None:
        """Let time pass until then."""
        left = until - self.now()
        if left <= 0:
            return
        if self.real:
            time.sleep(left)
        else:
            self.start -= left


class Book:
    """What is known of each request of a run: its tokens, and when each came.

    Attributes:
        text: prompt, then the answer as far as it is, ``[requests, tokens]``. time: when each token of the answer was
            there, at the same places. end: prompt and answer together, ``[requests]``.
        isl: tokens of each prompt. finished: requests that are done.
    """

    def __init__(self, requests: Requests, prompts: Sequence[Counts]) -> None:
        if (np.diff(requests.arrival) < 0).any():
            raise UsageError("arrivals must be ascending; sort the requests by arrival")
        self.isl = np.asarray(requests.isl, np.int64)
        for i, lengths in enumerate(zip(self.isl.tolist(), requests.osl.tolist(), strict=True)):
            if min(lengths) < 1:
                raise UsageError(f"request {i}: {min(lengths)} tokens; prompt and answer need at least one each")
        for i, (tokens, prompt) in enumerate(zip(self.isl, prompts, strict=True)):
            if len(prompt) != tokens:
                raise UsageError(f"the prompt of request {i} has {len(prompt)} tokens, its request says {tokens}")
        self.end = self.isl + np.asarray(requests.osl, np.int64)
        self.text = np.zeros((len(self.end), int(self.end.max())), np.int64)
        for row, prompt in zip(self.text, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.time = np.zeros(self.text.shape)
        self.finished = 0


@dataclass(frozen=True)
class Iteration:
    """One step: when it ended, its seconds (composing and the tokens' way to the host included), what was in it.

    Attributes:
        end, seconds: of the clock. decodes: requests that decoded. prefill: tokens of prompts.
        running: requests that could decode. engine: which of several.
    """

    end: float
    seconds: float
    decodes: int
    prefill: int
    running: int
    engine: int = 0


class Engine:
    """A model, its cache and a policy. It runs while ``forward.packed(model)`` holds.

    Attributes:
        slots: the cache. request: whose each row in use is. cached: tokens of each row that are cached.
        padded: whether rows of requests that have ended stay and are computed until all have, as batches of
            FasterTransformer are and those of the simulator; under every policy but request-level each leaves at once.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a transformers model
        policy: Policy,
        slots: Slots,
        number: int = 0,
    ) -> None:
        self.model, self.policy, self.slots, self.number = model, policy, slots, number
        self.padded = policy.rule is request_level
        self.like: Tensor = next(model.parameters())
        self.request = np.zeros(slots.rows, np.int64)
        self.cached = np.zeros(slots.rows, np.int64)
        none = np.zeros(0, np.int64)
        policy.rule(0, none, 0, 1, 1, none)  # compiled now rather than within the first step

    def step(self, book: Book, queue: deque[int], clock: Clock) -> Iteration | None:
        """Compose an iteration from the rows in use and the ``queue`` of arrived requests, and run it.

        Requests whose prompt is begun leave the queue. Returns None where the policy takes nothing.
        """
        began = clock.now()
        rows, count, decodes, running = self.compose(book, queue)
        if not rows.size:
            return None
        self.run(book, rows, count, decodes, clock)
        ended = clock.now()
        return Iteration(ended, ended - began, decodes, int(count[decodes:].sum()), running, self.number)

    def compose(self, book: Book, queue: deque[int]) -> tuple[Counts, Counts, int, int]:
        """What the policy puts into the next step: rows and their tokens, those that decode first; how many do; how
        many could.
        """
        slots, used = self.slots, self.slots.used
        left = book.isl[self.request[:used]] - self.cached[:used]
        running, begun = np.flatnonzero(left <= 0), np.flatnonzero(left > 0)
        begun = begun[np.argsort(self.request[begun])]  # first come, first served, wherever their rows have moved
        new = np.array([queue[i] for i in range(min(slots.rows - used, len(queue)))], np.int64)
        offered = np.concatenate([left[begun], book.isl[new]])
        take = np.zeros_like(offered)
        policy = self.policy
        decode = policy.rule(running.size, offered, begun.size, policy.budget, policy.tile, take)
        taken = take[: begun.size] > 0
        joined = [self._join(queue, r) for r in new[take[begun.size :] > 0].tolist()]
        running_now = running if decode else running[:0]
        rows = np.concatenate([running_now, begun[taken], np.array(joined, np.int64)])
        count = np.concatenate([np.ones_like(running_now), take[take > 0]])
        return rows, count, running_now.size, running.size

    def run(self, book: Book, rows: Counts, count: Counts, decodes: int, clock: Clock) -> None:
        """Run a step, write down its tokens, free the rows of requests that it ends."""
        who, start = self.request[rows], self.cached[rows]
        after = start + count
        text = np.concatenate([book.text[w, s:e] for w, s, e in zip(who, start, after, strict=True)])
        step = Step.of(self.slots, rows, start, count, decodes, self.like)
        over = after >= book.end[who]  # a request that has ended, in a batch that has not
        made = (after >= book.isl[who]) & ~over
        device = self.like.device
        keep = torch.from_numpy(np.cumsum(count)[made | over] - 1).to(device)
        likeliest = logits(self.model, step, torch.from_numpy(text).to(device), keep).argmax(-1).cpu().numpy()
        self.cached[rows] = np.where(over, start, after)
        book.text[who[made], after[made]] = likeliest[made[made | over]]
        book.time[who[made], after[made]] = clock.now()
        ended = rows[made & (after + 1 == book.end[who])]
        book.finished += ended.size
        if self.padded:
            used = self.slots.used
            done = (self.cached[:used] + 1 >= book.end[self.request[:used]]).all()
            ended = np.arange(used if done else 0)
        for row in np.sort(ended)[::-1].tolist():  # from the last on, so that the row that moves is of one that runs
            last = self.slots.used - 1
            self.slots.leave(row, int(self.cached[last]))
            self.request[row], self.cached[row] = self.request[last], self.cached[last]

    def _join(self, queue: deque[int], request: int) -> int:
        queue.remove(request)
        row = self.slots.take()
        self.request[row], self.cached[row] = request, 0
        return row


@dataclass(frozen=True)
class Served:
    """What a run showed.

    Attributes:
        requests: as they came. tokens, times: of each answer, ``[osl]`` each: ids, seconds since the start.
        steps: in the order in which they ran. moves: cache rows moved.
    """

    requests: Requests
    tokens: tuple[Counts, ...]
    times: tuple[Array, ...]
    steps: tuple[Iteration, ...]
    moves: int

    @property
    def makespan(self) -> float:
        """Seconds from the first arrival to the last token."""
        return float(max(t[-1] for t in self.times) - self.requests.arrival.min())

    @property
    def ttft(self) -> Array:
        """Seconds from arrival to first token, ``[requests]``."""
        return np.array([t[0] for t in self.times]) - self.requests.arrival

    @property
    def tbt(self) -> Array:
        """Seconds between tokens of one answer, of all answers in turn, ``[tokens - requests]``."""
        return np.concatenate([np.diff(t) for t in self.times])

    @property
    def rate(self) -> float:
        """Tokens of answers a second of the makespan."""
        return sum(map(len, self.tokens)) / self.makespan


def serve(
    engines: Sequence[Engine], requests: Requests, prompts: Sequence[Counts], clock: Clock | None = None
) -> Served:
    """Serve requests to their end, from one queue.

    Several engines take turns, a step each, as processes do that share a GPU without running kernels at once; the time
    of all their steps is on the one clock.

    Args:
        engines: with nothing in use. requests: arrivals in ascending order; answers have exactly ``osl`` tokens.
        prompts: token ids, ``[isl]`` each. clock: None: one that skips idle time.

    Raises:
        UsageError: arrivals out of order, a prompt or an answer without a token, a prompt that is not as long as its
            request says, or a request that no row can hold.
    """
    book = Book(requests, prompts)
    room = min(e.slots.length for e in engines)
    if (most := int(book.end.max())) > room:
        raise UsageError(f"request {int(book.end.argmax())} has {most} tokens with its answer, a cache row has {room}; "
                         "give the cache longer rows or leave the request out")  # fmt: skip
    for engine in engines:
        engine.slots.empty()
    queue: deque[int] = deque()
    steps: list[Iteration] = []
    arrival, came = requests.arrival, 0
    clock = clock or Clock()
    while book.finished < len(arrival):
        ran = False
        for engine in engines:
            now = clock.now()
            while came < len(arrival) and arrival[came] <= now:
                queue.append(came)
                came += 1
            if (step := engine.step(book, queue, clock)) is not None:
                steps.append(step)
                ran = True
        if not ran:
            clock.wait(float(arrival[came]))
    spans = [slice(a, b) for a, b in zip(book.isl, book.end, strict=True)]
    return Served(
        requests,
        tuple(row[s] for row, s in zip(book.text, spans, strict=True)),
        tuple(row[s] for row, s in zip(book.time, spans, strict=True)),
        tuple(steps),
        sum(e.slots.moves for e in engines),
    )  # fmt: skip
