"""Smaller KV caches: what a token leaves behind for the tokens after it, in fewer bytes."""

from dataclasses import replace

import numpy as np

from nearpeak.formats import code
from nearpeak.setup import Setup
from nearpeak.techniques.technique import Quality, Technique, register


def _needs(setup: Setup) -> str | None:
    if setup.model.encoder:
        return "an encoder keeps no cache"
    if np.any(np.asarray(setup.kv) != code("bf16")):
        return "the cache is already quantized"
    if "bf16" not in setup.node.device.rates:
        return f"engines widen an FP8 cache to BF16, which {setup.node.device.title} does not multiply"
    return None


register(
    Technique(
        "fp8-kv",
        "KV cache in FP8",
        "kv",
        "the E4M3 cache of vLLM and TensorRT-LLM; cf. Hooper et al., KVQuant, NeurIPS 2024 (arXiv 2401.18079)",
        _needs,
        lambda setup: replace(setup, kv=code("fp8")),
        Quality(
            0.985, 1.0, "NVIDIA, Optimizing Inference with NVFP4 KV Cache, 2025: FP8 within 1 % of BF16 on five tasks"
        ),
    )
)
