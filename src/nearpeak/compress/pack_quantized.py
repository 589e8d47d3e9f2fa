"""The ``pack-quantized`` format of compressed-tensors: what a linear layer is stored as, and what the config says.

vLLM, SGLang and transformers load it. A layer ``[o, i]`` is three tensors: ``weight_packed``, int32
``[o, ceil(i*b/32)]``; ``weight_scale``, ``[o, i/g]`` in the model's number format; ``weight_shape``, int64, ``(o, i)``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nearpeak.compress.checkpoint import read_checkpoint
from nearpeak.compress.packing import unpack, words
from nearpeak.compress.quantizers import Scheme, dequantize
from nearpeak.compress.safetensors_file import DTYPES, Shape, Tensor, read_tensor
from nearpeak.errors import NearpeakError, UsageError

FORMAT = "pack-quantized"


def stored_as(module: str, weight: Tensor, scheme: Scheme) -> dict[str, tuple[str, Shape]]:
    """Names, number formats and shapes of the tensors that take the place of ``module``'s weight ``[o, i]``."""
    out, inputs = weight.shape
    return {
        f"{module}.weight_packed": ("I32", (out, words(inputs, scheme.bits))),
        f"{module}.weight_scale": (weight.dtype, (out, scheme.groups(inputs))),
        f"{module}.weight_shape": ("I64", (2,)),
    }


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """What ``config.json`` says under ``quantization_config``; loaders refuse any key beyond these."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if scheme.group == -1 else "group",
        "group_size": None if scheme.group == -1 else scheme.group,
        "dynamic": False,
    }
    everything = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "config_groups": {"group_0": {**everything, "format": FORMAT}},
    }


def read_linear(path: Path, tensors: Mapping[str, Tensor], module: str, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[o, i]`` (int8) and scales ``[o, groups]`` of one layer of a written file.

    Raises:
        NearpeakError: the stored shape does not agree with the packed tensor.
    """
    packed, scale, shape = (
        read_tensor(path, tensors[f"{module}.weight_{part}"]) for part in ("packed", "scale", "shape")
    )
    out, inputs = (int(n) for n in shape)
    if packed.shape != (out, words(inputs, bits)) or scale.shape[0] != out or inputs % scale.shape[1]:
        raise NearpeakError(
            f"{path}: {module} has weight_shape {out} x {inputs}, but packed {list(packed.shape)} "
            f"and scales {list(scale.shape)}"
        )
    return unpack(packed, bits, inputs), scale


def dequantized(folder: str | Path) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint that ``apply`` wrote, with every packed layer as the dense weight it stands for.

    The whole model is held in memory. The names are those of the original checkpoint.

    Raises:
        UsageError: the folder holds no checkpoint of one pack-quantized group.
    """
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config.get("quantization_config") or {}
    if config.get("format") != FORMAT or len(config.get("config_groups", {})) != 1:
        raise UsageError(f"{folder} is not a {FORMAT} checkpoint of one group; write one with nearpeak.compress.apply")
    (group,) = config["config_groups"].values()
    bits = group["weights"]["num_bits"]
    state: dict[str, torch.Tensor] = {}
    for shard in checkpoint.shards:
        for name, tensor in shard.tensors.items():
            module, _, parameter = name.rpartition(".")
            if parameter == "weight_packed":
                state[f"{module}.weight"] = dequantize(*read_linear(shard.path, shard.tensors, module, bits))
            elif parameter not in ("weight_scale", "weight_shape"):
                if tensor.dtype not in DTYPES:
                    raise UsageError(f"{shard.path}: {name} is {tensor.dtype}, which is not read here")
                state[name] = read_tensor(shard.path, tensor)
    return state
