"""Number formats: how a tensor's values are stored, and at which of a device's peak rates they are multiplied.

The names are those that serving engines use. A format describes one side of a product: ``int4_wo`` is a weight stored
in 4 bits and multiplied in bf16 ("weight only"), ``fp8`` a weight stored in 8 bits and multiplied with fp8 activations.

Arrays hold formats as their index in ``FORMATS`` (an integer *code*), so that one Setup can hold many of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName


@dataclass(frozen=True)
class Format:
    """A number format.

    Attributes:
        name: canonical name.
        bits: bits per stored value, without scales.
        scale_bits: bits of scales per stored value (a 16-bit scale for each 128 values is 0.125).
        rate: the key of the device's peak rate that products in this format run at.
        activation_bits: bits per activation that enters a product in this format.
        block: values of a row that share a scale, and that no cut may part; 1 where there is none.
        aliases: other spellings, as found in checkpoints and in tables of measurements.
    """

    name: str
    bits: float
    scale_bits: float
    rate: str
    activation_bits: float
    block: int = 1
    aliases: tuple[str, ...] = ()

    @property
    def bytes(self) -> float:
        """Bytes per stored value, scales included."""
        return (self.bits + self.scale_bits) / 8


FORMATS: tuple[Format, ...] = (
    Format("bf16", 16, 0, "bf16", 16, aliases=("bfloat16", "fp16", "float16", "half", "none")),
    Format("fp32", 32, 0, "fp32", 32, aliases=("float32", "float")),
    Format("fp8", 8, 0, "fp8", 8, aliases=("float8", "fp8_e4m3", "float8_e4m3fn", "fp8_static", "w8a8_fp8")),
    Format("fp8_block", 8, 32 / 128**2, "fp8", 8, 128, ("fp8_blockwise",)),  # one fp32 scale a 128 x 128 block
    Format("int8", 8, 0, "int8", 8, aliases=("sq", "w8a8", "int8_w8a8")),  # one scale a channel: below 0.01 bit
    Format("int8_wo", 8, 16 / 128, "bf16", 16, 128, ("w8a16",)),
    Format("int4_wo", 4, 16 / 128, "bf16", 16, 128, ("w4a16", "int4", "awq", "gptq")),
    Format("int4_wo_32", 4, 16 / 32, "bf16", 16, 32),  # a scale each 32 values
    Format("nvfp4", 4, 8 / 16, "fp4", 4, 16, ("fp4", "w4a4_nvfp4")),  # an fp8 scale each 16 values
    Format("mxfp4", 4, 8 / 32, "bf16", 16, 32, ("w4a16_mxfp4",)),  # an 8-bit exponent each 32 values
    Format("mxfp4_mxfp8", 4, 8 / 32, "fp8", 8, 32, ("w4a8_mxfp4_mxfp8",)),
)

_CODES = {spelling: code for code, f in enumerate(FORMATS) for spelling in (f.name, *f.aliases)}

BYTES: NDArray[np.float64] = np.array([f.bytes for f in FORMATS])
"""Bytes per stored value by format code, scales included."""

BLOCKS: NDArray[np.int64] = np.array([f.block for f in FORMATS])
"""Values that share a scale, by format code."""

ACTIVATION_BYTES: NDArray[np.float64] = np.array([f.activation_bits / 8 for f in FORMATS])
"""Bytes per activation by format code."""


def code(name: str) -> int:
    """The code of a format by any of its spellings.

    Raises:
        UnknownName: no format is spelled so.
    """
    try:
        return _CODES[name.lower()]
    except KeyError:
        raise UnknownName("number format", name, [f.name for f in FORMATS]) from None


def named(name: str) -> Format:
    """The format with this name or alias."""
    return FORMATS[code(name)]
