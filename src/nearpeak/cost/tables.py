"""Operators priced from a table, one row each: what ``nearpeak predict operators`` does.

Columns are named as in tables of measured operators: ``gpu``, ``backend`` (the engine), number formats and sizes. Each
operator's *reading* turns columns into ``Work``; the fit of the calibration reads measurements the same way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import power
from nearpeak.cost.attention import (
    attention_decode_work,
    attention_prefill_work,
    linear_attention_work,
    mla_decode_work,
    mla_module_work,
    mla_prefill_work,
)
from nearpeak.cost.calibration import Array, Calibration
from nearpeak.cost.collectives import SHARES, collective_work
from nearpeak.cost.operators import gemm_work, mla_bmm_work, moe_work
from nearpeak.cost.platform import Platform, Work, codes, constants, distinct, platform, real, seconds
from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.formats import ACTIVATION_BYTES, code
from nearpeak.hardware import Link, device, link
from nearpeak.workload import Experts, bundled, read

Column = NDArray[Any]
Table = Mapping[str, Column]

ANSWERS = ("seconds", "ttft", "tpot", "watts")
"""Columns that would give the answer away: never read."""


@dataclass(frozen=True)
class Reading:
    """How an operator's columns are read.

    Attributes:
        sizes: columns of numbers above 0. counts: of numbers that may be 0, with what an absent column means (None:
            it must be there).
        named: columns of names, with what turns a name into a number. kinds: columns of names that choose the work.
        work: the physics, from the platform, the kinds, and all numbers by column.
    """

    sizes: tuple[str, ...]
    work: Callable[[Platform, Mapping[str, str], Mapping[str, Array]], Work]
    counts: Mapping[str, float | None] = field(default_factory=dict)
    named: Mapping[str, Callable[[str], float]] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()


def skew(distribution: str) -> float:
    """The exponent in ``power_law_1.2``; 0 for ``balanced``.

    Raises:
        UsageError: neither of the two.
    """
    if distribution == "balanced":
        return 0.0
    try:
        return float(distribution.removeprefix("power_law_"))
    except ValueError:
        raise UsageError(f"distribution {distribution!r} is neither 'balanced' nor 'power_law_<exponent>'") from None


def _gemm(p: Platform, _: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    return gemm_work(p, c["m"], c["n"], c["k"], codes(c["gemm_dtype"]))


def _prefill(p: Platform, _: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    heads = (c["num_heads"], c["num_key_value_heads"], c["head_dim"])
    formats = (codes(c["kv_cache_dtype"]), codes(c["attn_dtype"]))
    return attention_prefill_work(
        p, c["batch_size"], c["isl"], *heads, c["window_size"], c["head_dim"], c["step"], *formats
    )


def _decode(p: Platform, _: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    heads = (c["num_heads"], c["num_key_value_heads"], c["head_dim"])
    cached = codes(c["kv_cache_dtype"])
    return attention_decode_work(p, c["batch_size"], c["step"] + 1, *heads, c["window_size"], c["head_dim"], cached)


ALWAYS_GATED = ("sglang_fused_moe_triton", "vllm_fused_moe")
"""Kernels that were timed with a gate on every model: their times at small batches are those of three matrices."""


@cache
def ungated() -> frozenset[tuple[int, int, int]]:
    """(width, experts a token, experts) of bundled models whose experts have no gate; operator tables do not say."""
    parts = [block.ffn for name in bundled() for block in read(name).blocks]
    return frozenset((e.inter, e.topk, e.count) for e in parts if isinstance(e, Experts) and not e.gated)


def _moe(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    gated = np.full(c["topk"].shape, True)
    if kinds["kernel_source"] not in ALWAYS_GATED:
        for inter, topk, experts in ungated():
            gated &= ~((c["inter_size"] == inter) & (c["topk"] == topk) & (c["num_experts"] == experts))
    sizes = (c["num_tokens"], c["hidden_size"], c["inter_size"])
    routing = (c["topk"], c["num_experts"], c["moe_tp_size"], c["moe_ep_size"])
    return moe_work(p, *sizes, *routing, codes(c["moe_dtype"]), gated, c["distribution"])


def _mla_prefill(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    kv, heads = codes(c["kv_cache_dtype"]), c["num_heads"]
    if "module" in kinds["table"]:
        return mla_module_work(p, "mla_prefill_module", c["batch_size"], c["isl"], heads, codes(c["gemm_type"]), kv)
    widths = (real(512), real(64), real(128), real(128))
    return mla_prefill_work(p, c["batch_size"], c["isl"], heads, *widths, kv)


def _mla_decode(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    kv, heads, context = codes(c["kv_cache_dtype"]), c["num_heads"], c["step"] + 1
    if "module" in kinds["table"]:
        return mla_module_work(p, "mla_decode_module", c["batch_size"], context, heads, codes(c["gemm_type"]), kv)
    return mla_decode_work(p, c["batch_size"], context, heads, real(512), real(64), kv)


def _mla_bmm(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    step = kinds["op_name"].rpartition("_")[2]
    widths = {"pre": (128.0, 512.0), "post": (512.0, 128.0)}
    if step not in widths:
        raise UnknownName("projection", kinds["op_name"], ("mla_gen_pre", "mla_gen_post"))
    inp, out = (real(w) for w in widths[step])
    return mla_bmm_work(p, f"mla_bmm_{step}", c["num_tokens"], c["num_heads"], inp, out, codes(c["bmm_dtype"]))


def _linear_attention(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    kernel = "convolution" if "conv1d" in kinds["kernel_source"] else "recurrence"
    columns = (
        ("n_groups", "d_state", "nheads", "head_dim")
        if kinds["table"] == "mamba2"
        else ("num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim")
    )
    if missing := [name for name in columns if np.any(np.isnan(c[name]))]:
        raise UsageError(f"{kinds['table']} needs {', '.join(missing)}")
    shape = [c[name] for name in columns]
    return linear_attention_work(
        p, f"{kernel}_{kinds['phase']}", c["batch_size"], c["num_tokens"], shape[0], shape[1], shape[2], shape[3]
    )


def _collective(p: Platform, kinds: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    name = kinds["op_name"].replace("alltoall", "all_to_all")
    if name not in SHARES:
        raise UnknownName("collective", name, SHARES)
    size = c["message_size"] * ACTIVATION_BYTES[codes(c["nccl_dtype"])]
    return collective_work(p, name, size, c["num_gpus"], _link(p))


def _custom(p: Platform, _: Mapping[str, str], c: Mapping[str, Array]) -> Work:
    size = c["message_size"] * ACTIVATION_BYTES[codes(c["allreduce_dtype"])]
    return collective_work(p, "allreduce_custom", size, c["num_gpus"], _link(p))


def _link(p: Platform) -> Link:
    if p.link is None:
        raise UsageError(f"device {p.device.name!r} has no link to its peers in the catalogue")
    return p.link


ATTENTION = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
EXPERTS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
STATES = ("n_groups", "d_state", "nheads", "head_dim", "num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim")

READINGS: dict[str, Reading] = {
    "gemm": Reading(("m", "n", "k"), _gemm, named={"gemm_dtype": code}),
    "attention_prefill": Reading(
        ATTENTION, _prefill, {"window_size": 0.0, "step": 0.0}, {"attn_dtype": code, "kv_cache_dtype": code}
    ),
    "attention_decode": Reading(
        tuple(c for c in ATTENTION if c != "isl"), _decode, {"window_size": 0.0, "step": None}, {"kv_cache_dtype": code}
    ),
    "moe": Reading(EXPERTS, _moe, named={"moe_dtype": code, "distribution": skew}, kinds=("kernel_source",)),
    "mla_prefill": Reading(
        ("batch_size", "isl", "num_heads"),
        _mla_prefill,
        named={"kv_cache_dtype": code, "gemm_type": code},
        kinds=("table",),
    ),
    "mla_decode": Reading(
        ("batch_size", "num_heads"),
        _mla_decode,
        {"step": None},
        {"kv_cache_dtype": code, "gemm_type": code},
        ("table",),
    ),
    "mla_bmm": Reading(("num_tokens", "num_heads"), _mla_bmm, named={"bmm_dtype": code}, kinds=("op_name",)),
    "linear_attention": Reading(
        ("batch_size", "num_tokens"),
        _linear_attention,
        dict.fromkeys(STATES, np.nan),
        kinds=("table", "phase", "kernel_source"),
    ),
    "collective": Reading(("num_gpus", "message_size"), _collective, named={"nccl_dtype": code}, kinds=("op_name",)),
    "allreduce_custom": Reading(("num_gpus", "message_size"), _custom, named={"allreduce_dtype": code}),
}
"""Operators by name. ``attention`` is ``attention_prefill`` and ``attention_decode`` in one table."""

OPTIONAL = {"gemm_type": "bfloat16", "kernel_source": "", "table": ""}
"""Columns of names that may be absent or empty, and what is meant then."""


@dataclass(frozen=True)
class Group:
    """Rows of a table that one call prices: one platform, one kind of work. ``numbers`` by column, ``[rows]``."""

    rows: NDArray[np.intp]
    gpu: str
    engine: str
    kinds: Mapping[str, str]
    numbers: Mapping[str, Array]


def predict_operators(table: Table, op: str, calibration: Calibration | None = None) -> dict[str, Column]:
    """Seconds of every row's operator.

    Args:
        table: columns by name, arrays of equal length. op: a name in ``READINGS``, ``attention``, or ``power`` where a
            column ``table`` names each row's.
        calibration: the one in use if None.

    Returns:
        The columns of the table but for answers, then ``seconds``, ``seconds_low`` and ``seconds_high`` (an interval
        that 80 % of measurements fall into), ``evidence``, and ``error``, which says why a row has no prediction. A
        table with watts or a column ``watts_limit`` (the card's power limit) also gets ``watts``, ``watts_low`` and
        ``watts_high``: mean watts of the device during the operator, as its sensor shows them (see ``power``).

    Raises:
        UsageError: an unknown operator, or columns that are missing.
    """
    kept = {name: column for name, column in table.items() if name not in ANSWERS}
    count = len(next(iter(kept.values()), ()))
    figures = ("seconds", "watts") if {"watts", "watts_limit"} & table.keys() else ("seconds",)
    told = {f"{figure}{end}": np.full(count, np.nan) for figure in figures for end in ("", "_low", "_high")}
    words = {name: np.full(count, "", object) for name in ("evidence", "error")}
    for name, rows in operator_tables(kept, op, count):
        part = {key: column[rows] for key, column in kept.items()}
        for group in groups(part, name, errors := np.full(rows.size, "", object)):
            priced = _price(group, name, rows, told, words, errors, calibration)
            if priced is not None and "watts" in told:
                limit = part["watts_limit"][group.rows] if "watts_limit" in part else None
                _power(group, rows, told, *priced, limit)
        words["error"][rows] = errors
    return {**kept, **told, **words}


def operator_tables(table: Table, op: str, count: int) -> list[tuple[str, NDArray[np.intp]]]:
    """The rows of each operator in a table: of one, of ``attention`` (both kinds) or of ``power`` (any).

    Raises:
        UnknownName: no such operator. UsageError: no column says which operator a row is.
    """
    if op == "power":
        if "table" not in table:
            raise UsageError("a power table needs a column 'table' that names each row's operator, e.g. gemm")
        names = np.array([SWEEPS.get(str(v), str(v)) for v in table["table"]])
        return [part for name in np.unique(names) for part in _only(table, str(name), np.flatnonzero(names == name))]
    if op != "attention":
        if op not in READINGS:
            raise UnknownName("operator", op, (*READINGS, "attention", "power"))
        return [(op, np.arange(count))]
    column = next((table[c] for c in ("table", "op_name") if c in table), None)
    if column is None:
        raise UsageError(
            "an attention table needs a column 'table' or 'op_name' (context_attention or generation_attention); "
            "or say --op attention_prefill or --op attention_decode"
        )
    decoding = np.array(["generation" in str(v) or "decode" in str(v) for v in column], bool)
    return [("attention_prefill", np.flatnonzero(~decoding)), ("attention_decode", np.flatnonzero(decoding))]


SWEEPS = {"context_attention": "attention_prefill", "generation_attention": "attention_decode"}
"""What tables of measurements call operators that have other names here."""


def _only(table: Table, op: str, rows: NDArray[np.intp]) -> list[tuple[str, NDArray[np.intp]]]:
    part = {name: column[rows] for name, column in table.items()}
    return [(name, rows[at]) for name, at in operator_tables(part, op, rows.size)]


def _price(
    group: Group,
    op: str,
    rows: NDArray[np.intp],
    told: Mapping[str, Array],
    words: Mapping[str, Column],
    errors: Column,
    calibration: Calibration | None,
) -> tuple[Platform, Work, Array] | None:
    """Write the predictions of one group where its rows are, or into ``errors`` why there are none.

    Returns:
        The platform, the work and its seconds; None where there are none.
    """
    try:
        p = platform_named(group.gpu, group.engine, calibration)
        with np.errstate(over="ignore", invalid="ignore"):  # sizes beyond all numbers are told of below
            work = READINGS[op].work(p, group.kinds, group.numbers)
            time = seconds(p, work)
    except NearpeakError as error:
        errors[group.rows] = str(error)
        return None
    known = np.isfinite(time)
    errors[group.rows[~known]] = "the sizes are too large: the time is beyond all numbers"
    time = np.where(known, time, np.nan)
    at = rows[group.rows]
    variant = np.broadcast_to(work.variant, at.shape)
    have = constants(p, work.op, distinct(variant))
    row = have.row[variant]
    factors = np.array(have.factors)[row]
    told["seconds"][at] = time
    told["seconds_low"][at], told["seconds_high"][at] = time * factors[:, 0], time * factors[:, 1]
    words["evidence"][at] = np.where(known, np.array(have.evidence, object)[row], "")
    return p, work, time


def _power(
    group: Group,
    rows: NDArray[np.intp],
    told: Mapping[str, Array],
    p: Platform,
    work: Work,
    time: Array,
    limit: Column | None,
) -> None:
    """Write the watts of one group. ``limit``: of the card, ``[rows]``; the TDP where there is none."""
    at = rows[group.rows]
    given = np.full(at.size, p.device.tdp) if limit is None else np.array([number(v) for v in limit], float)
    given = np.where(np.isnan(given), p.device.tdp, given)
    shown, low, high = power.shown(p.device, group.numbers, work, time, given)
    told["watts"][at], told["watts_low"][at], told["watts_high"][at] = shown, low, high


def platform_named(gpu: str, engine: str, calibration: Calibration | None = None) -> Platform:
    """A catalogued device under an engine, joined to its peers by its scale-up link or else by its host's bus.

    Raises:
        UnknownName: no device is called so.
    """
    found = device(gpu)
    joined = found.scale_up or found.host_link
    return platform(found, link(joined) if joined else None, engine, calibration)


def groups(table: Table, op: str, errors: Column) -> list[Group]:
    """Split a table into groups. Rows with a wrong name or number are left out; ``errors`` then says what is wrong.

    Raises:
        UsageError: columns are missing.
    """
    reading = READINGS[op]
    _require(table, reading, op)
    count = errors.size
    numbers: dict[str, Array] = {}
    for name in (*reading.sizes, *reading.counts):
        numbers[name] = _numbers(table, name, reading, errors)
    for name, meaning in reading.named.items():
        numbers[name] = _meanings(_text(table, name, count), name, meaning, errors)
    texts = {name: _text(table, name, count) for name in ("gpu", "backend", "kernel_source", *reading.kinds)}
    if "backend" not in table:  # tables of power name the engine before its kernel: vllm_flashinfer
        texts["backend"] = np.array([kernel.partition("_")[0] for kernel in texts["kernel_source"]])
    key = np.zeros(count, np.intp)
    values = []
    for text in texts.values():
        distinct, inverse = np.unique(text, return_inverse=True)
        key = key * distinct.size + inverse
        values.append(text)
    good = np.flatnonzero(errors == "")
    order = good[np.argsort(key[good], kind="stable")]
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    found = []
    for rows in np.split(order, starts[1:]) if order.size else []:
        kinds = {name: str(text[rows[0]]) for name, text in texts.items()}
        engine = f"{kinds['backend']}/{kinds['kernel_source']}"
        found.append(Group(rows, kinds["gpu"], engine, kinds, {name: c[rows] for name, c in numbers.items()}))
    return found


def _require(table: Table, reading: Reading, op: str) -> None:
    absent_ok = {name for name, default in reading.counts.items() if default is not None} | set(OPTIONAL)
    if "kernel_source" in table:
        absent_ok.add("backend")
    needed = ("gpu", "backend", *reading.named, *reading.sizes, *reading.counts, *reading.kinds)
    missing = [name for name in needed if name not in table and name not in absent_ok]
    if missing:
        raise UsageError(f"a table of {op} needs the columns {', '.join(missing)}; it has {', '.join(table)}")


def _numbers(table: Table, name: str, reading: Reading, errors: Column) -> Array:
    if name not in table:
        return np.full(errors.size, reading.counts[name], float)
    if table[name].dtype.kind in "iuf":
        column = table[name].astype(float)
    else:
        column = np.array([number(v) for v in table[name]], float)
    wrong = ~(column > 0) if name in reading.sizes else ~(column >= 0)
    if (default := reading.counts.get(name)) is not None:
        empty = np.isnan(column)
        column, wrong = np.where(empty, default, column), wrong & ~empty
    for row in np.flatnonzero((wrong | np.isinf(column)) & (errors == "")):
        least = "above 0" if name in reading.sizes else "0 or more"
        errors[row] = f"{name} is {table[name][row]!s}; it must be a number {least}"
    return column


def number(value: Any) -> float:  # noqa: ANN401  (a cell of a column that is not of numbers throughout)
    """The number that a cell holds or spells; nan for a truth value, a date or anything else."""
    if isinstance(value, bool | np.bool_ | np.datetime64 | np.timedelta64):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _text(table: Table, name: str, count: int) -> Column:
    """A column of names as text; empty cells and absent columns as what ``OPTIONAL`` says, otherwise empty."""
    default = OPTIONAL.get(name, "")
    if name not in table:
        return np.full(count, default)
    column = table[name]
    if column.dtype != object:
        return np.full(count, default) if column.dtype.kind == "f" else column.astype(str)
    empty = np.array([not isinstance(v, str) or v == "" for v in column], bool)
    return np.where(empty, default, column).astype(str)


def _meanings(text: Column, name: str, meaning: Callable[[str], float], errors: Column) -> Array:
    distinct, inverse = np.unique(text, return_inverse=True)
    values = np.zeros(distinct.size)
    for i, word in enumerate(distinct):
        try:
            values[i] = meaning(str(word))
        except NearpeakError as error:
            errors[(inverse == i) & (errors == "")] = f"{name}: {error}"
    return values[inverse]
