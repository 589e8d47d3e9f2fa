"""Packing of integer codes into 32-bit words, as compressed-tensors' ``pack-quantized`` stores them, and back.

A code of ``b`` bits is stored as its value plus 2^(b-1). Within a row, code ``k`` takes bits ``k*b`` to ``k*b + b - 1``
of a little-endian stream of words. ``b`` divides 32 here, so no code is split between words; widths of 3, 5, 6 and 7
are packed differently before and after compressed-tensors 0.18 and are not offered.
"""

import torch

from nearpeak.compress.quantizers import BITS
from nearpeak.errors import UsageError


def words(columns: int, bits: int) -> int:
    """Words of 32 bits that a row of ``columns`` codes takes."""
    return -(-columns * bits // 32)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack ``codes [rows, columns]`` (int8, within the range of ``bits``) into int32 ``[rows, words]``.

    Bits behind the last code of a row are zero.

    Raises:
        UsageError: bits not in ``BITS``.
    """
    _check(bits)
    rows, columns = codes.shape
    packed = torch.zeros(rows, words(columns, bits), dtype=torch.int32)
    per_word = 32 // bits
    for k in range(min(per_word, columns)):
        part = codes[:, k::per_word].to(torch.int32).add_(1 << bits - 1)
        packed[:, : part.shape[1]] |= part.bitwise_left_shift_(k * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Codes (int8, ``[rows, columns]``) from ``packed`` (int32, ``[rows, words]``): the inverse of ``pack``.

    Raises:
        UsageError: bits not in ``BITS``, or the words are not those of ``columns`` codes.
    """
    _check(bits)
    if packed.shape[1] != words(columns, bits):
        raise UsageError(
            f"{packed.shape[1]} words cannot hold {columns} codes of {bits} bits, which take {words(columns, bits)}"
        )
    codes = torch.empty(packed.shape[0], columns, dtype=torch.int8)
    per_word = 32 // bits
    for k in range(min(per_word, columns)):
        part = codes[:, k::per_word]
        part.copy_((packed[:, : part.shape[1]] >> k * bits).bitwise_and_((1 << bits) - 1).sub_(1 << bits - 1))
    return codes


def _check(bits: int) -> None:
    if bits not in BITS:
        raise UsageError(f"bits={bits}: codes are packed in {', '.join(map(str, BITS))} bits")
