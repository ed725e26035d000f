"""Rows of token ids as one array."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deployments.padding import LENGTH_MULTIPLE, Padding


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=77), min_size=1, max_size=9),
    st.sampled_from([1, LENGTH_MULTIPLE]),
)
def test_every_row_keeps_its_ids_and_is_filled_up(rows: list[list[int]], multiple: int) -> None:
    padded = Padding(77, multiple).pad(rows, fill=0)
    assert padded.dtype == np.int64
    assert [row[row > 0].tolist() for row in padded] == rows
    longest = max(map(len, rows))
    assert longest <= padded.shape[1] < longest + multiple


def test_no_row_is_padded_beyond_what_the_model_takes() -> None:
    assert Padding(77).length(73) == 77
    assert Padding(77).pad([[1] * 74], fill=0).shape == (1, 77)
