"""Several texts in one row of token ids: which goes where, and what a model has to be told of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


class RowPacking:
    """Where `lengths` tokens of each text go: text i to row `rows[i]`, from `columns[i]` on, in rows of `width` tokens.

    All arrays are int64; tokens are counted text by text, in the order of the texts.
    """

    def __init__(self, lengths: Array, rows: Array, columns: Array, width: int) -> None:
        self.lengths, self.rows, self.columns, self.width = lengths, rows, columns, width
        self.num_rows = int(rows.max()) + 1
        self._text_of_token = np.repeat(np.arange(len(lengths)), lengths)
        self._place_in_text = np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths)[self._text_of_token]
        # Where each token is in the rows, one behind the other.
        self._places = (rows * width + columns)[self._text_of_token] + self._place_in_text

    def fill(self, texts: Sequence[Sequence[int] | Array]) -> Array:
        """(num_rows, width): each text at its place, zeros elsewhere."""
        return self._spread(np.concatenate([np.asarray(text, np.int64) for text in texts]))

    def positions(self, first: int) -> Array:
        """(num_rows, width): each token's place in its own text, counted from `first`; zero where there is none."""
        return self._spread(self._place_in_text + first)

    def segments(self) -> Array:
        """(num_rows, width): the number of the text that a token belongs to, from 1; 0 where there is none."""
        return self._spread(self._text_of_token + 1)

    def sources(self) -> Array:
        """(texts, longest): where in the flattened rows each token of each text is; 0 behind a text's end."""
        sources = np.zeros((len(self.lengths), int(self.lengths.max())), np.int64)
        sources[self._text_of_token, self._place_in_text] = self._places
        return sources

    def mask(self) -> Array:
        """(texts, longest): 1 for the tokens of each text, 0 behind its end."""
        return (np.arange(self.lengths.max()) < self.lengths[:, None]).astype(np.int64)

    def _spread(self, tokens: Array) -> Array:
        filled = np.zeros(self.num_rows * self.width, np.int64)
        filled[self._places] = tokens
        return filled.reshape(self.num_rows, self.width)


def pack_rows(lengths: Sequence[int], row_tokens: int = ROW_TOKENS) -> RowPacking:
    """First fit decreasing: the longest text first, each into the first row that has room for it.

    Rows have `row_tokens` tokens, or as many as the longest text, or as all texts together if these are fewer.
    """
    width = max(*lengths, min(row_tokens, sum(lengths)))
    room: list[int] = []
    rows, columns = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((row for row, free in enumerate(room) if free >= lengths[text]), len(room))
        if row == len(room):
            room.append(width)
        rows[text], columns[text] = row, width - room[row]
        room[row] -= lengths[text]
    return RowPacking(np.asarray(lengths, np.int64), rows, columns, width)
