"""Rows of token ids as one array."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deployments.padding import LENGTH_MULTIPLE, pad, padded_length


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=77), min_size=1, max_size=9))
def test_every_row_keeps_its_ids_and_is_filled_up(rows: list[list[int]]) -> None:
    padded = pad(rows, fill=0, limit=77)
    assert padded.dtype == np.int64
    assert [row[row > 0].tolist() for row in padded] == rows
    longest = max(map(len, rows))
    assert longest <= padded.shape[1] < longest + LENGTH_MULTIPLE


def test_no_row_is_padded_beyond_what_the_model_takes() -> None:
    assert padded_length(73, limit=77) == 77
    assert pad([[1] * 74], fill=0, limit=77).shape == (1, 77)
