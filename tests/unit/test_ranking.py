"""Blending: retrieval and rerank scores in one order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import Passage
from deployments.ranking import blend

scores = st.floats(-1, 1, width=32)


def passages_with(*scores: float) -> list[Passage]:
    return [Passage(f"p{index}", "d", "text", score) for index, score in enumerate(scores)]


def test_a_blended_score_is_relative_retrieval_plus_weighted_rerank() -> None:
    blended = blend(passages_with(0.8, 0.4), np.array([0.1, 0.9], np.float32), 0.5)
    assert [passage.id for passage in blended] == ["p0", "p1"]
    assert [passage.score for passage in blended] == pytest.approx([1.0 + 0.05, 0.5 + 0.45])


def test_a_good_rerank_score_lifts_a_passage_over_its_neighbours() -> None:
    blended = blend(passages_with(0.8, 0.7, 0.6), np.array([0.0, 0.0, 1.0], np.float32), 0.6)
    assert [passage.id for passage in blended] == ["p2", "p0", "p1"]


def test_without_weight_the_order_of_retrieval_stays() -> None:
    blended = blend(passages_with(0.9, 0.5, 0.1), np.array([0.0, 0.5, 1.0], np.float32), 0.0)
    assert [passage.id for passage in blended] == ["p0", "p1", "p2"]


def test_ties_are_ordered_by_id() -> None:
    passages = [Passage(name, "d", "text", 0.5) for name in "cab"]
    assert [passage.id for passage in blend(passages, np.zeros(3, np.float32), 0.6)] == ["a", "b", "c"]


def test_nothing_blends_to_nothing() -> None:
    assert blend([], np.zeros(0, np.float32), 0.6) == []


def test_retrieval_scores_of_zero_leave_the_order_to_the_reranker() -> None:
    blended = blend(passages_with(0.0, 0.0), np.array([0.1, 0.2], np.float32), 1.0)
    assert [passage.id for passage in blended] == ["p1", "p0"]


@given(st.lists(st.tuples(scores, scores), max_size=20), st.floats(0, 2))
def test_blending_loses_no_passage_and_orders_by_its_scores(pairs: list[tuple[float, float]], weight: float) -> None:
    passages = passages_with(*(retrieval for retrieval, _ in pairs))
    blended = blend(passages, np.array([rerank for _, rerank in pairs], np.float32), weight)
    assert {passage.id for passage in blended} == {passage.id for passage in passages}
    assert blended == sorted(blended, key=lambda passage: (-passage.score, passage.id))
