"""Weights in fewer bits: number formats that serving engines load, and that the device multiplies natively."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nearpeak.formats import FORMATS, code, named
from nearpeak.setup import Setup
from nearpeak.techniques.technique import Quality, Technique, register


def _sixteen_bit(setup: Setup) -> str | None:
    held = {
        FORMATS[i].name for a in (setup.attention, setup.ffn, setup.experts) for i in np.unique(np.asarray(a, np.intp))
    }
    return None if held <= {"bf16", "fp32"} else f"the checkpoint already holds {', '.join(sorted(held))} weights"


def _native(name: str) -> Callable[[Setup], str | None]:
    rate = named(name).rate

    def needs(setup: Setup) -> str | None:
        device = setup.node.device
        if rate not in device.rates:
            return f"{device.title} does not multiply {rate}; it has {', '.join(sorted(device.rates))}"
        return _sixteen_bit(setup)

    return needs


def _stored_as(name: str) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, attention=code(name), ffn=code(name), experts=code(name))


GIVE_ME_BF16 = "Kurtic et al., 'Give Me BF16 or Give Me Death'?, ACL 2025 (arXiv 2411.02355)"

register(
    Technique(
        "fp8-weights",
        "FP8 weights and activations (W8A8)",
        "weights",
        GIVE_ME_BF16,
        _native("fp8"),
        _stored_as("fp8"),
        Quality(0.99, 1.0, f"lossless at every scale of Llama 3.1: {GIVE_ME_BF16}"),
    )
)
register(
    Technique(
        "int8-w8a8",
        "INT8 weights and activations (W8A8)",
        "weights",
        "Xiao et al., SmoothQuant, ICML 2023 (arXiv 2211.10438)",
        _native("int8"),
        _stored_as("int8"),
        Quality(0.97, 0.99, f"1 to 3 % below the original when well tuned: {GIVE_ME_BF16}"),
    )
)
register(
    Technique(
        "rtn-int8",
        "INT8 weights, 16-bit activations, nearest rounding in groups of 128",
        "weights",
        "Dettmers et al., LLM.int8(), NeurIPS 2022 (arXiv 2208.07339)",
        _sixteen_bit,
        _stored_as("int8_wo"),
        Quality(
            0.99,
            1.0,
            "8-bit nearest rounding of weights alone changes perplexity in the third digit (arXiv 2208.07339)",
        ),
        command="--technique rtn --bits 8 --group 128",
    )
)
register(
    Technique(
        "rtn-int4",
        "INT4 weights, 16-bit activations, nearest rounding in groups of 128",
        "weights",
        "the baseline of Lin et al., AWQ, MLSys 2024 (arXiv 2306.00978)",
        _sixteen_bit,
        _stored_as("int4_wo"),
        Quality(
            0.95,
            0.98,
            "perplexity ratio of Llama-2 7B to 70B under nearest rounding, group 128 (arXiv 2306.00978, table 4)",
        ),
        command="--technique rtn --bits 4 --group 128",
    )
)
register(
    Technique(
        "nvfp4",
        "NVFP4 weights and activations (W4A4)",
        "weights",
        "NVIDIA, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference, 2025",
        _native("nvfp4"),
        _stored_as("nvfp4"),
        Quality(
            0.96,
            0.99,
            "Nemotron 3 Nano: 97.3 to 98.9 % on four tasks (NVIDIA, arXiv 2601.20088); Qwen3-8B: 96.7 % on six",
        ),
    )
)
