"""Int8 sentence vectors: how much they lose, and what scores they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deployments.contracts import Vector
from deployments.evidence import Scored, Sentences, quantise

DIM = 48

# Components of about one size: the worst of a real embedding has components up to ten times the mean.
vectors = npst.arrays(np.float32, (3, DIM), elements=st.floats(-1, 1, width=32)).filter(
    lambda rows: bool((np.abs(rows).max(axis=1) > 1e-3).all())
)


def unit(rows: Vector) -> Vector:
    scaled: Vector = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def sentences_of(rows: Vector) -> Sentences:
    spans = np.array([(10 * n, 10 * n + 9) for n in range(len(rows))], np.int32).reshape(-1, 2)
    return Sentences.of(spans, quantise(rows))


@given(vectors, vectors)
def test_cosines_of_int8_vectors_are_within_the_rounding_of_their_components(rows: Vector, queries: Vector) -> None:
    rows, query = unit(rows), unit(queries)[0]
    scores = sentences_of(rows).scores(query)
    # Rounding moves each component by at most half a step of largest/127, so the vector by √dim times that; the angle
    # to the true direction, and with it any cosine, moves by no more than the chord between the unit vectors.
    steps = np.abs(rows).max(axis=1) / 127
    bound = 2 * np.sqrt(DIM) * 0.5 * steps + 1e-5
    assert (np.abs(scores - rows @ query) <= bound).all()


@given(vectors)
def test_the_largest_component_becomes_127_and_signs_are_kept(rows: Vector) -> None:
    quantised = quantise(rows)
    assert quantised.dtype == np.int8
    assert (np.abs(quantised.astype(int)).max(axis=1) == 127).all()
    assert (np.sign(quantised) * np.sign(rows) >= 0).all()


def test_vectors_of_zeros_and_no_vectors_are_quantised_to_themselves() -> None:
    assert quantise(np.zeros((2, DIM), np.float32)).tolist() == [[0] * DIM] * 2
    assert quantise(np.zeros((0, DIM), np.float32)).shape == (0, DIM)


def test_the_norm_is_that_of_the_int8_vector_so_that_a_sentence_is_its_own_best_match() -> None:
    rows = unit(np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32))
    sentences = sentences_of(rows)
    norms = np.linalg.norm(sentences.vectors.astype(np.float32), axis=1)
    assert sentences.inverse_norms == pytest.approx(1 / norms, rel=1e-6)
    own = unit(sentences.vectors.astype(np.float32))
    for index in range(5):
        assert sentences.scores(own[index])[index] == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_of_zeros_scores_zero() -> None:
    query = unit(np.ones((1, DIM), np.float32))[0]
    assert sentences_of(np.zeros((1, DIM), np.float32)).scores(query).tolist() == [0.0]


def test_the_memory_of_sentences_is_that_of_their_arrays() -> None:
    sentences = sentences_of(np.ones((4, DIM), np.float32))
    assert sentences.num_bytes == 4 * DIM + 4 * 2 * 4 + 4 * 4


def scored(*scores: float) -> Scored:
    return Scored(np.zeros((len(scores), 2), np.int32), np.array(scores, np.float32))


def test_the_best_sentence_speaks_for_a_passage_and_without_one_it_is_zero() -> None:
    assert scored(0.25, 0.75, 0.5).best == 0.75
    assert scored().best == 0.0
