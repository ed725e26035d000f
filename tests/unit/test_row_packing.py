"""Texts in shared rows: each at a place of its own, found again in full, in rows that are nearly full."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deployments.row_packing import pack_rows

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@given(lengths=LENGTHS, row_tokens=st.integers(1, 128))
def test_every_token_of_every_text_has_a_place_of_its_own(lengths: list[int], row_tokens: int) -> None:
    packing = pack_rows(lengths, row_tokens)
    texts = [np.full(length, 100 + number) for number, length in enumerate(lengths)]
    filled = packing.fill(texts)
    assert filled.shape == (packing.num_rows, packing.width)
    assert np.count_nonzero(filled) == sum(lengths)
    sources = packing.sources()
    for number, text in enumerate(texts):
        assert filled.reshape(-1)[sources[number, : len(text)]].tolist() == text.tolist()


@given(lengths=LENGTHS)
def test_segments_and_positions_tell_the_texts_of_a_row_apart(lengths: list[int]) -> None:
    packing = pack_rows(lengths)
    segments, positions = packing.segments(), packing.positions(first=2)
    for number, length in enumerate(lengths, start=1):
        own = segments == number
        assert np.count_nonzero(own.any(axis=1)) == 1
        assert positions[own].tolist() == list(range(2, 2 + length))
    assert not positions[segments == 0].any()


@given(lengths=LENGTHS)
def test_the_mask_has_a_one_for_each_token(lengths: list[int]) -> None:
    mask = pack_rows(lengths).mask()
    assert mask.shape == (len(lengths), max(lengths))
    assert mask.sum(axis=1).tolist() == lengths
    assert (np.diff(mask, axis=1) <= 0).all()


@given(lengths=LENGTHS, row_tokens=st.integers(1, 128))
def test_no_two_rows_would_fit_into_one(lengths: list[int], row_tokens: int) -> None:
    packing = pack_rows(lengths, row_tokens)
    used = np.bincount(packing.rows, weights=lengths)
    assert used.max() <= packing.width
    assert len(used) == 1 or np.sort(used)[:2].sum() > packing.width


def test_rows_are_as_wide_as_the_longest_text_and_no_wider_than_all_together() -> None:
    assert pack_rows([200, 3, 5], row_tokens=64).width == 200
    assert pack_rows([10, 20], row_tokens=64).width == 30
    assert pack_rows([40, 40, 20], row_tokens=64).width == 64
    assert pack_rows([7]).num_rows == 1
