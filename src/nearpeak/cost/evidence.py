"""What the prediction of a whole Setup rests on, and the interval that follows."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
        rank = _of_variants(variants, lambda v, op=op: np.array([KINDS.index(operator_evidence(at.in_graph(), op, v))]))
        weakest = np.maximum(weakest, rank[0])
    return np.array(KINDS)[weakest]


def _parts(setup: Setup, phase: Literal["decode", "prefill"]) -> list[tuple[str, NDArray[np.intp]]]:
    """The operators that calibrations know of in a Setup's steps, each with its variants."""
    attention, ffn, experts, kv = (np.asarray(getattr(setup, n), np.intp) for n in ("attention", "ffn", "experts", "kv"))
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


def step_interval(at: Platform, setup: Setup, step: Step, decoding: bool) -> tuple[Array, Array]:
    """Factors on a step's total between which it lies four times of five.

    Operators of one kind err alike, those of different kinds each on its own: the logarithms of their factors add in
    squares, each weighted by its share of the step. ``other`` (norms, activations, sampling) is taken to err like
    matrices.

    Args:
        step: of this Setup, from ``prefill``, ``decode`` or ``mixed``. decoding: it holds no prompts.
    """
    phase = "decode" if decoding else "prefill"
    found: dict[str, list[tuple[Array, Array]]] = {"matrices": [], "attention": [], "experts": []}
    for op, variants in _parts(setup, phase):
        kind = {"gemm": "matrices", "moe": "experts"}.get(op, "attention")
        found[kind].append(_of_variants(variants, lambda v, op=op: np.log(operator_interval(at, op, v))))
    found["other"] = found["matrices"]
    found["communication"] = [_of_variants(np.asarray(BF16), lambda v: np.log(operator_interval(at, "all_reduce", v)))]
    squares = [np.zeros(()), np.zeros(())]
    for kind, widths in found.items():
        share = getattr(step, kind) / step.total
        for side in (0, 1) if widths else ():
            widest = np.max(np.broadcast_arrays(*(np.abs(width[side]) for width in widths)), axis=0)
            squares[side] = squares[side] + (share * widest) ** 2
    low, high = (np.sqrt(square) for square in squares)
    return np.exp(-low), np.exp(high)


def _of_variants(variants: NDArray[np.intp], look_up: Callable[[int], Array]) -> Array:
    """What is looked up for each code in an array: first axis as found, then the array's own."""
    held, index = np.unique(variants, return_inverse=True)
    return np.moveaxis(np.stack([look_up(int(v)) for v in held])[index].reshape(*variants.shape, -1), -1, 0)


def intervals(engine_name: str, served: Served, kind: str) -> dict[str, tuple[float, float]]:
    """Factors on each figure between which 80 % of runs served so lay, for this evidence."""
    return engine(engine_name).intervals[served][kind]
