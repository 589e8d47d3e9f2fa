"""Closed loops: a fixed number of requests in flight, as load generators make them; and tables of such runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.engine import Engine, engine_on
from nearpeak.cost.evidence import Served, evidence, intervals, platform_of
from nearpeak.cost.memory import largest_batch
from nearpeak.cost.serving import Prediction, predict
from nearpeak.cost.tables import number
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.formats import FORMATS, code
from nearpeak.hardware import Node, node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Experts, read

Array = NDArray[np.float64]
Table = Mapping[str, NDArray[Any]]

SHARED = ("model", "gpu", "backend", "backend_version", "mode")
"""Columns of which a Setup has one value: rows that share them are answered together."""
REQUIRED = ("backend", "model", "gpu", "isl", "osl")
HALVINGS = 16
"""Of the logarithm of the batch, between 1 and the concurrency: below 0.02 % at 10,000 requests."""

WORKERS = 6.0
"""Decode instances of a disaggregated run that does not say how many it had. Recipes spread the requests in flight over
several; with 4 to 8 assumed, errors are alike (24 to 26 % of TPOT in the median)."""


def closed_loop(setup: Setup, concurrency: Array, host: Engine | None = None) -> Prediction:
    """The steady state with ``concurrency`` requests in flight over the whole deployment.

    Aggregated, they are the batches of the decode pool. Disaggregated, some wait for or are in prefill: the decode
    batch is found at which, by Little's law, rate times latency is the concurrency. Where prefill is the bottleneck,
    the queue before it takes up the rest. ``host``: the engine's constants, those calibrated if None.
    """
    platform, host = platform_of(setup), host or engine_on(setup.engine, setup.node)
    pool = setup.decode
    if setup.prefill is None:
        admitted, crowd = admit(setup, concurrency, host)
        found = predict(platform, admitted, host, closed=True)
        return queued(found, (1 - host.waves) * (crowd - 1) * found.latency)
    most = np.maximum(1.0, concurrency / (np.asarray(pool.dp, float) * pool.replicas))
    low, high = np.zeros_like(most), np.log(most)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        there = predict(platform, replace(setup, decode=replace(pool, batch=np.exp(middle))), host, closed=True)
        over = (there.load >= 1) | (there.request_rate * there.latency > concurrency)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    found = predict(platform, replace(setup, decode=replace(pool, batch=np.exp(low))), host, closed=True)
    return queued(found, np.maximum(concurrency / found.request_rate - found.latency, 0.0))


def queued(found: Prediction, wait: Array) -> Prediction:
    """The same, with ``wait`` seconds more before the first token."""
    return replace(found, ttft=found.ttft + wait, latency=found.latency + wait)


def admit(setup: Setup, concurrency: Array, host: Engine) -> tuple[Setup, Array]:
    """The Setup with as many requests as run at once, and how many times as many there are in all."""
    pool = setup.decode
    most = np.maximum(1.0, concurrency / (np.asarray(pool.dp, float) * pool.replicas))
    running = np.minimum(most, slots(setup, host))
    return replace(setup, decode=replace(pool, batch=running)), most / running


def slots(setup: Setup, host: Engine) -> Array:
    """Requests that an attention replica runs at once: the rest of a closed loop waits until there is room.

    An engine that ``reserves`` admits what has room for its whole answer; others admit what has room now, and hold half
    of the answers in the mean. A Setup whose weights leave no room for one is priced with one.
    """
    held = setup if host.reserves else replace(setup, osl=np.asarray(setup.osl, float) / 2)
    return np.maximum(1.0, largest_batch(held, setup.decode))


def predict_serving_table(table: Table) -> dict[str, NDArray[Any]]:
    """Predict every row of a table of closed-loop runs.

    Args:
        table: columns by name, each ``[rows]``, as in the serving tables; ``ttft`` and ``tpot`` are not read.

    Returns:
        The table's columns, then ``ttft``, ``tpot``, each with ``_low`` and ``_high`` (seconds, nan where there is no
        answer), ``evidence``, and ``error``: why a row has no answer, else empty.

    Raises:
        UsageError: a required column is missing.
    """
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise UsageError(
            f"the table has no column {', '.join(missing)}; a serving table has {', '.join(REQUIRED)}, ..."
        )
    rows = len(table["model"])
    out: dict[str, NDArray[Any]] = {n: c for n, c in table.items() if n not in ("ttft", "tpot")}
    figures = {f"{f}{s}": np.full(rows, np.nan) for f in ("ttft", "tpot") for s in ("", "_low", "_high")}
    texts = {name: np.full(rows, "", dtype=object) for name in ("evidence", "error")}
    shared = [column_text(table, name, np.arange(rows)) for name in SHARED]
    keys = np.array(["\t".join(row) for row in zip(*shared, strict=True)])
    for key in np.unique(keys):
        at = np.flatnonzero(keys == key)
        first = int(at[0])
        try:
            model, node = read(str(table["model"][first])), node_of(str(table["gpu"][first]))
        except NearpeakError as error:
            texts["error"][at] = str(error)
        else:
            _answer_or_tell(table, at, model, node, figures, texts)
    return out | figures | texts


def _answer_or_tell(
    table: Table,
    at: NDArray[np.intp],
    model: Architecture,
    node: Node,
    figures: dict[str, Array],
    texts: dict[str, NDArray[Any]],
) -> None:
    """Answer rows that share model, device, engine and mode; halved until a wrong row is alone with its error."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # sizes beyond all numbers are told of
            _answer(table, at, model, node, figures, texts)
    except NearpeakError as error:
        if at.size == 1:
            texts["error"][at] = str(error)
            return
        for half in np.array_split(at, 2):
            _answer_or_tell(table, half, model, node, figures, texts)


def _answer(
    table: Table,
    at: NDArray[np.intp],
    model: Architecture,
    node: Node,
    figures: dict[str, Array],
    texts: dict[str, NDArray[Any]],
) -> None:
    """Answer rows that share model, device, engine and mode; one wrong row fails all."""
    lengths = np.array([column_numbers(table, name, at, np.nan) for name in ("isl", "osl")])
    said = column_numbers(table, "concurrency", at, np.nan)
    usable = (lengths > 0).all(axis=0) & ~(said <= 0)
    texts["error"][at[~usable]] = "isl, osl and concurrency must be positive numbers"
    at = at[usable]
    if not len(at):
        return
    backend, version = (column_text(table, name, at[:1])[0] for name in ("backend", "backend_version"))
    setup = setup_of(table, at, model, node, f"{backend}@{version}" if version else backend)
    found = closed_loop_of(table, at, setup)
    rests_on = np.broadcast_to(evidence(platform_of(setup), setup), at.shape)
    served = served_as(table, at, setup.mode)
    for figure in ("ttft", "tpot"):
        spread = np.array(
            [intervals(setup.engine, *how)[figure] for how in zip(served, map(str, rests_on), strict=True)]
        )
        value = np.broadcast_to(getattr(found, figure), at.shape)
        if not np.isfinite(value).all():
            raise UsageError("the sizes are too large: the time is beyond all numbers")
        figures[figure][at] = value
        figures[f"{figure}_low"][at], figures[f"{figure}_high"][at] = value * spread[:, 0], value * spread[:, 1]
    texts["evidence"][at] = rests_on


def closed_loop_of(table: Table, at: NDArray[np.intp], setup: Setup, host: Engine | None = None) -> Prediction:
    """The closed loops of a table's rows ``at``, whose Setup is given.

    Where a disaggregated row does not say how many instances it had, the decode pool has ``WORKERS``, and the prefill
    pool as many as keep up with it.
    """
    said = column_numbers(table, "concurrency", at, np.nan)
    concurrency = np.where(np.isfinite(said), said, setup.decode.in_flight)
    first = setup.prefill
    if first is None:
        return closed_loop(setup, concurrency, host)
    unsaid = {
        pool: np.isnan(column_numbers(table, f"{pool}_num_workers", at, np.nan)) for pool in ("prefill", "decode")
    }
    decode = replace(setup.decode, replicas=np.where(unsaid["decode"], WORKERS, setup.decode.replicas))
    setup = replace(setup, decode=decode)
    if unsaid["prefill"].any():
        enough = np.maximum(1.0, concurrency)
        unhindered = closed_loop(replace(setup, prefill=replace(first, replicas=enough)), concurrency, host)
        replicas = np.maximum(1.0, np.ceil(unhindered.load * enough))
        replicas = np.where(unsaid["prefill"], replicas, first.replicas)
        setup = replace(setup, prefill=replace(first, replicas=replicas))
    return closed_loop(setup, concurrency, host)


def served_as(table: Table, at: NDArray[np.intp], mode: Literal["agg", "disagg"]) -> list[Served]:
    """How each row was served; of disaggregated runs, whether the row tells the number of its workers."""
    if mode == "agg":
        return ["agg"] * len(at)
    workers = sum(column_numbers(table, f"{pool}_num_workers", at, np.nan) for pool in ("prefill", "decode"))
    return ["disagg" if known else "unknown_workers" for known in np.isfinite(workers).tolist()]


def column_numbers(table: Table, name: str, at: NDArray[np.intp], default: float) -> Array:
    """A column's rows as floats; ``default`` where the column or the value is missing.

    Raises:
        UsageError: a cell is neither empty nor a number.
    """
    if name not in table:
        return np.full(len(at), default)
    cells = table[name][at]
    values = np.array([number(v) for v in cells], dtype=float)
    for cell in cells[np.isnan(values)]:
        if cell is not None and cell == cell:  # neither empty nor nan
            raise UsageError(f"{name} is {cell!s}; it must be a number")
    return np.where(np.isfinite(values), values, default)


def setup_of(table: Table, at: NDArray[np.intp], model: Architecture, node: Node, engine: str) -> Setup:
    """The Setup of a table's rows ``at``, which share model, device, engine and mode; arrays ``[len(at)]``."""
    columns = {"attention": "gemm_quant_mode", "ffn": "gemm_quant_mode", "experts": "moe_quant_mode"}
    said = {part: column_text(table, column, at) for part, column in columns.items()}
    precision = column_text(table, "precision", at)
    formats = {
        part: np.array([_format(model, part, *row) for row in zip(quant, precision, strict=True)])
        for part, quant in said.items()
    }
    mode = column_text(table, "mode", at)[0] or "agg"
    if mode not in ("agg", "disagg"):
        raise UsageError(f"unknown mode {mode!r}; a run is agg or disagg")
    split = mode == "disagg"
    decode = _pool(table, at, model, node, "decode_" if split else "")
    prefill = _pool(table, at, model, node, "prefill_") if split else None
    if not split:
        decode = _replicated(table, at, decode)
    kv = np.array(
        [
            _cache(model, node, engine, *row)
            for row in zip(column_text(table, "kvcache_quant_mode", at), precision, strict=True)
        ]
    )
    isl, osl = (column_numbers(table, name, at, np.nan) for name in ("isl", "osl"))
    return Setup(model, node, engine, isl, osl, decode, prefill, kv=kv, **formats)


def _format(model: Architecture, part: str, quant: str, precision: str) -> int:
    """The format of a part: what the row says of it, else its precision, else the checkpoint's own.

    Tables call every 4-bit float format fp4 or nvfp4; a checkpoint that is published in 4 bits runs as it is.
    """
    own = str(getattr(model.checkpoint, part))
    said = quant or precision or own
    if said in ("fp4", "nvfp4") and FORMATS[code(model.checkpoint.experts)].bits == 4:
        return code(own)
    return code(said)


def _cache(model: Architecture, node: Node, engine: str, quant: str, precision: str) -> int:
    """The format of the cache: what the row says of it, else what goes with its precision.

    Serving tables rarely say it. Recipes keep the cache of a model in 8 bits or less in fp8 under TensorRT-LLM, whose
    quantized checkpoints ask for it, and under all engines on devices that multiply 4 bits (Blackwell), whose attention
    kernels are made for it; else it is the checkpoint's own.
    """
    own = model.checkpoint.kv
    narrow = precision in ("fp8", "fp4", "nvfp4", "mxfp4", "int8", "int4")
    if not quant and narrow and own == "bf16" and (engine.startswith("trtllm") or "fp4" in node.device.rates):
        return code("fp8")
    return code(quant or own)


def _replicated(table: Table, at: NDArray[np.intp], pool: Pool) -> Pool:
    """As many instances as it takes to hold all requests, where a row says how many each holds, but not of how many."""
    batch, all_of_them = (column_numbers(table, name, at, np.nan) for name in ("batch_size", "concurrency"))
    said = [np.isfinite(column_numbers(table, name, at, np.nan)) for name in ("attention_dp_size", "num_workers")]
    unsaid = ~(said[0] | said[1]) & np.isfinite(batch) & np.isfinite(all_of_them)
    return replace(pool, replicas=np.where(unsaid, np.maximum(1.0, np.round(all_of_them / batch)), pool.replicas))


def column_text(table: Table, name: str, at: NDArray[np.intp]) -> list[str]:
    """A column's rows as text, empty where the column or the value is missing."""
    column = table.get(name)
    return ["" if column is None or column[i] is None or column[i] != column[i] else str(column[i]) for i in at]


def _pool(table: Table, at: NDArray[np.intp], model: Architecture, node: Node, prefix: str) -> Pool:
    """The pool of the rows. Missing sizes are one; experts without a split are cut like the rest.

    Some harnesses report tensor and expert parallelism of the same devices as two factors, and their product as the
    size of the group ("tp 8, ep 8" as 64 devices). A group larger than a node whose factors are equal is read so.
    """
    columns = {
        "tp": "tp_size", "pp": "pp_size", "dp": "attention_dp_size", "moe_tp": "moe_tp_size", "moe_ep": "moe_ep_size",
        "replicas": "num_workers", "batch": "batch_size",
    }  # fmt: skip
    size = {name: column_numbers(table, f"{prefix}{column}", at, 1.0) for name, column in columns.items()}
    for name in ("tp", "pp", "replicas", "batch"):
        wrong = size[name][size[name] < 1]
        if len(wrong):
            raise UsageError(f"{prefix}{columns[name]} {wrong[0]:g} is no size; give 1 or more")
    if (size["pp"] > model.layers).any():
        raise UsageError(
            f"{prefix}pp_size {size['pp'].max():g} is more stages than {model.name} has layers, {model.layers}"
        )
    size = {name: np.maximum(1.0, values) for name, values in size.items()}  # experts of dense models may be 0
    if any(isinstance(b.ffn, Experts) for b in model.blocks):
        group, factors = size["tp"] * size["dp"], size["moe_tp"] * size["moe_ep"]
        twice = (size["moe_tp"] == size["moe_ep"]) & (factors == group) & (group > node.count)
        size["tp"], size["dp"] = (
            np.where(twice & (size[name] == group), size["moe_ep"], size[name]) for name in ("tp", "dp")
        )
        size["moe_tp"] = np.where(twice, 1.0, np.where(factors == 1, group, size["moe_tp"]))
    return Pool(**size)
