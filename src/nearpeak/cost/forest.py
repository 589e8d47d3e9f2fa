"""A fitted sum of regression trees, evaluated for all rows at once."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Forest(msgspec.Struct, frozen=True):
    """Trees over the base-2 logarithms of some columns, and last a place in ``variants``; their leaves add up.

    Attributes:
        columns: names of the features but the last. variants: names of number formats by place.
        feature, number, right: of every node, little-endian int8, float32 and uint16, trees one after the other.
            A node with a feature has its threshold as ``number``: rows at or below it go to the next node, others to
            ``right``, counted from the root. A leaf has feature -1 and its value as ``number``.
        roots: every tree's first node. depth: most steps from a root to a leaf.
    """

    columns: tuple[str, ...]
    variants: tuple[str, ...]
    feature: bytes
    number: bytes
    right: bytes
    roots: tuple[int, ...]
    depth: int

    def values(self, table: Array) -> Array:
        """The sum of all trees, ``[rows]``, of features ``[rows, columns + 1]``."""
        feature = np.frombuffer(self.feature, np.int8).astype(np.intp)
        number, right = np.frombuffer(self.number, "<f4"), np.frombuffer(self.right, "<u2").astype(np.intp)
        single, rows = table.astype(np.float32), np.arange(len(table))
        total = np.zeros(len(table))
        for root in self.roots:
            node = np.full(len(table), root)
            for _ in range(self.depth):
                split = feature[node]
                further = np.where(single[rows, split] <= number[node], node + 1, root + right[node])
                node = np.where(split < 0, node, further)
            total += number[node]
        return total
