"""Fusing the results of several searches, and blending retrieval with rerank scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import Passage, SearchKind
from deployments.ranking import RANK_CONSTANT, UNSEEN_SHARE, FusionConfig, Hits, blend, fuse

scores = st.floats(-1, 1, width=32)
SUB_QUERY_WEIGHT = FusionConfig().sub_query_weight
# So that expected scores are plain means; what the defaults are is a matter of measuring.
EQUAL = {"vector_weight": 0.5, "text_weight": 0.5}


def hits(kind: SearchKind, query: int = 0, /, **scores: float) -> Hits:
    """What a search found, best first; `a=0.9` is passage `a` with that score."""
    best_first = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return Hits(query, kind, tuple(Passage(name, "d", f"text of {name}", score) for name, score in best_first))


def fused(*found: Hits, phrases: Sequence[str] = (), **config: Any) -> dict[str, float]:
    """Id and score of the fused passages in their order."""
    return {p.id: p.score for p in fuse(found, FusionConfig.model_validate(EQUAL | config), phrases)}


def order(*found: Hits, phrases: Sequence[str] = (), **config: Any) -> str:
    return "".join(fused(*found, phrases=phrases, **config))


names = st.sampled_from("abcdefgh")
found_lists = st.lists(
    st.builds(
        lambda query, kind, scores: hits(kind, query, **scores),
        st.integers(0, 2),
        st.sampled_from(("vector", "text")),
        st.dictionaries(names, st.floats(-1, 30, width=16), max_size=6),
    ),
    max_size=4,
    unique_by=lambda one: (one.query, one.kind),
)
configs = st.builds(
    FusionConfig,
    method=st.sampled_from(("scores", "ranks")),
    vector_weight=st.sampled_from((0.0, 0.3, 1.0)),
    text_weight=st.sampled_from((0.0, 0.7, 1.0)),
    sub_query_weight=st.sampled_from((0.0, 0.5)),
)


@given(found_lists, configs)
def test_every_passage_that_was_found_is_in_the_fused_order_once(found: list[Hits], config: FusionConfig) -> None:
    passages = fuse(found, config)
    assert sorted(p.id for p in passages) == sorted({p.id for one in found for p in one.passages})
    assert passages == sorted(passages, key=lambda passage: (-passage.score, passage.id))


@given(found_lists, configs, st.integers(1, 8), st.sampled_from(((), ("text of a",))))
def test_a_limit_keeps_the_best(found: list[Hits], config: FusionConfig, limit: int, phrases: tuple[str, ...]) -> None:
    assert fuse(found, config, phrases, limit) == fuse(found, config, phrases)[:limit]


@given(found_lists, configs, st.randoms(use_true_random=False))
def test_which_search_answers_first_makes_no_difference(
    found: list[Hits], config: FusionConfig, shuffler: random.Random
) -> None:
    shuffled = shuffler.sample(found, len(found))
    assert [(p.id, p.score) for p in fuse(shuffled, config)] == [(p.id, p.score) for p in fuse(found, config)]


@given(st.dictionaries(names, scores, max_size=6), st.sampled_from(("scores", "ranks")))
def test_the_hits_of_a_single_search_stay_as_they_are(found: dict[str, float], method: str) -> None:
    single = hits("text", **found)
    assert fuse(
        [hits("vector"), single, hits("text", 1)], FusionConfig.model_validate(EQUAL | {"method": method})
    ) == list(single.passages)


@pytest.mark.parametrize("found", [(), (hits("vector"),), (hits("vector"), hits("text"), hits("text", 1))])
@pytest.mark.parametrize("phrases", [(), ("text of",)])
def test_where_nothing_was_found_nothing_is_fused(found: tuple[Hits, ...], phrases: tuple[str, ...]) -> None:
    assert fused(*found, phrases=phrases) == {}


def test_scores_are_divided_by_the_best_of_their_search_and_averaged() -> None:
    result = fused(hits("vector", a=0.8, b=0.4), hits("text", b=20.0, a=5.0))
    assert result == pytest.approx({"b": (0.5 + 1.0) / 2, "a": (1.0 + 0.25) / 2})


def test_the_scale_of_a_search_makes_no_difference() -> None:
    vector = hits("vector", a=0.8, b=0.6, c=0.3)
    small, large = hits("text", c=0.03, b=0.02, d=0.01), hits("text", c=300.0, b=200.0, d=100.0)
    assert fused(vector, large) == pytest.approx(fused(vector, small))


def test_what_a_search_did_not_return_is_worth_a_little_less_there_than_its_last() -> None:
    result = fused(hits("vector", a=1.0, b=0.5), hits("text", c=10.0, a=2.0))
    expected = {
        "a": (1.0 + 0.2) / 2,
        "b": (0.5 + UNSEEN_SHARE * 0.2) / 2,
        "c": (UNSEEN_SHARE * 0.5 + 1.0) / 2,
    }
    assert result == pytest.approx(expected)
    assert list(result) == ["c", "a", "b"]


@pytest.mark.parametrize("last", [0.5, 0.0, -0.5])
def test_what_a_search_did_not_return_is_never_worth_more_than_what_it_did(last: float) -> None:
    text = hits("text", top=2.0, returned=1.0, missing=1.0)
    result = fused(hits("vector", top=1.0, returned=last), text)
    assert result["missing"] <= result["returned"]


def test_the_weights_decide_between_the_kinds_of_search() -> None:
    found = hits("vector", a=0.9, b=0.1), hits("text", b=9.0, a=1.0)
    assert order(*found, vector_weight=0.9, text_weight=0.1) == "ab"
    assert order(*found, vector_weight=0.1, text_weight=0.9) == "ba"
    assert fused(*found, vector_weight=3, text_weight=1) == pytest.approx(
        fused(*found, vector_weight=0.75, text_weight=0.25)
    )


def test_without_weight_a_search_only_adds_passages() -> None:
    result = fused(hits("vector", a=0.9, b=0.3), hits("text", c=9.0, b=8.0), vector_weight=1, text_weight=0)
    assert result == pytest.approx({"a": 1.0, "b": 1 / 3, "c": UNSEEN_SHARE / 3})


def test_the_order_stays_where_only_searches_without_weight_found_something() -> None:
    question, sub_query = hits("text", b=9.0, a=3.0), hits("text", 1, c=4.0, a=1.0)
    weightless = fused(question, sub_query, vector_weight=1, text_weight=0)
    assert weightless == pytest.approx(fused(question, sub_query))
    assert next(iter(weightless)) == "b"
    assert weightless["b"] > weightless["a"]


def test_where_one_kind_found_nothing_the_other_counts_in_full() -> None:
    result = fused(hits("vector"), hits("text", a=8.0, b=4.0), hits("text", 1, a=3.0))
    assert result == pytest.approx({"a": 1.0 + SUB_QUERY_WEIGHT, "b": 0.5})


def test_ranks_are_fused_by_their_reciprocals() -> None:
    k = RANK_CONSTANT
    result = fused(hits("vector", a=0.9, b=0.8, c=0.1), hits("text", b=100.0, d=1.0), method="ranks")
    expected = {
        "b": ((k + 1) / (k + 2) + 1) / 2,
        "a": 1 / 2,
        "d": (k + 1) / (k + 2) / 2,
        "c": (k + 1) / (k + 3) / 2,
    }
    assert result == pytest.approx(expected)
    assert list(result) == ["b", "a", "d", "c"]


@given(found_lists, configs)
def test_ranks_depend_on_the_order_alone(found: list[Hits], config: FusionConfig) -> None:
    config = config.model_copy(update={"method": "ranks"})
    others = [
        Hits(one.query, one.kind, [Passage(p.id, "d", p.text, 1 / n) for n, p in enumerate(one.passages, 1)])
        for one in found
    ]
    if sum(bool(one.passages) for one in found) > 1:
        assert [(p.id, p.score) for p in fuse(others, config)] == [(p.id, p.score) for p in fuse(found, config)]


@pytest.mark.parametrize("method", ["scores", "ranks"])
def test_passages_with_the_same_score_are_ordered_by_id(method: str) -> None:
    assert order(hits("vector", c=1.0, a=0.5), hits("text", a=2.0, c=1.0), method=method) == "ac"
    found = hits("text", x=1.0), hits("text", 1, c=1.0), hits("text", 2, b=1.0)
    assert order(*found, method=method, sub_query_weight=0.05) == "xbc"


def test_the_first_passages_of_a_sub_query_gain_by_their_rank() -> None:
    question = hits("vector", a=1.0, b=0.8, c=0.6, d=0.4)
    result = fused(question, hits("vector", 1, d=0.9, c=0.8, b=0.7), sub_query_weight=0.3)
    assert result == pytest.approx({"a": 1.0, "b": 0.8 + 0.3 / 9, "c": 0.6 + 0.3 / 4, "d": 0.4 + 0.3})
    assert list(result) == ["a", "b", "d", "c"]


def test_of_several_sub_queries_the_one_that_ranks_a_passage_best_counts() -> None:
    question = hits("vector", a=1.0, b=0.5)
    result = fused(question, hits("vector", 1, a=0.9, b=0.8), hits("vector", 2, b=0.2, a=0.1), sub_query_weight=0.4)
    assert result == pytest.approx({"a": 1.4, "b": 0.9})


def test_what_only_a_sub_query_found_is_worth_a_little_less_than_the_last_of_the_question() -> None:
    result = fused(hits("vector", a=1.0, b=0.5), hits("vector", 1, c=0.9, d=0.8), sub_query_weight=0.4)
    unseen = UNSEEN_SHARE * 0.5
    assert result == pytest.approx({"a": 1.0, "c": unseen + 0.4, "b": 0.5, "d": unseen + 0.1})


@pytest.mark.parametrize("last", [0.5, 0.0, -0.5])
def test_without_weight_the_sub_queries_only_add_passages_below_those_of_the_question(last: float) -> None:
    found = hits("vector", a=1.0, z=last), hits("vector", 1, a=0.9, c=0.8)
    assert next(iter(fused(*found, sub_query_weight=0))) == "a"
    assert fused(*found, sub_query_weight=0)["c"] <= last


def test_the_searches_of_a_sub_query_are_joined_before_they_are_ranked() -> None:
    vector, text = hits("vector", 1, c=0.9, b=0.6), hits("text", 1, b=12.0, d=3.0, c=1.0)
    assert order(vector, text) == "bcd"
    result = fused(hits("vector", a=0.7), vector, text, sub_query_weight=0.36)
    by_rank = {"b": 0.36, "c": 0.09, "d": 0.04}
    assert result == pytest.approx({"a": 1.0} | {name: UNSEEN_SHARE + bonus for name, bonus in by_rank.items()})


def test_sub_queries_answer_where_the_question_itself_found_nothing() -> None:
    assert order(hits("vector"), hits("vector", 1, b=0.9, a=0.3), hits("text", 2, c=1.0, a=0.9)) == "bca"


def telling(**texts: str) -> Hits:
    """One search that found these texts with the same score."""
    return Hits(0, "text", tuple(Passage(name, "d", text, 4.0, title=f"Title {name}") for name, text in texts.items()))


def test_a_passage_with_the_phrase_gains_its_weight_and_no_other_does() -> None:
    found = telling(a="Of a planet that is red.", b="Mars is the Red\nPlanet.", c="It is frustrating.")
    assert fused(found, phrases=["red planet"], phrase_weight=0.2) == pytest.approx({"b": 1.2, "a": 1.0, "c": 1.0})
    assert fused(found, phrases=["rust"], phrase_weight=0.2) == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})


def test_only_a_passage_with_every_phrase_gains() -> None:
    found = telling(a="The red planet.", b="The red planet and the blue one.", c="The blue one.")
    assert order(found, phrases=["blue one", "red planet"]) == "bac"


def test_the_title_may_hold_a_phrase() -> None:
    assert order(telling(a="x", b="y"), phrases=["title b"]) == "ba"


def test_a_phrase_lifts_no_passage_without_weight() -> None:
    found = hits("vector", a=0.8, b=0.4), hits("text", b=20.0, a=5.0)
    assert fused(*found, phrases=["text of a"], phrase_weight=0) == pytest.approx(fused(*found))


def test_a_fused_passage_keeps_everything_but_its_score() -> None:
    passage = Passage("a", "d", "text", 0.8, "title", "source", {"year": 1998}, 3, 7, 1, 2)
    (result,) = fuse([Hits(0, "vector", [passage]), Hits(0, "text", [passage])], FusionConfig())
    assert result == Passage("a", "d", "text", 1.0, "title", "source", {"year": 1998}, 3, 7, 1, 2)


def test_scores_of_zero_are_fused() -> None:
    assert fused(hits("vector", a=0.0, b=0.0), hits("text", b=1.0)) == pytest.approx({"b": 0.5, "a": UNSEEN_SHARE / 2})


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


@given(st.lists(st.tuples(scores, scores), max_size=20), st.floats(0, 2), st.integers(0, 25), st.integers(0, 25))
def test_a_limit_keeps_the_best_of_what_is_blended(
    pairs: list[tuple[float, float]], weight: float, num_reranked: int, limit: int
) -> None:
    passages = passages_with(*(retrieval for retrieval, _ in pairs))
    rerank_scores = np.array([rerank for _, rerank in pairs[:num_reranked]], np.float32)
    assert blend(passages, rerank_scores, weight, limit) == blend(passages, rerank_scores, weight)[:limit]


@given(st.lists(st.tuples(scores, scores), max_size=20), st.floats(0, 2))
def test_blending_loses_no_passage_and_orders_by_its_scores(pairs: list[tuple[float, float]], weight: float) -> None:
    passages = passages_with(*(retrieval for retrieval, _ in pairs))
    blended = blend(passages, np.array([rerank for _, rerank in pairs], np.float32), weight)
    assert {passage.id for passage in blended} == {passage.id for passage in passages}
    assert blended == sorted(blended, key=lambda passage: (-passage.score, passage.id))


def test_a_passage_that_a_complete_search_did_not_find_has_nothing_of_it() -> None:
    vector = hits("vector", a=0.60, b=0.55, c=0.50)
    cut_off = hits("text", c=3.0)
    assert order(vector, cut_off) == "acb"
    assert order(vector, replace(cut_off, complete=True)) == "cab"


def test_passages_beyond_those_reranked_follow_behind_them_in_their_order() -> None:
    found = hits("vector", a=1.0, b=0.9, c=0.8, d=0.7).passages
    blended = blend(found, np.array([0.0, 0.1], np.float32), 1.0)
    assert [passage.id for passage in blended] == ["a", "b", "c", "d"]
    low = blend(found, np.array([-0.9, -0.5], np.float32), 1.0)
    assert [passage.id for passage in low] == ["b", "a", "c", "d"]
    for passages in (blended, low):
        scores = [passage.score for passage in passages]
        assert scores == sorted(scores, reverse=True)
        assert scores[2] - scores[3] == pytest.approx(0.1)
