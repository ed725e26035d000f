"""The lane over fakes: order of the stages, what each is given, and the answer's events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from deployments.context import NOT_FOUND, ContextBuilder, ContextConfig
from deployments.contracts import (
    STAGES,
    Delta,
    Document,
    GenerationOptions,
    SearchMode,
    SearchRequest,
    SearchResult,
    Timed,
)
from deployments.errors import (
    IndexMismatch,
    InvalidInput,
    StageUnavailable,
)
from deployments.llm_rewriting import LlmRewritingConfig, Rewritten
from deployments.parsing import ParsingConfig
from deployments.ranking import FusionConfig
from deployments.rewriting import RewritingConfig
from serve_app.answer_cache import AnswerCacheConfig
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, Lane, Question, SourcesChosen
from serve_app.retrieval import Stages
from tests.fakes import (
    FakeEmbedder,
    FakeIndexer,
    FakeRetriever,
    count_tokens,
)
from tests.lane import DOCUMENTS, FakeRewriter, Fakes, answer, calls, query, stocked, text_of, within

# What is late here is so by the loop's clock: a slow machine changes nothing.
pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def fakes() -> Fakes:
    return await stocked()


async def test_every_call_of_an_answer_is_in_its_trace(fakes: Fakes) -> None:
    *_, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(last, Answered)
    assert sorted(calls(last.trace)) == sorted(
        ["parse", "rewrite", "embed", "search vector", "search text", "search fuse", "rerank", "context", "generate"]
    )
    assert {row.stage for row in last.trace.rows} == set(STAGES)
    assert all(row.start_s + row.total_s <= last.trace.elapsed_s() for row in last.trace.rows)


@pytest.mark.parametrize(
    ("mode", "between"),
    [
        ("vector", ["embed", "search vector"]),
        ("text", ["search text"]),
        ("hybrid", ["embed", "search text", "search vector"]),
    ],
)
async def test_a_mode_calls_the_stages_that_it_needs(fakes: Fakes, mode: SearchMode, between: list[str]) -> None:
    found = await fakes.lane().search(query(mode=mode), within(60))
    first, second, *middle, last_but_one, last = calls(found.trace)
    assert (first, second, last_but_one, last) == ("parse", "rewrite", "search fuse", "rerank")
    assert sorted(middle) == between
    assert found.degraded == ()
    assert found.passages[0].document_id == "tides"


async def test_a_search_returns_the_k_best_of_the_candidates_it_reranked(fakes: Fakes) -> None:
    config = LaneConfig(rerank_candidates=3, candidates_per_search=5)
    found = await fakes.lane(config).search(query(k=1), within(60))
    assert [passage.document_id for passage in found.passages] == ["tides"]
    assert [request.k for request in fakes.retriever.requests] == [5, 5]
    assert len(fakes.reranker.requests[0].candidates) == 3


async def test_more_results_than_candidates_may_be_asked_for(fakes: Fakes) -> None:
    found = await fakes.lane(LaneConfig(rerank_candidates=1)).search(query(k=3), within(60))
    assert len(found.passages) == 3


async def test_without_reranking_the_stage_is_skipped_and_no_candidate_too_many_is_searched(fakes: Fakes) -> None:
    found = await fakes.lane().search(query(rerank=False, mode="vector"), within(60))
    assert calls(found.trace) == ["parse", "rewrite", "embed", "search vector", "search fuse"]
    assert fakes.reranker.requests == []
    assert fakes.retriever.requests[0].k == 2
    assert found.degraded == ()


async def test_the_question_is_cleaned_before_any_stage_sees_it(fakes: Fakes) -> None:
    await answer(fakes.lane(), Question(query("  What\x00 pulls\n the tides? ")))
    clean = "What pulls the tides?"
    assert fakes.embedder.requests[0].texts == (clean,)
    assert fakes.reranker.requests[0].query == clean
    assert fakes.generator.requests[0].question == clean
    assert fakes.generator.requests[0].messages[-1]["content"].endswith(clean)


async def test_a_question_without_text_reaches_no_stage(fakes: Fakes) -> None:
    with pytest.raises(InvalidInput):
        await fakes.lane().search(query("  \n "), within(60))
    assert fakes.embedder.requests == []


async def test_a_search_by_vector_names_the_model_that_made_the_vector(fakes: Fakes) -> None:
    stages = Stages(fakes.embedder, fakes.retriever, fakes.reranker, fakes.generator, embedding_model="another/model")
    lane = Lane(LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
    with pytest.raises(IndexMismatch):
        await lane.search(query(), within(60))


async def test_a_collection_without_text_search_is_searched_by_vector_alone(fakes: Fakes) -> None:
    class Old(FakeRetriever):
        async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
            if request.kind == "text":
                raise IndexMismatch("made before there was text search")
            return await super().search(request, budget_s)

    fakes.retriever = Old(fakes.retriever.store)
    assert (await fakes.lane().search(query(), within(60))).degraded == ("search",)
    with pytest.raises(IndexMismatch):
        await fakes.lane().search(query(mode="text"), within(60))


@pytest.mark.parametrize("switched_off", ["by its weight", "by the request", "nothing to rerank"])
async def test_reranking_can_be_switched_off_and_needs_passages(fakes: Fakes, switched_off: str) -> None:
    config = LaneConfig(rerank_weight=0 if switched_off == "by its weight" else 1)
    if switched_off == "nothing to rerank":
        fakes.retriever.store.collections["docs"].clear()
    await fakes.lane(config).search(query(rerank=switched_off != "by the request"), within(60))
    assert fakes.reranker.requests == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (GenerationOptions(), False),
        (GenerationOptions(temperature=0.0), True),
        (GenerationOptions(temperature=0.7, seed=1), True),
        (GenerationOptions(seed=1), True),
    ],
)
async def test_what_a_generator_samples_is_not_kept(fakes: Fakes, options: GenerationOptions, kept: bool) -> None:
    stages = Stages(fakes.embedder, fakes.retriever, fakes.reranker, fakes.generator, samples=True)
    lane = Lane(LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
    for _ in range(2):
        *_, last = await answer(lane, Question(query(), options))
    assert isinstance(last, Answered)
    assert last.cached is kept


async def test_an_answer_is_its_sources_then_its_text_then_its_end(fakes: Fakes) -> None:
    first, *deltas, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(first, SourcesChosen)
    assert [source.number for source in first.sources] == [1, 2]
    assert first.sources[0].passage.document_id == "tides"
    assert deltas
    assert all(isinstance(event, Delta) for event in deltas)
    assert isinstance(last, Answered)
    assert (last.finish_reason, last.generator) == ("stop", "fake-generator")
    assert last.usage.completion_tokens == len(deltas)


async def test_only_what_the_answer_cites_is_among_its_citations(fakes: Fakes) -> None:
    first, *_, last = events = await answer(fakes.lane(), Question(query()))
    assert isinstance(first, SourcesChosen)
    assert isinstance(last, Answered)
    assert text_of(events) == "The moon pulls the tides of the sea. [1]"
    assert last.citations == first.sources[:1]


async def test_an_answer_without_sources_says_so_and_cites_nothing(fakes: Fakes) -> None:
    fakes.retriever.store.collections["docs"].clear()
    first, *_, last = events = await answer(fakes.lane(), Question(query()))
    assert first == SourcesChosen(())
    assert text_of(events) == NOT_FOUND
    assert isinstance(last, Answered)
    assert last.citations == ()


async def test_the_generator_gets_the_sources_the_options_and_what_is_left_of_the_time(fakes: Fakes) -> None:
    options = GenerationOptions(max_tokens=3, seed=7)
    first, *_, last = await answer(fakes.lane(), Question(query(), options, "request-1"), timeout_s=50)
    (request,) = fakes.generator.requests
    assert isinstance(first, SourcesChosen)
    assert isinstance(last, Answered)
    assert (request.sources, request.options, request.request_id) == (first.sources, options, "request-1")
    assert (request.collection, request.question_vector is not None) == ("docs", True)
    assert 0 < request.budget_s <= 50
    assert last.finish_reason == "length"


async def test_the_context_holds_no_more_sources_than_allowed(fakes: Fakes) -> None:
    lane = fakes.lane(context=ContextConfig(max_sources=1))
    first, *_ = await answer(lane, Question(query(k=3)))
    assert isinstance(first, SourcesChosen)
    assert len(first.sources) == 1


async def test_requests_at_the_same_time_do_not_mix(fakes: Fakes) -> None:
    questions = [query(document.text) for document in DOCUMENTS] * 3
    answers = await asyncio.gather(*(answer(fakes.lane(), Question(question)) for question in questions))
    assert [text_of(events) for events in answers] == [f"{document.text} [1]" for document in DOCUMENTS] * 3


async def test_the_order_in_sequence_is_the_order_at_once(fakes: Fakes) -> None:
    at_once = await fakes.lane().search(query(), within(60))
    in_a_row = await fakes.lane(LaneConfig(concurrent=False)).search(query(), within(60))
    assert in_a_row.passages == at_once.passages


COMPARISON = "Which is heavier, iron or honey?"


async def test_sub_queries_are_embedded_in_one_call_and_searched_beside_the_question(fakes: Fakes) -> None:
    await fakes.lane().search(query(COMPARISON), within(60))
    (embedded,) = fakes.embedder.requests
    assert embedded.texts[0] == COMPARISON
    assert len(embedded.texts) == 3
    assert [r.text for r in fakes.retriever.requests if r.kind == "vector"] == list(embedded.texts)
    assert sorted(r.text for r in fakes.retriever.requests if r.kind == "text") == sorted(embedded.texts)


@pytest.mark.parametrize("how", ["by the request", "by the configuration"])
async def test_sub_queries_can_be_switched_off(fakes: Fakes, how: str) -> None:
    by_request = how == "by the request"
    config = LaneConfig(rewriting=RewritingConfig(decompose=by_request))
    await fakes.lane(config).search(query(COMPARISON, rewrite=not by_request), within(60))
    assert [request.texts for request in fakes.embedder.requests] == [(COMPARISON,)]


async def test_what_the_language_model_proposes_is_searched_as_well(fakes: Fakes) -> None:
    fakes.rewriter = FakeRewriter(Rewritten("What does the moon do?", ("honey", "What pulls the tides of the sea?")))
    found = await fakes.lane().search(query(k=3, history=("user: Tell me of the moon.",)), within(60))
    searched = {request.text for request in fakes.retriever.requests}
    assert searched == {"What pulls the tides of the sea?", "What does the moon do?", "honey"}
    assert fakes.rewriter.histories == [("user: Tell me of the moon.",)]
    assert "rewrite language model" in calls(found.trace)


async def test_the_language_model_sees_as_many_turns_as_configured(fakes: Fakes) -> None:
    fakes.rewriter = FakeRewriter(Rewritten(None, ()))
    for turns in (2, 0):
        config = LaneConfig(llm_rewriting=LlmRewritingConfig(enabled=True, history_turns=turns))
        await fakes.lane(config).search(query(history=("one", "two", "three")), within(60))
    assert fakes.rewriter.histories == [("two", "three"), ()]


async def test_filters_in_the_question_and_beside_it_both_hold(fakes: Fakes) -> None:
    await fakes.lane().search(query("title:Sea What pulls the tides?", filter={"document_id": "tides"}), within(9))
    for request in fakes.retriever.requests:
        assert request.filter == {"title": {"contains": "Sea"}, "document_id": "tides"}
        assert request.text == "What pulls the tides?"


async def test_a_field_may_not_be_filtered_twice(fakes: Fakes) -> None:
    with pytest.raises(InvalidInput, match="title"):
        await fakes.lane().search(query("title:Sea What?", filter={"title": "Sea"}), within(60))


async def test_filters_in_the_question_can_be_switched_off(fakes: Fakes) -> None:
    config = LaneConfig(parsing=ParsingConfig(inline_filters=False))
    await fakes.lane(config).search(query("title:Sea What pulls the tides?"), within(60))
    assert fakes.retriever.requests[0].filter == {}


async def test_a_quoted_phrase_lifts_the_passages_that_hold_it(fakes: Fakes) -> None:
    text = 'What of the sea says "honey from nectar"?'
    off = LaneConfig(fusion=FusionConfig(phrase_weight=0), rewriting=RewritingConfig(decompose=False))
    on = off.model_copy(update={"fusion": FusionConfig(phrase_weight=10)})
    without = await fakes.lane(off).search(query(text, k=3, rerank=False), within(60))
    lifted = await fakes.lane(on).search(query(text, k=3, rerank=False), within(60))
    assert lifted.passages[0].document_id == "bees"
    score = {passage.id: passage.score for passage in without.passages}
    assert lifted.passages[0].score == pytest.approx(score[lifted.passages[0].id] + 10)


async def test_an_answer_that_was_given_before_is_given_again_and_says_so(fakes: Fakes) -> None:
    lane = fakes.lane()
    first = await answer(lane, Question(query()))
    again = await answer(lane, Question(query()))
    assert len(fakes.generator.requests) == 1
    assert text_of(again) == text_of(first)
    assert again[0] == first[0]
    assert isinstance(first[-1], Answered)
    assert isinstance(again[-1], Answered)
    assert (first[-1].cached, again[-1].cached) == (False, True)
    assert again[-1].citations == first[-1].citations
    assert calls(again[-1].trace) == ["parse", "rewrite", "search version"]


async def test_a_change_of_the_collection_makes_the_answer_anew(fakes: Fakes) -> None:
    lane = fakes.lane()
    await answer(lane, Question(query()))
    more = (Document("currents", "Wind drives the currents of the sea."),)
    await FakeIndexer(fakes.retriever.store, FakeEmbedder()).index("docs", more, 1.0)
    *_, last = await answer(lane, Question(query()))
    assert isinstance(last, Answered)
    assert not last.cached
    assert len(fakes.generator.requests) == 2


@pytest.mark.parametrize(
    "other",
    [
        Question(query(k=1)),
        Question(query(mode="vector")),
        Question(query(rerank=False)),
        Question(query(rewrite=False)),
        Question(query(filter={"document_id": ["tides", "bees"]})),
        Question(query("what pulls the tides of the sea?")),
        Question(query(), GenerationOptions(max_tokens=3)),
        Question(query(), cache=False),
        Question(query(), GenerationOptions(temperature=0.5)),
    ],
    ids=["k", "mode", "rerank", "rewrite", "filter", "letters", "options", "not wanted", "sampled"],
)
async def test_another_question_is_not_answered_from_the_cache(fakes: Fakes, other: Question) -> None:
    lane = fakes.lane()
    await answer(lane, Question(query()))
    *_, last = await answer(lane, other)
    assert isinstance(last, Answered)
    assert not last.cached


async def test_the_answer_cache_can_be_switched_off(fakes: Fakes) -> None:
    lane = fakes.lane(LaneConfig(answer_cache=AnswerCacheConfig(enabled=False)))
    for _ in range(2):
        *_, last = await answer(lane, Question(query()))
        assert isinstance(last, Answered)
        assert not last.cached
    assert len(fakes.generator.requests) == 2


async def test_an_answer_that_was_given_with_less_is_not_kept(fakes: Fakes) -> None:
    lane = fakes.lane()
    fakes.reranker.faults.error = StageUnavailable("gone")
    await answer(lane, Question(query()))
    fakes.reranker.faults.error = None
    *_, last = await answer(lane, Question(query()))
    assert isinstance(last, Answered)
    assert (last.cached, last.degraded) == (False, ())


async def test_citations_of_sources_that_were_not_given_are_taken_out_and_named(fakes: Fakes) -> None:
    fakes.retriever.store.collections["docs"].clear()
    await FakeIndexer(fakes.retriever.store, FakeEmbedder()).index("docs", (Document("x", "So it is [1, 7]."),), 1.0)
    events = await answer(fakes.lane(), Question(query("So is it?")))
    assert text_of(events) == "So it is [1]. [1]"
    assert isinstance(events[-1], Answered)
    assert events[-1].removed_citations == (7,)
    unchecked = await answer(fakes.lane(context=ContextConfig(check_citations=False)), Question(query("So is it?")))
    assert text_of(unchecked) == "So it is [1, 7]. [1]"


async def test_an_answer_tells_whether_the_documents_hold_one(fakes: Fakes) -> None:
    *_, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(last, Answered)
    assert last.found
    fakes.retriever.store.collections["docs"].clear()
    *_, last = await answer(fakes.lane(), Question(query("Is there anything else?")))
    assert isinstance(last, Answered)
    assert not last.found


async def test_a_prompt_is_made_to_fit_the_model_together_with_its_answer(fakes: Fakes) -> None:
    asked: list[int | None] = []

    def limit(max_tokens: int | None) -> int:
        asked.append(max_tokens)
        return 60

    def count_messages(messages: Sequence[Any]) -> int:
        return sum(count_tokens(message["content"]) for message in messages)

    stages = Stages(fakes.embedder, fakes.retriever, fakes.reranker, fakes.generator)
    builder = ContextBuilder(ContextConfig(), count_tokens, count_messages)
    await answer(Lane(LaneConfig(), builder, stages, limit), Question(query(k=3), GenerationOptions(max_tokens=7)))
    (request,) = fakes.generator.requests
    assert asked == [7]
    assert len(request.sources) < 3
