"""The cache of a running batch: one row of keys and values a request, rows always dense.

A request takes the first free row. When it ends, the last row moves into the one that it leaves, so that the rows in
use are always the first ones and a step reads them as one view, without an index. That is the compacting reorder of
Yang et al. 2023, "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference": at most
one row moves for each request that ends, none where the last row ends.
"""

import torch
from torch import Tensor


class Slots:
    """Keys and values of up to ``rows`` requests of up to ``length`` tokens, ``[rows, kv_heads, length, head_dim]`` a
    layer, taken from memory when the layer first writes.

    Attributes:
        used: rows in use, the first ones. moves: rows moved so far. moved: their tokens.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.empty()

    def empty(self) -> None:
        """Nothing in use, nothing moved; memory stays taken."""
        self.used = self.moves = self.moved = 0

    def take(self) -> int:
        """The row of a new request."""
        self.used += 1
        return self.used - 1

    def write(self, layer: int, row: Tensor, position: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put a layer's new keys and values, ``[tokens, kv_heads, head_dim]``, where ``row`` and ``position``
        ``[tokens]`` say. Returns the layer's whole cache.
        """
        if layer not in self.keys:
            # Zeros: what is masked out is multiplied by zero, which no number of unset memory may spoil.
            for kept, new in ((self.keys, key), (self.values, value)):
                kept[layer] = new.new_zeros(self.rows, new.shape[1], self.length, new.shape[2])
        keys, values = self.keys[layer], self.values[layer]
        keys[row, :, position] = key
        values[row, :, position] = value
        return keys, values

    def leave(self, row: int, tokens: int) -> None:
        """Free a row: the last one in use, of ``tokens`` tokens, moves into it."""
        last = self.used - 1
        if row != last:
            with torch.inference_mode():
                for cache in (*self.keys.values(), *self.values.values()):
                    cache[row, :, :tokens] = cache[last, :, :tokens]
            self.moves += 1
            self.moved += tokens
        self.used = last

    @property
    def memory(self) -> int:
        """Bytes taken."""
        return sum(t.numel() * t.element_size() for t in (*self.keys.values(), *self.values.values()))


def causal(position: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """What tokens at ``position`` ``[tokens]`` add to their scores: 0 up to themselves, then minus infinity,
    ``[tokens, longest]``.
    """
    ahead = torch.arange(longest, device=position.device) > position[:, None]
    return torch.zeros(ahead.shape, dtype=dtype, device=position.device).masked_fill_(ahead, -torch.inf)
