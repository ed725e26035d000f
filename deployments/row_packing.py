"""Several texts in one row of token ids: which goes where, and what a model has to be told of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Short texts fill rows of this many tokens. Attention compares each token with all of its row: in 64 of them that is
# a fortieth of a small model's work.
ROW_TOKENS = 64

# The ids of one text by the names of a model's inputs, (tokens,) each.
Row = Mapping[str, Sequence[int] | NDArray[np.int64]]
Array = NDArray[np.int64]


def ids_of(row: Row, name: str) -> Sequence[int] | Array:
    """A text's ids for one of a model's inputs; one without token types is all of the first type."""
    return row[name] if name in row else np.zeros_like(row["input_ids"])


@dataclass(frozen=True, slots=True)
class RowPacking:
    """Where `lengths` tokens of each text go: text i to `rows[i]`, from `columns[i]` on, in rows of `width` tokens."""

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    num_rows: int
    width: int

    def fill(self, texts: Sequence[Sequence[int] | Array]) -> Array:
        """(num_rows, width): each text at its place, zeros elsewhere."""
        filled = np.zeros((self.num_rows, self.width), np.int64)
        for text, row, column, length in zip(texts, self.rows, self.columns, self.lengths, strict=True):
            filled[row, column : column + length] = text
        return filled

    def positions(self, first: int) -> Array:
        """(num_rows, width): each token's place in its own text, counted from `first`; zero where there is none."""
        count = np.arange(first, first + max(self.lengths))
        return self.fill([count[:length] for length in self.lengths])

    def segments(self) -> Array:
        """(num_rows, width): the number of the text that a token belongs to, from 1; 0 where there is none."""
        return self.fill([np.full(length, number) for number, length in enumerate(self.lengths, start=1)])

    def sources(self) -> Array:
        """(texts, longest): where in the flattened rows each token of each text is; 0 behind a text's end."""
        sources = np.zeros((len(self.lengths), max(self.lengths)), np.int64)
        for text, (row, column, length) in enumerate(zip(self.rows, self.columns, self.lengths, strict=True)):
            start = row * self.width + column
            sources[text, :length] = np.arange(start, start + length)
        return sources

    def mask(self) -> Array:
        """(texts, longest): 1 for the tokens of each text, 0 behind its end."""
        ends = np.asarray(self.lengths)[:, None]
        return (np.arange(max(self.lengths)) < ends).astype(np.int64)


def pack_rows(lengths: Sequence[int], row_tokens: int = ROW_TOKENS) -> RowPacking:
    """First fit decreasing: the longest text first, each into the first row that has room for it.

    Rows have `row_tokens` tokens, or as many as the longest text, or as all texts together if these are fewer.
    """
    width = max(*lengths, min(row_tokens, sum(lengths)))
    room: list[int] = []
    rows, columns = [0] * len(lengths), [0] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((row for row, free in enumerate(room) if free >= lengths[text]), len(room))
        if row == len(room):
            room.append(width)
        rows[text], columns[text] = row, width - room[row]
        room[row] -= lengths[text]
    return RowPacking(tuple(lengths), tuple(rows), tuple(columns), len(room), width)
