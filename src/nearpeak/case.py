"""A person's own case as a Setup: a model and devices by name, and how many of them share a model."""

from typing import Any

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Experts, read


def setup(model: str, gpu: str, devices: int, isl: Any, osl: Any, engine: str = "vllm", **formats: Any) -> Setup:  # noqa: ANN401 (numbers or arrays)
    """One instance of a model by tensor parallelism over ``devices`` of a node; experts are cut likewise.

    Args:
        model: an id, a folder or a config. gpu: a device of the catalogue.
        isl, osl: tokens of a prompt and of an answer. formats: of a Setup, as codes.

    Raises:
        UnknownName: of the model or device.
        UsageError: ``devices`` is below 1 or beyond a node.
    """
    node, architecture = node_of(gpu), read(model)
    if not 1 <= devices <= node.count:
        raise UsageError(f"devices must be 1 to {node.count}, those of {node.title}, not {devices}")
    routed = any(isinstance(block.ffn, Experts) for block in architecture.blocks)
    pool = Pool(tp=devices, moe_tp=devices if routed else 1, batch=np.ones(()))
    return Setup(architecture, node, engine, isl, osl, pool, **formats)
