"""Padding: rows of token ids of unlike length as one rectangular array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# torch makes kernels for each shape and keeps them. With lengths rounded up there are an eighth as many shapes: on a
# CPU the memory of 170 batches of mixed texts grew by 114 MiB instead of 359, at the same speed. Tensor cores like it,
# too.
LENGTH_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Padding:
    """How rows are padded: to a multiple of `multiple` tokens, and never beyond a model's `limit`."""

    limit: int
    multiple: int = LENGTH_MULTIPLE

    def length(self, num_tokens: int) -> int:
        """How many tokens a row of `num_tokens` takes in a batch of its own length."""
        return min(-(-num_tokens // self.multiple) * self.multiple, self.limit)

    def pad(self, rows: Sequence[Sequence[int] | NDArray[np.int64]], fill: int) -> NDArray[np.int64]:
        """(len(rows), padded length of the longest) int64: each row, then `fill`. None may be longer than the limit."""
        padded = np.full((len(rows), self.length(max(map(len, rows)))), fill, dtype=np.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return padded
