"""Round to nearest: every weight goes to the nearest code of its group's scale. No data, no search.

The baseline of every weight-only method: a hundredth of a second per million parameters on one CPU thread.
"""

import torch

from nearpeak.compress.quantizers import Scheme, quantize, row_blocks, scales


def nearest(weight: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (int8, ``[out, in]``) and scales (``[out, groups]``, the weight's format) of ``weight [out, in]``."""
    out, inputs = weight.shape
    codes = torch.empty(out, inputs, dtype=torch.int8)
    scale = torch.empty(out, scheme.groups(inputs), dtype=weight.dtype)
    for rows in row_blocks(weight.shape):
        scale[rows] = scales(weight[rows], scheme)
        codes[rows] = quantize(weight[rows], scale[rows], scheme.bits)
    return codes, scale
