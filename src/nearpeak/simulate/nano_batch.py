"""A batch cut into nano-batches, operator by operator, so that unlike operators run at once on one device.

Zhu et al. 2025, "NanoFlow: Towards Optimal Large Language Model Serving Throughput" (OSDI 2025, arXiv 2408.12757). A
layer's operators wait for one another; cut into parts of the batch, products of one part run beside another part's
attention (memory) and all-reduce (network). Each part of an operator waits for the parts that it shares requests with.
A cut costs: matrices are read once a part. ``nano_schedule`` searches orders and shares of units; here operators get
their seconds from ``cost``, and the cuts are chosen: how many parts of each operator, and where they begin.

The most that a device can do is arithmetic alone: ``rate / (2 active parameters)`` tokens/s (equation 5 of the paper).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import platform_of
from nearpeak.cost.mixers import Batch, chunk_kernel
from nearpeak.cost.operators import collective, elementwise, gemm, moe
from nearpeak.cost.step import ACTIVATION, NORM_TRAFFIC
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.simulate.nano_schedule import (
    KINDS,
    Graph,
    Interference,
    Schedule,
    bound,
    neighbours,
    saturating,
    search,
    undisturbed,
)
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive
from nearpeak.workload import Attention, Dense, Experts, ffn_linears, mixer_linears, parameters

Array = NDArray[np.float64]
COMPUTE, MEMORY, NETWORK = range(3)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
WHERE = (0.25, 0.375, 0.5)
"""Parts of the batch at which it may be cut first."""
LAYERS = 4
"""Layers that a trial runs one after another, so that a layer's end overlaps the next one's begin."""


@dataclass(frozen=True)
class Operator:
    """One of a layer: its kind, the operators before it, and its seconds by the part of the batch, ``[parts]``."""

    name: str
    kind: int
    after: tuple[str, ...]
    seconds: Callable[[Array], Array]


def layer(setup: Setup, tokens: float) -> tuple[Operator, ...]:
    """Operators of a layer of the model's most frequent kind, for a batch of ``tokens``.

    As many of them decode as answers have tokens among all; the others are whole prompts. Norms and activations run
    with the products behind them.

    Raises:
        UsageError: the layer has no grouped attention or no feed-forward part.
    """
    model, pool, p = setup.model, setup.decode, platform_of(setup)
    block = max(model.blocks, key=lambda b: b.count)
    mixer, ffn = block.mixer, block.ffn
    if not isinstance(mixer, Attention) or not isinstance(ffn, Dense | Experts):
        raise UsageError(
            f"{model.name}: layers with grouped attention and a feed-forward part are cut so far, no others"
        )
    isl, osl, tp = float(np.asarray(setup.isl)), float(np.asarray(setup.osl)), np.asarray(pool.tp, float)
    decoding = tokens * osl / (isl + osl)
    attention, dense, experts, kv = (
        np.asarray(getattr(setup, name), np.intp) for name in ("attention", "ffn", "experts", "kv")
    )
    width = model.hidden * ACTIVATION
    one = np.ones(())

    def batch(part: Array, decodes: bool) -> Batch:
        rows = part * (decoding if decodes else tokens - decoding)
        context = np.asarray(isl + osl / 2 if decodes else isl)
        sequences = rows if decodes else rows / isl
        return Batch(decodes, sequences, context, rows, tp, one, one, one, attention, dense, experts, kv)

    def products(linears: tuple[Any, ...], fmt: NDArray[np.intp], norm: bool) -> Callable[[Array], Array]:
        def seconds(part: Array) -> Array:
            rows = part * tokens
            total = elementwise(p, NORM_TRAFFIC * rows * width) if norm else np.zeros(part.shape)
            for x in linears:
                out = x.out / tp if x.shard == "column" else float(x.out)
                inp = x.inp / tp if x.shard == "row" else float(x.inp)
                total = total + gemm(p, rows, out, inp / x.groups, fmt)
            return total

        return seconds

    def reduced(part: Array) -> Array:
        return collective(p, "all_reduce", part * tokens * width, tp)

    inner = mixer_linears(mixer, model.hidden)
    into, out = (tuple(x for x in inner if (x.shard == "row") == behind) for behind in (False, True))
    found = [
        Operator("qkv", COMPUTE, (), products(into, attention, True)),
        Operator("decode attention", MEMORY, ("qkv",), lambda part: chunk_kernel(mixer, p, batch(part, True))),
        Operator("prefill attention", COMPUTE, ("qkv",), lambda part: chunk_kernel(mixer, p, batch(part, False))),
        Operator("out", COMPUTE, ("decode attention", "prefill attention"), products(out, attention, False)),
    ]
    if float(tp) > 1:
        found.append(Operator("reduce attention", NETWORK, ("out",), reduced))
    shared = ffn_linears(ffn, model.hidden)
    up, down = (tuple(x for x in shared if (x.shard == "row") == behind) for behind in (False, True))
    if isinstance(ffn, Experts):
        always, own = products(shared, dense, True), ffn

        def routed(part: Array) -> Array:
            cut, dealt = np.asarray(pool.moe_tp, float), np.asarray(pool.moe_ep, float)
            sizes = (own.hidden or model.hidden, own.inter, own.topk, own.count, cut, dealt)
            return always(part) + moe(p, part * tokens, *sizes, experts, gated=own.gated)

        found.append(Operator("experts", COMPUTE, (found[-1].name,), routed))
    else:
        found.append(Operator("up", COMPUTE, (found[-1].name,), products(up, dense, True)))
        inter, wide, multiply = ffn.inter / tp, 3 if ffn.gated else 2, products(down, dense, False)

        def activated(part: Array) -> Array:
            return multiply(part) + elementwise(p, part * tokens * inter * wide * ACTIVATION)

        found.append(Operator("down", COMPUTE, ("up",), activated))
    if float(tp) > 1:
        found.append(Operator("reduce ffn", NETWORK, (found[-1].name,), reduced))
    return tuple(found)


def cuts(parts: int, where: float) -> Array:
    """Where parts begin and end: the whole, its two parts at ``where``, or each of those halved."""
    edges = {1: (0.0, 1.0), 2: (0.0, where, 1.0), 4: (0.0, where / 2, where, (1 + where) / 2, 1.0)}
    return np.array(edges[parts])


def cut(operators: tuple[Operator, ...], parts: tuple[int, ...], where: float) -> Graph:
    """A layer's graph with each operator in so many parts; parts wait for those that they share requests with."""
    names, kind, work, low, high, of = [], [], [], [], [], []
    for i, (op, n) in enumerate(zip(operators, parts, strict=True)):
        edges = cuts(n, where)
        names += [f"{op.name} {j + 1}/{n}" for j in range(n)]
        kind += [op.kind] * n
        work.append(np.broadcast_to(op.seconds(np.diff(edges)), (n,)))
        low.append(edges[:-1])
        high.append(edges[1:])
        of += [i] * n
    begin, stop, own = np.concatenate(low), np.concatenate(high), np.array(of)
    share = (begin[:, None] < stop[None] - 1e-12) & (begin[None] < stop[:, None] - 1e-12)
    index = {op.name: i for i, op in enumerate(operators)}
    waits = np.zeros((len(operators), len(operators)), np.bool_)
    for i, op in enumerate(operators):
        waits[i, [index[name] for name in op.after]] = True
    carried = share & (own[:, None] == 0) & (own[None] == len(operators) - 1)
    return Graph(tuple(names), np.array(kind), np.concatenate(work), share & waits[own[:, None], own[None]], carried)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The best schedule that was found for a layer.

    Attributes:
        schedule: of its parts. parts: of each operator. where: the batch is cut first.
        serial: seconds of a layer whose operators run one after another, whole.
        least: seconds that no schedule of these parts is below.
    """

    schedule: Schedule
    operators: tuple[Operator, ...]
    parts: tuple[int, ...]
    where: float
    serial: float
    least: float

    @property
    def gain(self) -> float:
        """Serial over overlapped seconds."""
        return self.serial / self.schedule.seconds


def pipeline(setup: Setup, tokens: float, table: Interference, keep: int = 2, seed: int = 0) -> Pipeline:
    """Search cuts, orders and shares for a layer of a batch of ``tokens``.

    Stage 1, as if operators did not disturb each other: for each first cut every operator is tried in one, two and four
    parts, as long as that gains. Stage 2: the best structures, and the uncut one, get shares with interference.

    Args:
        keep: structures of stage 1 that get to stage 2.

    Raises:
        UsageError: ``tokens`` is not above 0, or as ``layer``.
    """
    require_positive(tokens=tokens)
    operators = layer(setup, tokens)

    def value(parts: tuple[int, ...], where: float) -> float:
        graph = cut(operators, parts, where)
        tried = neighbours(graph, np.random.default_rng(seed), restarts=2, steps=4 * graph.work.size, layers=LAYERS)
        return float(undisturbed(graph, tried, LAYERS).min())

    found: dict[tuple[tuple[int, ...], float], float] = {}
    for where in WHERE:
        now = (2,) * len(operators)
        best = value(now, where)
        for i in range(len(operators)):
            for n in (1, 4):
                other = (*now[:i], n, *now[i + 1 :])
                if (took := value(other, where)) < best * (1 - 1e-3):
                    now, best = other, took
        found[now, where] = best
    chosen = sorted(found, key=lambda key: found[key])[:keep]
    whole = (1,) * len(operators)
    serial = float(cut(operators, whole, 0.5).work.sum())
    pipelines = []
    for parts, where in [(whole, 0.5), *chosen]:
        graph = cut(operators, parts, where)
        schedule = search(graph, table, LAYERS, keep=2, most=200, kicks=1, seed=seed)
        pipelines.append(Pipeline(schedule, operators, parts, where, serial, bound(graph, table)))
    return min(pipelines, key=lambda p: p.schedule.seconds)


def optimal_rate(setup: Setup) -> float:
    """Tokens/s that the arithmetic of a Setup's devices allows: ``rate / (2 active parameters)`` (equation 5)."""
    rate = float(platform_of(setup).rate(np.asarray(setup.ffn, np.intp))) * float(setup.decode.devices)
    return rate / (2 * parameters(setup.model).active)


def read_interference(path: str) -> Interference:
    """A table from JSON: ``shares`` ``[s]``, ``speed`` ``[3 kinds, s, 8 sets of others]``; or measured: ``here``.

    Raises:
        UsageError: there is no such file, or it holds no such table.
    """
    if path == "here":
        from nearpeak.simulate.interference import measure

        return measure()
    try:
        stored = json.loads(Path(path).read_text())
        return Interference(np.array(stored["shares"], float), np.array(stored["speed"], float))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path!r} holds no interference table (shares, speed): {error}") from None


def _explain(
    model: str, gpu: str, devices: int, isl: float, osl: float, tokens: float, interference: str | None, seed: int,
    engine: str,
) -> Explanation:  # fmt: skip
    from nearpeak.case import setup

    require_positive(isl=isl, osl=osl, tokens=tokens)
    own = setup(model, gpu, devices, isl, osl, engine)
    table = saturating(np.array(SHARES)) if interference is None else read_interference(interference)
    found = pipeline(own, tokens, table, seed=seed)
    s, graph = found.schedule, found.schedule.graph
    at = LAYERS - 2  # a layer in the middle of the trial
    first = np.argsort(s.start[at], kind="stable")
    zero = float(s.start[at].min())
    layers = own.model.layers
    optimal = optimal_rate(own)
    serial, overlapped = tokens / (layers * found.serial), tokens / (layers * s.seconds)
    busy = np.bincount(graph.kind, graph.work, 3) / s.seconds
    return Explanation(
        {
            "gain_ratio": found.gain,
            "serial_layer_time": found.serial,
            "overlapped_layer_time": s.seconds,
            "least_layer_time": max(found.least, 0.0),
            "serial_tokens_per_second": serial,
            "overlapped_tokens_per_second": overlapped,
            "optimal_tokens_per_second": optimal,
            "serial_of_optimal_share": serial / optimal,
            "overlapped_of_optimal_share": overlapped / optimal,
            **{f"{name}_busy_share": float(x) for name, x in zip(KINDS, busy, strict=True)},
        },
        (
            Table.of(
                "A layer's schedule",
                operator=np.array(graph.names)[first],
                kind=np.array(KINDS)[graph.kind[first]],
                units_share=s.shares[first],
                start_time=s.start[at][first] - zero,
                end_time=s.end[at][first] - zero,
                alone_time=graph.work[first],
            ),
        ),
        (
            f"Overlapped, a layer takes 1/{found.gain:.3g} of its operators one after another; no schedule of these "
            f"parts is faster than 1/{found.serial / found.least:.3g}.",
            f"Layers alone, without the host: {100 * overlapped / optimal:.3g} % of what arithmetic allows, against "
            f"{100 * serial / optimal:.3g} %.",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "nano-batch",
    "What does overlapping unlike operators of parts of one batch gain, and in which order and on which units?",
    "Zhu et al., NanoFlow: Towards Optimal Large Language Model Serving Throughput, OSDI 2025 (arXiv 2408.12757)",
    (
        MODEL,
        GPU,
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Tokens of a prompt.", 512.0),
        Option("osl", float, "Tokens of an answer.", 512.0),
        Option("tokens", float, "Tokens of a step's batch, of prompts and of decoding requests.", 2048.0),
        Option("interference", str, "Table of speeds (JSON), or here: measured on two cores. Else by units.", None),
        Option("seed", int, "Of the search.", 0),
        Option("engine", str, "Serving engine whose kernels run.", "vllm"),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-70B --gpu a100_sxm_80gb --devices 8",
)
