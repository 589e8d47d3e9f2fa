"""Symmetric integer quantization of weight matrices: scales, codes, and the way back. Pure functions of tensors.

The convention is that of compressed-tensors, so that what is computed here is what an engine computes when it loads
the file. For ``b`` bits, each group of ``group`` neighbouring inputs of one output has the scale

    s = max|w| / ((2^b - 1) / 2),    q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1),    w' = q * s

``s`` is stored in the weight's own number format and ``w / s`` is taken with the stored value, in float32. The
largest weight of a group lands half a step beyond the last positive code; hence |w - w'| <= s/2 as long as s is exact,
and |w - w'| <= s * (1/2 + u * (2^b - 1)/2) when s was rounded by a relative u: up to 2^-8 in
bfloat16 and 2^-11 in float16, more only where s is subnormal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nearpeak.errors import UsageError

BITS = (2, 4, 8)
"""Code widths whose packing every version of compressed-tensors agrees on. SGLang loads 4 and 8 only."""

GROUPS = (-1, 32, 64, 128)
"""Group sizes that vLLM's weight-only kernels take; -1 is one scale for each output channel."""

_BLOCK = 1 << 20  # elements worked on at once, so that float32 copies stay at a few MB


@dataclass(frozen=True)
class Scheme:
    """How a weight is quantized: ``bits`` per code, one scale for each ``group`` inputs (-1: for each output).

    Raises:
        UsageError: bits not in ``BITS`` or group not in ``GROUPS``.
    """

    bits: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"bits={self.bits}: weights are stored in {', '.join(map(str, BITS))} bits")
        if self.group not in GROUPS:
            known = ", ".join(map(str, GROUPS))
            raise UsageError(f"group={self.group}: engines' kernels take groups of {known} (-1: one scale per channel)")

    def divides(self, inputs: int) -> bool:
        """Whether rows of ``inputs`` weights split into whole groups."""
        return self.group == -1 or inputs % self.group == 0

    def groups(self, inputs: int) -> int:
        """Scales of one row of ``inputs`` weights."""
        return 1 if self.group == -1 else inputs // self.group


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code: -2^(b-1) and 2^(b-1) - 1."""
    return -(1 << bits - 1), (1 << bits - 1) - 1


def row_blocks(shape: torch.Size | tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows of a matrix ``shape`` that together cover it, each of about a million elements."""
    rows, columns = shape
    step = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scales(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales of ``weight [out, in]``: ``[out, in / group]``, in the weight's number format.

    A group of zeros gets the format's epsilon, as in compressed-tensors, so that no division by zero follows. NaN and
    infinite weights give NaN and infinite scales.
    """
    out, inputs = weight.shape
    absmax = weight.abs().float().view(out, scheme.groups(inputs), -1).amax(dim=-1)
    scale = (absmax / ((2**scheme.bits - 1) / 2)).to(weight.dtype)
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def quantize(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (int8, ``[out, in]``) nearest to ``weight [out, in]`` for scales ``[out, groups]``; ties go to even."""
    low, high = code_range(bits)
    grouped = weight.float().view(*scale.shape, -1)
    codes = (grouped / scale.float()[..., None]).clamp_(low, high).round_()
    return codes.to(torch.int8).view(weight.shape)


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Weights ``[out, in]`` that ``codes [out, in]`` stand for, computed in the scales' number format as engines do."""
    grouped = codes.to(scale.dtype).view(*scale.shape, -1)
    return (grouped * scale[..., None]).view(codes.shape)


def is_finite(weight: torch.Tensor) -> bool:
    """Whether no element of ``weight [out, in]`` is NaN or infinite."""
    return bool(torch.isfinite(torch.stack(weight.aminmax())).all())  # least and greatest carry NaN along


def relative_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
    """||W - Q|| / ||W|| in the Frobenius norm, for ``weight`` and ``codes`` ``[out, in]``; 0 for a matrix of zeros."""
    lost = total = 0.0
    for rows in row_blocks(weight.shape):
        block = weight[rows].float()
        lost += float((block - dequantize(codes[rows], scale[rows]).float()).square().sum(dtype=torch.float64))
        total += float(block.square().sum(dtype=torch.float64))
    return (lost / total) ** 0.5 if total else 0.0
