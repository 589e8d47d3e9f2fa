"""How long the live engine's steps take, by what is in them: measured cells, and the simulator's table of them.

A cell is a step of ``rows`` decoding requests with ``context`` cached tokens each and, beside them, a chunk of
``chunk`` tokens of a prompt after ``prefix`` that were read. The engine itself runs it (composing, forward pass and the
token's way to the host), so that a simulator fed with it differs from the engine in nothing but noise. Cells are
measured in turn, over and over, and the median of each taken: what disturbs the machine for a while disturbs all.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.decode.iterations import Book, Clock, Engine
from nearpeak.decode.slots import Slots
from nearpeak.errors import UsageError
from nearpeak.simulate.policies import policy
from nearpeak.simulate.steps import CHUNKS, PROMPTS, StepTable, constant_table
from nearpeak.workload.traffic import Requests

Array = NDArray[np.float64]


class Cell(NamedTuple):
    """What is in a step: requests that decode, tokens that each has cached, tokens of a prompt, those before them."""

    rows: int = 0
    context: int = 1
    chunk: int = 0
    prefix: int = 0


def step_seconds(
    model: Any,  # noqa: ANN401 - a transformers model
    cells: Sequence[Cell],
    repeats: int = 9,
    read: Callable[[], float] = perf_counter,
) -> Array:
    """Time steps of the engine, within ``forward.packed(model)``.

    Args:
        model: what runs. cells: the steps. repeats: how often each is timed.
        read: the clock; ``time.process_time`` where one thread computes and other programs keep the cores busy.

    Returns:
        Seconds, ``[repeats, cells]``; a first round, to warm up, is left out.

    Raises:
        UsageError: an empty cell.
    """
    for cell in cells:
        if cell.rows + cell.chunk < 1 or min(cell.context, cell.prefix + 1) < 1:
            raise UsageError(f"{cell} holds nothing to run: give rows or chunk, and a context of at least 1")
    slots = Slots(max(c.rows + 1 for c in cells), 2 + max(max(c.context, c.chunk + c.prefix) for c in cells))
    engine = Engine(model, policy("stall-free", budget=1 << 40), slots)
    books = [_book(cell, model.config.get_text_config().vocab_size) for cell in cells]
    seconds, clock = np.zeros((1 + repeats, len(cells))), Clock(read)
    for turn in seconds:
        for i, (cell, book) in enumerate(zip(cells, books, strict=True)):
            slots.used = cell.rows + (cell.chunk > 0)
            engine.request[: slots.used] = np.arange(slots.used)
            engine.cached[: cell.rows] = cell.context
            engine.cached[cell.rows : slots.used] = cell.prefix
            step = engine.step(book, deque(), clock)
            assert step is not None
            turn[i] = step.seconds
    return seconds[1:]


def _book(cell: Cell, vocabulary: int) -> Book:
    """Requests of which none ends in the step."""
    isl = np.array([cell.context] * cell.rows + [cell.prefix + cell.chunk] * (cell.chunk > 0), np.int64)
    draw = np.random.default_rng(0)
    book = Book(
        Requests(np.zeros(isl.size), isl, np.full(isl.size, 2)), [draw.integers(vocabulary, size=n) for n in isl]
    )
    book.text[:, -2:] = draw.integers(vocabulary, size=(isl.size, 2))
    return book


@dataclass(frozen=True)
class StepTimes:
    """Measured medians in seconds.

    Attributes:
        rows, contexts: of ``decode``, ``[rows, contexts]``. chunks, prefixes: of ``prefill``, ``[chunks, prefixes]``;
            the first prefix is 0.
        mixed: each chunk at prefix 0 beside as many decodes as ``rows`` say, at the middle of ``contexts``,
            ``[chunks, rows]``.
    """

    rows: NDArray[np.int64]
    contexts: NDArray[np.int64]
    decode: Array
    chunks: NDArray[np.int64]
    prefixes: NDArray[np.int64]
    prefill: Array
    mixed: Array


def step_times(
    model: Any,  # noqa: ANN401 - a transformers model
    rows: ArrayLike = (1, 2, 4, 8, 16),
    contexts: ArrayLike = (16, 64, 256),
    chunks: ArrayLike = (16, 64, 256),
    prefixes: ArrayLike = (0, 256),
    repeats: int = 9,
    read: Callable[[], float] = perf_counter,
) -> StepTimes:
    """Measure a grid of steps, within ``forward.packed(model)``.

    Raises:
        UsageError: an axis does not ascend from 1 (``prefixes``: from 0), or holds less than two values.
    """
    axes = [np.asarray(axis, np.int64) for axis in (rows, contexts, chunks, prefixes)]
    for name, axis, least in zip(("rows", "contexts", "chunks", "prefixes"), axes, (1, 1, 1, 0), strict=True):
        if axis.ndim != 1 or axis.size < 2 or axis[0] < least or (np.diff(axis) < 1).any():
            raise UsageError(f"{name} {axis.tolist()}: give two or more whole numbers, ascending, from {least} on")
    if axes[3][0] != 0:
        raise UsageError(f"prefixes {axes[3].tolist()} must begin with 0")
    at, cached, parts, before = (axis.tolist() for axis in axes)
    decode = [Cell(r, c) for r in at for c in cached]
    prefill = [Cell(chunk=n, prefix=p) for n in parts for p in before]
    mixed = [Cell(r, cached[len(cached) // 2], n) for n in parts for r in at]
    found = np.median(step_seconds(model, [*decode, *prefill, *mixed], repeats, read), axis=0)
    first, second = len(decode), len(decode) + len(prefill)
    return StepTimes(
        axes[0], axes[1], found[:first].reshape(len(at), -1), axes[2], axes[3],
        found[first:second].reshape(len(parts), -1), found[second:].reshape(len(parts), -1),
    )  # fmt: skip


def token_budget(times: StepTimes, goal: float, batch: int, context: int, tile: int = 1) -> int:
    """The most tokens that a step may hold while ``batch`` requests wait ``goal`` seconds for their next token at most.

    As Sarathi-Serve sizes it (Agrawal et al. 2024, section 4.3): from profiled steps, the worst that comes, all of the
    batch decoding at ``context`` beside a chunk at the longest measured prefix.

    Args:
        times: measured. goal: seconds between tokens. batch, context: of the worst step.
        tile: the budget is a multiple of it.

    Raises:
        UsageError: no budget that leaves a prompt one token meets the goal.
    """
    table = step_table(times, batch)
    knots = np.append(0.0, CHUNKS)
    first = max(tile, -(-(batch + 1) // tile) * tile)
    budgets = np.arange(first, max(first, int(times.chunks[-1])) + 1, tile)
    beside = np.interp(context, table.knots, table.attend[0, batch])
    before = np.array([np.interp(times.prefixes[-1], knots, row) for row in table.prefill[0, 0]])
    seconds = np.interp(budgets, np.arange(table.rows.shape[1]), table.rows[0]) + beside
    seconds += np.interp(budgets - batch, CHUNKS, before)
    good = np.flatnonzero(seconds <= goal)
    if not good.size:
        raise UsageError(
            f"no step of {batch} decodes and a chunk takes {goal:g} s or less (the smallest, of {budgets[0]} tokens, "
            f"{seconds[0]:.2g} s): take a longer goal or a smaller batch"
        )
    return int(budgets[good[-1]])


def step_table(times: StepTimes, batch: int) -> StepTable:
    """The simulator's table of what was measured, for up to ``batch`` requests. It holds no watts.

    All of a step with a chunk but attention to what was read before is ``rows``. Beside it decodes add what they added
    in the measured mixed steps; at other contexts, what a step that only decodes takes more or less there. Beyond the
    grid a chunk's time grows with its tokens and its prefix. A difference that noise makes negative counts as none.
    """
    every, at = np.arange(batch + 1), times.rows
    middle = len(times.contexts) // 2

    def by_batch(seconds: Array) -> Array:
        return np.stack([np.interp(every, at, column) for column in seconds.T], axis=1)

    sizes = np.append(1, times.chunks)
    whole = np.append(min(times.decode[0, 0], times.prefill[0, 0]), times.prefill[:, 0])
    most = int(sizes[-1])
    rows = np.interp(np.arange(most + 1), sizes, whole)
    total = times.chunks[:, None] + at
    under = np.where(total <= most, np.interp(total, sizes, whole), whole[-1] * total / most)
    added = np.median(times.mixed - under, axis=0)
    attend = np.maximum(added[:, None] + times.decode - times.decode[:, middle : middle + 1], 0.0)
    longer = np.maximum(times.prefill - times.prefill[:, :1], 0.0)
    prefixes, knots = times.prefixes, np.append(0.0, CHUNKS)
    grown = np.maximum(knots / prefixes[-1], 1.0)
    by_prefix = np.stack([np.interp(knots, prefixes, line) * grown for line in longer])
    larger = np.maximum(CHUNKS / most, 1.0)[:, None] * np.minimum(CHUNKS / times.chunks[0], 1.0)[:, None]
    by_size = np.stack([np.interp(CHUNKS, times.chunks, column) for column in by_prefix.T], axis=1) * larger
    return constant_table(0.0, batch)._replace(
        knots=times.contexts.astype(float),
        decode=by_batch(times.decode)[None],
        rows=rows[None],
        attend=by_batch(attend)[None],
        prefill=(PROMPTS[:, None, None] * by_size)[None],
    )


def capacity(
    model: Any,  # noqa: ANN401 - a transformers model
    rows: int,
    isl: float,
    osl: float,
    read: Callable[[], float] = perf_counter,
) -> float:
    """Requests a second of an engine whose ``rows`` all decode all the time but while a prompt is read, one by one."""
    cells = [Cell(rows, round(isl + osl / 2)), Cell(chunk=round(isl))]
    step, prompt = np.median(step_seconds(model, cells, read=read), axis=0).tolist()
    return float(1 / (prompt + osl * step / rows))


def piggyback(
    model: Any,  # noqa: ANN401 - a transformers model
    rows: int,
    context: int,
    tile: int,
    repeats: int = 9,
    read: Callable[[], float] = perf_counter,
) -> tuple[float, float]:
    """What a decoded token takes in a step that only decodes, and what it adds to one that fills a tile with a chunk.

    The figure of SARATHI (Agrawal et al. 2023, table 2): the time of the mixed step less that of the same chunk alone.
    Measured in turn, within ``forward.packed(model)``.

    Returns:
        Seconds of a token alone and piggybacked, medians over ``repeats``.

    Raises:
        UsageError: the decodes leave no room in the tile.
    """
    if tile <= rows:
        raise UsageError(f"a tile of {tile} tokens has no room for a chunk beside {rows} decodes; take a larger one")
    chunk = tile - rows
    cells = [Cell(rows, context), Cell(chunk=chunk), Cell(rows, context, chunk)]
    lone, prompt, both = step_seconds(model, cells, repeats, read).T / rows
    return float(np.median(lone)), float(np.median(both - prompt))
