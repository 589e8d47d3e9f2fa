"""What the prediction of a whole Setup rests on, and the interval that follows."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost.engine import engine
from nearpeak.cost.mixers import BF16
from nearpeak.cost.platform import Evidence, Platform, pair, platform
from nearpeak.cost.platform import evidence as operator_evidence
from nearpeak.setup import Setup
from nearpeak.workload import Attention, CompressedAttention, Experts, LatentAttention, LinearAttention

Served = Literal["agg", "disagg", "unknown_workers"]
KINDS: tuple[Evidence, ...] = ("measured", "transferred", "datasheet")


def platform_of(setup: Setup) -> Platform:
    """The device of a Setup under its engine, with its calibration."""
    return platform(setup.node.device, setup.node.scale_up, setup.engine)


def evidence(at: Platform, setup: Setup) -> NDArray[np.str_]:
    """The weakest evidence among the operators that make up the Setup's decode steps, for every Setup."""
    kv = np.asarray(setup.kv, np.intp)
    parts = [("gemm", setup.attention), ("gemm", setup.ffn)]
    for block in setup.model.blocks:
        match block.mixer:
            case Attention():
                parts.append(("attention_decode", pair(BF16, kv)))
            case LatentAttention() | CompressedAttention():
                parts.append(("mla_decode", kv))
            case LinearAttention():
                parts.append(("recurrence_generation", BF16))
        if isinstance(block.ffn, Experts):
            parts.append(("moe", setup.experts))
    weakest = np.zeros((), np.intp)
    for op, variants in parts:
        codes = np.asarray(variants, np.intp)
        held, index = np.unique(codes, return_inverse=True)
        rank = np.array([KINDS.index(operator_evidence(at.in_graph(), op, int(v))) for v in held])[index].reshape(
            codes.shape
        )
        weakest = np.maximum(weakest, rank)
    return np.array(KINDS)[weakest]


def intervals(engine_name: str, served: Served, kind: str) -> dict[str, tuple[float, float]]:
    """Factors on each figure between which 80 % of runs served so lay, for this evidence."""
    return engine(engine_name).intervals[served][kind]
