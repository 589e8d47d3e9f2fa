"""What the prediction of a whole Setup rests on, and the interval that follows."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import power
from nearpeak.cost.engine import engine
from nearpeak.cost.mixers import BF16
from nearpeak.cost.platform import Evidence, Platform, pair, platform
from nearpeak.cost.platform import evidence as operator_evidence
from nearpeak.cost.platform import interval as operator_interval
from nearpeak.cost.step import Step
from nearpeak.setup import Setup
from nearpeak.workload import Attention, CompressedAttention, Experts, LatentAttention, LinearAttention

Array = NDArray[np.float64]
Served = Literal["agg", "disagg", "unknown_workers"]
KINDS: tuple[Evidence, ...] = ("measured", "transferred", "datasheet")


def platform_of(setup: Setup) -> Platform:
    """The device of a Setup under its engine (whose versions run the same kernels), with its calibration."""
    return platform(setup.node.device, setup.node.scale_up, setup.engine.partition("@")[0])


def evidence(at: Platform, setup: Setup) -> NDArray[np.str_]:
    """The weakest evidence among the operators that make up the Setup's decode steps, for every Setup."""
    weakest = np.zeros((), np.intp)
    for op, variants in _parts(setup, "decode"):
        held, index = np.unique(variants, return_inverse=True)
        ranks = np.array([KINDS.index(operator_evidence(at.in_graph(), op, int(v))) for v in held])
        weakest = np.maximum(weakest, ranks[index].reshape(variants.shape))
    return np.array(KINDS)[weakest]


def step_interval(at: Platform, setup: Setup, step: Step, decoding: bool) -> tuple[Array, Array]:
    """Factors on a step's total between which it lies four times of five.

    Operators of one kind err alike, those of different kinds each on its own: the logarithms of their factors add in
    squares, each weighted by its share of the step. ``other`` (norms, activations, sampling) is taken to err like
    matrices.

    Args:
        step: of this Setup, from ``prefill``, ``decode`` or ``mixed``. decoding: it holds no prompts.
    """
    widths: dict[str, Array] = {}
    all_reduce = ("all_reduce", np.asarray(BF16))
    for op, variants in (*_parts(setup, "decode" if decoding else "prefill"), all_reduce):
        held, index = np.unique(variants, return_inverse=True)
        logs = np.abs(np.log([operator_interval(at, op, int(v)) for v in held]))
        found = np.moveaxis(logs[index].reshape(*variants.shape, 2), -1, 0)
        kind = KIND_OF.get(op, "attention")
        widths[kind] = found if kind not in widths else _widest(widths[kind], found)
    widths["other"] = widths["matrices"]
    squares: list[Array] = [np.zeros(()), np.zeros(())]
    for kind, width in widths.items():
        share = getattr(step, kind) / step.total
        squares = [square + (share * side) ** 2 for square, side in zip(squares, width, strict=True)]
    return np.exp(-np.sqrt(squares[0])), np.exp(np.sqrt(squares[1]))


KIND_OF = {"gemm": "matrices", "moe": "experts", "all_reduce": "communication"}
"""Part of a step that an operator belongs to; the others are attention's."""


def _widest(one: Array, other: Array) -> Array:
    """The wider of two intervals ``[2, ...]`` on each side."""
    return np.stack([np.maximum(a, b) for a, b in zip(one, other, strict=True)])


def _parts(setup: Setup, phase: Literal["decode", "prefill"]) -> list[tuple[str, NDArray[np.intp]]]:
    """The operators that calibrations know of in a Setup's steps, each with its variants."""
    attention, ffn, experts, kv = (
        np.asarray(getattr(setup, n), np.intp) for n in ("attention", "ffn", "experts", "kv")
    )
    recurrence = "recurrence_generation" if phase == "decode" else "recurrence_context"
    parts = [("gemm", attention), ("gemm", ffn)]
    for block in setup.model.blocks:
        match block.mixer:
            case Attention():
                parts.append((f"attention_{phase}", pair(BF16, kv)))
            case LatentAttention() | CompressedAttention():
                parts.append((f"mla_{phase}", kv))
            case LinearAttention():
                parts.append((recurrence, np.asarray(BF16)))
        if isinstance(block.ffn, Experts):
            parts.append(("moe", experts))
    return parts


def intervals(engine_name: str, served: Served, kind: str) -> dict[str, tuple[float, float]]:
    """Factors on each figure between which 80 % of runs served so lay, for this evidence.

    Those of power were measured on operators. Energy is power over a rate: their errors are taken to be each its own.
    """
    found = dict(engine(engine_name).intervals[served][kind])
    watts = power.interval(kind)
    low, high = (float(np.hypot(*np.log([found["latency"][side], watts[side]]))) for side in (0, 1))
    return found | {"power": watts, "energy": (float(np.exp(-low)), float(np.exp(high)))}
