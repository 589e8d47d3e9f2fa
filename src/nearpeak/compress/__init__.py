"""Compression of real checkpoints: quantize a model's weights into files that inference engines load.

    from nearpeak.compress import apply, estimate

    print(estimate("Llama-3.1-8B", "Llama-3.1-8B-W4A16", bits=4, group=128))
    report = apply("Llama-3.1-8B", "Llama-3.1-8B-W4A16", bits=4, group=128)

This room needs torch: ``pip install nearpeak[torch]``.
"""

from nearpeak.errors import NearpeakError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise NearpeakError("nearpeak.compress needs torch: pip install nearpeak[torch]") from error

from nearpeak.compress.apply import Kept, Layer, Progress, Report, apply, estimate
from nearpeak.compress.job import Estimate
from nearpeak.compress.pack_quantized import dequantized
from nearpeak.compress.quantizers import Scheme

__all__ = ["Estimate", "Kept", "Layer", "Progress", "Report", "Scheme", "apply", "dequantized", "estimate"]
