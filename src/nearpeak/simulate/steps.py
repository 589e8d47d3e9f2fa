"""Step times of one engine instance as tables that an iteration looks up in nanoseconds, priced by ``cost``.

A step of an engine holds decoding requests, chunks of prompts, or both. Everything but attention depends on the rows of
the step alone; attention of decoding requests on how many they are and their mean context; attention of chunks on how
many there are, their size and the prefix before them. The first is tabulated for every number of rows, the second for
every batch between knots of context, the third on a grid; an iteration interpolates linearly.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import decode, mixed, platform_of, predict
from nearpeak.cost import step as cost_step
from nearpeak.cost.engine import Engine, engine_on
from nearpeak.cost.power import drawn
from nearpeak.cost.step_power import watts
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.compiled import compiled

Array = NDArray[np.float64]
KNOTS_PER_OCTAVE = 4
"""Of the context: decode attention is nearly linear in it, so that knots 19 % apart lose nothing that matters."""
EVERY_BATCH = 64
"""Batches that are each priced; beyond, every 3 % or so, with straight lines between."""
CHUNKS = 2.0 ** (np.arange(2 * 17 + 1) / 2)
"""Tokens of a chunk, and of a prefix, that attention is priced at: half octaves up to 131,072."""
PROMPTS = 2.0 ** np.arange(7)
"""Prompts of a step that attention is priced at."""
MOST_ROWS = 1 << 14
"""Rows priced one by one; beyond, a step takes as long for each row as at this many."""


KIND = np.dtype(
    [
        ("launch", "f8"),  # seconds to launch a step's kernels from the host
        ("step", "f8"), ("sequence", "f8"),  # seconds of the engine, for a step and for each sequence
        ("serial", "f8"),  # 1 where launching and computing do not overlap, else 0
        ("prefill_watts", "f8"), ("idle_watts", "f8"),  # of all devices of an instance
    ]
)  # fmt: skip


class StepTable(NamedTuple):
    """Step times of kinds of instances (a pipeline's whole way) and watts of their devices, by kind ``[kinds, ...]``.

    Attributes:
        knots: contexts in tokens, ascending, ``[K]``, the same for all kinds.
        decode: seconds of a step that only decodes, by batch and context, the engine's share included, ``[B + 1, K]``.
        rows: seconds of all but attention in a step with chunks, by rows, ``[R + 1]``.
        head: seconds that the head takes more for so many sampled rows than for one, ``[B + 1]``.
        attend: seconds of attention of decoding requests beside chunks, by batch and context, ``[B + 1, K]``.
        prefill: seconds of attention of chunks, by number, size and prefix, ``[PROMPTS, CHUNKS, 1 + CHUNKS]``.
        decode_watts: of all devices in a decode step, by batch, ``[B + 1]``.
        kinds: the rest, see ``KIND``.
    """

    knots: Array
    decode: Array
    rows: Array
    head: Array
    attend: Array
    prefill: Array
    decode_watts: Array
    kinds: NDArray[np.void]


def stacked(tables: Sequence[StepTable]) -> StepTable:
    """Tables of several kinds of instances in one. They must have been made for the same batch and context."""
    joined = (np.concatenate(columns) for columns in zip(*(table[1:] for table in tables), strict=True))
    return StepTable(tables[0].knots, *joined)


def step_table(setup: Setup, pool: Pool, batch: int, context: int, host: Engine | None = None) -> StepTable:
    """Price the steps of one instance of ``pool``.

    Requests and rows are those of the whole instance: with data-parallel attention each replica has its share.

    Args:
        setup: a single configuration (shape ``()``). batch: most requests that decode in a step of the instance.
        context: most tokens of a request. host: the engine's constants, those calibrated if None.

    Raises:
        UsageError: batch or context is below 1.
    """
    if batch < 1 or context < 1:
        raise UsageError(f"batch {batch} and context {context} must be at least 1")
    at, host = platform_of(setup), host or engine_on(setup.engine, setup.node)
    ranks = float(np.asarray(pool.dp))
    few = np.arange(1, min(batch, EVERY_BATCH) + 1)
    batches = np.unique(np.append(few, np.rint(np.geomspace(few[-1], batch, 1 + int(32 * np.log2(batch / few[-1]))))))
    octaves = int(np.ceil(KNOTS_PER_OCTAVE * np.log2(max(context, 32) / 16)))
    knots = 16 * 2 ** (np.arange(octaves + 1) / KNOTS_PER_OCTAVE)
    # Each of a pipeline's micro-batches is an engine of its own here; a Setup counts the requests of all of them.
    share = np.maximum(batches / ranks, 1.0)[:, None] * float(np.asarray(pool.pp))
    captured = decode(at.in_graph(), setup, pool, share, knots)
    eager = decode(at, setup, pool, share, knots)
    every = np.arange(batch + 1)

    def filled(seconds: Array) -> Array:
        wide = np.broadcast_to(seconds, (len(batches), len(knots)))
        return np.stack([np.interp(every, batches, column) for column in wide.T], axis=1)

    emitted = (1.0 + np.asarray(setup.draft, float)) * np.ones(())
    decoding = filled(captured.total) * host.graph + host.step + host.sequence * (every / ranks)[:, None]
    priced = np.unique(np.concatenate([np.arange(1, 257), np.arange(256, 2049, 8), np.arange(2048, MOST_ROWS + 1, 64)]))
    one = mixed(at, setup, pool, np.ones(()), np.maximum(priced / ranks, 1.0), np.zeros(()), np.zeros(()), np.ones(()))
    rows = np.interp(np.arange(MOST_ROWS + 1), priced, np.broadcast_to(one.total - one.attention, priced.shape))
    sampled = np.maximum(every / ranks, 1.0) * emitted
    head = cost_step.head(at, setup, pool, sampled) - cost_step.head(at, setup, pool, np.ones(()))
    prompts, size, prefix = np.meshgrid(PROMPTS, CHUNKS, np.append(0.0, CHUNKS), indexing="ij")
    chunks = mixed(at, setup, pool, prompts, np.maximum(size / ranks, 1.0), prefix, np.zeros(()), np.ones(()))
    decoding_watts, prefill_watts = _watts(setup, pool, batches, every)

    def row(value: Array) -> Array:
        return np.array(value, float, order="C")[None]

    return StepTable(
        knots=knots,
        decode=row(decoding),
        rows=row(rows),
        head=row(head),
        attend=row(filled(eager.attention)),
        prefill=row(np.broadcast_to(chunks.attention, prompts.shape)),
        decode_watts=row(decoding_watts),
        kinds=np.array(
            [
                (
                    host.layer * cost_step.depth(setup.model), host.step, host.sequence / ranks,
                    float(setup.node.device.kind == "cpu"), prefill_watts,
                    float(drawn(setup.node.device, np.zeros(()))) * float(pool.instance_devices),
                )
            ],
            KIND,
        ),
    )  # fmt: skip


def _watts(setup: Setup, pool: Pool, batches: Array, every: NDArray[np.int64]) -> tuple[Array, float]:
    """Watts of an instance in decode steps by batch, and in prefill, at the Setup's mean lengths."""
    ranks = float(np.asarray(pool.dp))
    wide = replace(setup, prefill=None, decode=replace(pool, replicas=1, batch=np.maximum(batches / ranks, 1.0)))
    decoding, prefilling = watts(wide, predict(platform_of(setup), wide))
    devices = float(pool.instance_devices)
    by_batch = np.interp(every, batches, np.broadcast_to(decoding, batches.shape)) * devices
    return by_batch, float(np.broadcast_to(prefilling, batches.shape)[0]) * devices


def constant_table(seconds: float, batch: int = 1, prompt: float = 0.0) -> StepTable:
    """Every decode step takes ``seconds`` whatever its batch, every prefill ``prompt``: a queue with ``batch`` servers.

    For queues whose theory is known, and for engines whose steps were measured elsewhere.
    """
    none, by_batch = np.zeros((1, len(PROMPTS), len(CHUNKS), len(CHUNKS) + 1)), np.zeros((1, batch + 1))
    return StepTable(
        np.array([16.0, 2.0**40]), np.full((1, batch + 1, 2), seconds), np.full((1, MOST_ROWS + 1), prompt), by_batch,
        np.zeros((1, batch + 1, 2)), none, by_batch, np.array([(0.0, 0.0, 0.0, 1.0, 0.0, 0.0)], KIND),
    )  # fmt: skip


@compiled
def knot_below(knots: Array, context: float) -> int:
    """Index of the knot at or below a context, at most the last but one."""
    low, high = 0, knots.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if knots[middle] <= context:
            low = middle
        else:
            high = middle
    return low


@compiled
def line(table: Array, knots: Array, batch: int, context: float) -> tuple[float, float, float]:
    """Seconds at ``context``, seconds that a token more adds, and the context up to which that holds."""
    k = knot_below(knots, context)
    slope = (table[batch, k + 1] - table[batch, k]) / (knots[k + 1] - knots[k])
    held = max(context, knots[0])
    end = knots[k + 1] if k < knots.size - 2 else 1e18
    return table[batch, k] + slope * (held - knots[k]), slope if context >= knots[0] else 0.0, end


@compiled
def _half_octave(tokens: float) -> tuple[int, float]:
    """The grid point of ``CHUNKS`` below a number of tokens, and how far it is on the way to the next."""
    if tokens <= 1.0:
        return 0, 0.0
    i = min(int(2.0 * np.log2(tokens)), 2 * 17 - 1)
    low = 2.0 ** (i / 2)
    return i, min((tokens - low) / (low * (np.sqrt(2.0) - 1.0)), 4.0)


@compiled
def chunk_attention(t: StepTable, kind: int, prompts: int, size: float, prefix: float) -> float:
    """Seconds of attention of one of ``prompts`` chunks of a step."""
    n = 0
    while n < t.prefill.shape[1] - 1 and (1 << n) < prompts:
        n += 1
    i, x = _half_octave(size)
    if prefix < 1.0:
        j, y = 0, prefix
    else:
        j, y = _half_octave(prefix)
        j += 1
    p = t.prefill[kind, n]
    near = p[i, j] + x * (p[i + 1, j] - p[i, j])
    far = p[i, j + 1] + x * (p[i + 1, j + 1] - p[i, j + 1])
    return (near + y * (far - near)) / (1 << n)


@compiled
def overlapped(one: float, other: float) -> float:
    """Two overlapping times in one, as ``cost.calibration.join`` does for arrays."""
    return np.sqrt(np.sqrt(one**4 + other**4))


@compiled
def mixed_seconds(
    t: StepTable, kind: int, rows: int, sampled: int, decoding: int, context: float, attention: float
) -> float:
    """Seconds of a step with chunks.

    Args:
        rows: tokens in all. sampled: sequences that get a token. decoding: requests that decode, at ``context``.
        attention: seconds of the chunks' own attention.
    """
    last = t.rows.shape[1] - 1
    kernels = t.rows[kind, rows] if rows <= last else t.rows[kind, last] * rows / last
    kernels += attention + t.head[kind, min(sampled, t.head.shape[1] - 1)]
    if decoding > 0:
        kernels += line(t.attend[kind], t.knots, min(decoding, t.attend.shape[1] - 1), context)[0]
    launch = t.kinds[kind].launch
    both = kernels + launch if t.kinds[kind].serial > 0 else overlapped(kernels, launch)
    return both + t.kinds[kind].step + t.kinds[kind].sequence * decoding
