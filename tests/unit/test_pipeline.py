"""The lane over fakes: order of the stages, deadlines, what is left out when a stage fails, and the answer's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from deployments.context import NOT_FOUND, ContextBuilder, ContextConfig
from deployments.contracts import (
    STAGES,
    Delta,
    Document,
    Embeddings,
    EmbedRequest,
    GenerationOptions,
    SearchMode,
    SearchRequest,
    SearchResult,
    StageTiming,
    Timed,
)
from deployments.errors import (
    DeadlineExceeded,
    EngineFailed,
    IndexMismatch,
    InvalidInput,
    NotFound,
    Overloaded,
    StageError,
    StageUnavailable,
)
from deployments.hop import serve_each
from deployments.llm_rewriting import LlmRewritingConfig, Rewritten
from deployments.parsing import ParsingConfig
from deployments.ranking import FusionConfig
from deployments.remote import RemoteEmbedder
from deployments.rewriting import RewritingConfig
from serve_app.answer_cache import AnswerCacheConfig
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, AnswerEvent, Lane, Question, Restarted, SourcesChosen
from serve_app.retrieval import Query, Stages
from serve_app.trace import Deadline, Trace
from tests.fakes import (
    FakeEmbedder,
    FakeGenerator,
    FakeIndexer,
    FakeReranker,
    FakeRetriever,
    FakeStore,
    Faults,
    count_tokens,
)
from tests.handles import LocalHandle

DOCUMENTS = (
    Document("tides", "The moon pulls the tides of the sea."),
    Document("bees", "Bees make honey from nectar."),
    Document("iron", "Iron rusts in moist air."),
)


@dataclass
class FakeRewriter:
    """A language model that proposes what it was told to."""

    rewritten: Rewritten
    faults: Faults = field(default_factory=Faults)
    histories: list[Sequence[str]] = field(default_factory=list)

    async def rewrite(
        self, question: str, history: Sequence[str], budget_s: float, request_id: str = ""
    ) -> Timed[Rewritten]:
        self.histories.append(history)
        await self.faults.strike(budget_s)
        return Timed(self.rewritten, StageTiming())


@dataclass
class Fakes:
    """A lane over fakes, and the fakes."""

    embedder: FakeEmbedder
    retriever: FakeRetriever
    reranker: FakeReranker
    generator: FakeGenerator
    fallback: FakeGenerator | None = None
    rewriter: FakeRewriter | None = None

    def lane(self, config: LaneConfig | None = None, context: ContextConfig | None = None) -> Lane:
        stages = Stages(self.embedder, self.retriever, self.reranker, self.generator, self.fallback, self.rewriter)
        return Lane(config or LaneConfig(), ContextBuilder(context or ContextConfig(), count_tokens), stages)


@pytest.fixture
async def fakes() -> Fakes:
    store, embedder = FakeStore(), FakeEmbedder()
    await FakeIndexer(store, embedder).index("docs", DOCUMENTS, 1.0)
    embedder.requests.clear()
    return Fakes(embedder, FakeRetriever(store), FakeReranker(), FakeGenerator())


def query(text: str = "What pulls the tides of the sea?", k: int = 2, **options: Any) -> Query:
    return Query(text, "docs", k, **options)


async def answer(lane: Lane, question: Question, timeout_s: float = 60) -> list[AnswerEvent]:
    return [event async for event in lane.answer(question, Deadline.after(timeout_s))]


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def calls(trace: Trace) -> list[str]:
    """The calls of the stages in the order in which they ended, each with its branch."""
    return [f"{row.stage} {row.branch}".strip() for row in trace.rows]


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
    found = await fakes.lane().search(query(mode=mode), Deadline.after(60))
    first, second, *middle, last_but_one, last = calls(found.trace)
    assert (first, second, last_but_one, last) == ("parse", "rewrite", "search fuse", "rerank")
    assert sorted(middle) == between
    assert found.degraded == ()
    assert found.passages[0].document_id == "tides"


async def test_a_search_returns_the_k_best_of_the_candidates_it_reranked(fakes: Fakes) -> None:
    config = LaneConfig(rerank_candidates=3, candidates_per_search=5)
    found = await fakes.lane(config).search(query(k=1), Deadline.after(60))
    assert [passage.document_id for passage in found.passages] == ["tides"]
    assert [request.k for request in fakes.retriever.requests] == [5, 5]
    assert len(fakes.reranker.requests[0].candidates) == 3


async def test_more_results_than_candidates_may_be_asked_for(fakes: Fakes) -> None:
    found = await fakes.lane(LaneConfig(rerank_candidates=1)).search(query(k=3), Deadline.after(60))
    assert len(found.passages) == 3


async def test_without_reranking_the_stage_is_skipped_and_no_candidate_too_many_is_searched(fakes: Fakes) -> None:
    found = await fakes.lane().search(query(rerank=False, mode="vector"), Deadline.after(60))
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
        await fakes.lane().search(query("  \n "), Deadline.after(60))
    assert fakes.embedder.requests == []


@pytest.mark.parametrize("error", [EngineFailed("broken"), StageUnavailable("gone"), Overloaded("full"), NotFound("x")])
async def test_a_reranker_that_fails_is_left_out_and_named(fakes: Fakes, error: StageError) -> None:
    unranked = await fakes.lane().search(query(rerank=False), Deadline.after(60))
    fakes.reranker.faults.error = error
    found = await fakes.lane().search(query(), Deadline.after(60))
    assert found.degraded == ("rerank",)
    assert found.passages == unranked.passages
    *_, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(last, Answered)
    assert last.degraded == ("rerank",)


async def test_what_the_client_must_know_is_not_hidden_as_degraded(fakes: Fakes) -> None:
    fakes.reranker.faults.error = InvalidInput("too long")
    with pytest.raises(InvalidInput):
        await fakes.lane().search(query(), Deadline.after(60))


async def test_a_reranker_that_is_too_slow_is_left_out_while_there_is_time_to_answer(fakes: Fakes) -> None:
    fakes.reranker.faults = Faults(delay_s=30)
    found = await fakes.lane(LaneConfig(rerank_timeout_s=0.01)).search(query(), Deadline.after(60))
    assert found.degraded == ("rerank",)
    assert len(found.passages) == 2


async def test_without_any_search_there_is_no_answer(fakes: Fakes) -> None:
    fakes.retriever.faults.error = StageUnavailable("gone")
    with pytest.raises(StageUnavailable, match="gone"):
        await fakes.lane().search(query(), Deadline.after(60))


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
async def test_without_embedding_the_text_search_answers_and_the_stage_is_named(fakes: Fakes, mode: SearchMode) -> None:
    by_text = await fakes.lane().search(query(mode="text"), Deadline.after(60))
    fakes.embedder.faults.error = StageUnavailable("gone")
    found = await fakes.lane().search(query(mode=mode), Deadline.after(60))
    assert found.degraded == ("embed",)
    assert [passage.id for passage in found.passages] == [passage.id for passage in by_text.passages]
    *_, last = await answer(fakes.lane(), Question(query(mode=mode)))
    assert isinstance(last, Answered)
    assert last.degraded == ("embed",)


async def test_embedding_that_is_too_slow_is_left_out_while_there_is_time_to_answer(fakes: Fakes) -> None:
    fakes.embedder.faults = Faults(delay_s=30)
    found = await fakes.lane(LaneConfig(embed_timeout_s=0.01)).search(query(), Deadline.after(60))
    assert found.degraded == ("embed",)


@pytest.mark.parametrize("broken", ["vector", "text"])
async def test_one_kind_of_search_answers_for_the_other_and_the_stage_is_named(fakes: Fakes, broken: str) -> None:
    class HalfBroken(FakeRetriever):
        async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
            if request.kind == broken:
                raise EngineFailed("the index is broken")
            return await super().search(request, budget_s)

    fakes.retriever = HalfBroken(fakes.retriever.store)
    found = await fakes.lane().search(query(), Deadline.after(60))
    assert found.degraded == ("search",)
    assert found.passages[0].document_id == "tides"


@pytest.mark.parametrize("error", [InvalidInput("bad filter"), NotFound("no such collection"), IndexMismatch("other")])
async def test_what_only_the_client_can_mend_fails_the_search(fakes: Fakes, error: StageError) -> None:
    fakes.retriever.faults.error = error
    with pytest.raises(type(error)):
        await fakes.lane().search(query(), Deadline.after(60))


@pytest.mark.parametrize("stage", ["retriever", "generator"])
async def test_a_stage_that_can_not_be_done_without_exceeds_the_deadline(fakes: Fakes, stage: str) -> None:
    getattr(fakes, stage).faults = Faults(delay_s=30)
    with pytest.raises(DeadlineExceeded):
        await answer(fakes.lane(), Question(query()), timeout_s=0.1)


@pytest.mark.parametrize(("stage", "name"), [("embedder", "embed"), ("reranker", "rerank")])
async def test_a_stage_that_never_answers_leaves_the_others_time_to(fakes: Fakes, stage: str, name: str) -> None:
    getattr(fakes, stage).faults = Faults(delay_s=3600)
    *_, last = await answer(fakes.lane(), Question(query()), timeout_s=0.5)
    assert isinstance(last, Answered)
    assert last.degraded == (name,)
    assert last.citations


async def test_one_kind_of_search_that_never_answers_leaves_the_other_time_to(fakes: Fakes) -> None:
    class HalfStuck(FakeRetriever):
        async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
            if request.kind == "text":
                await asyncio.sleep(budget_s)
                raise DeadlineExceeded("the text index is stuck")
            return await super().search(request, budget_s)

    fakes.retriever = HalfStuck(fakes.retriever.store)
    *_, last = await answer(fakes.lane(), Question(query()), timeout_s=0.5)
    assert isinstance(last, Answered)
    assert last.degraded == ("search",)


async def test_a_search_by_vector_names_the_model_that_made_the_vector(fakes: Fakes) -> None:
    stages = Stages(fakes.embedder, fakes.retriever, fakes.reranker, fakes.generator, embedding_model="another/model")
    lane = Lane(LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
    with pytest.raises(IndexMismatch):
        await lane.search(query(), Deadline.after(60))


async def test_a_collection_without_text_search_is_searched_by_vector_alone(fakes: Fakes) -> None:
    class Old(FakeRetriever):
        async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
            if request.kind == "text":
                raise IndexMismatch("made before there was text search")
            return await super().search(request, budget_s)

    fakes.retriever = Old(fakes.retriever.store)
    assert (await fakes.lane().search(query(), Deadline.after(60))).degraded == ("search",)
    with pytest.raises(IndexMismatch):
        await fakes.lane().search(query(mode="text"), Deadline.after(60))


@pytest.mark.parametrize("switched_off", ["by its weight", "by the request", "nothing to rerank"])
async def test_reranking_can_be_switched_off_and_needs_passages(fakes: Fakes, switched_off: str) -> None:
    config = LaneConfig(rerank_weight=0 if switched_off == "by its weight" else 1)
    if switched_off == "nothing to rerank":
        fakes.retriever.store.collections["docs"].clear()
    await fakes.lane(config).search(query(rerank=switched_off != "by the request"), Deadline.after(60))
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


async def test_no_stage_begins_after_the_deadline(fakes: Fakes) -> None:
    class Late(FakeEmbedder):
        async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
            embedded = await super().embed(request, budget_s)
            await asyncio.sleep(budget_s + 0.01)
            return embedded

    fakes.embedder = Late()
    with pytest.raises(DeadlineExceeded):
        await fakes.lane().search(query(mode="vector"), Deadline.after(0.02))
    assert fakes.retriever.requests == []


async def test_the_work_of_a_stage_that_is_too_slow_is_cancelled(fakes: Fakes) -> None:
    cancelled = asyncio.Event()

    class Slow:
        async def embed(self, calls: list[object]) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

    stages = Stages(RemoteEmbedder(LocalHandle(Slow())), fakes.retriever, fakes.reranker, fakes.generator)
    lane = Lane(LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
    found = await lane.search(query(), Deadline.after(1.0))
    assert found.degraded == ("embed",)
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_cancelling_a_request_cancels_the_work_of_its_stage(fakes: Fakes) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work(request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        raise AssertionError("the work went on")

    class Slow:
        async def embed(self, calls: list[object]) -> object:
            return await serve_each(calls, work)  # type: ignore[arg-type]

    stages = Stages(RemoteEmbedder(LocalHandle(Slow())), fakes.retriever, fakes.reranker, fakes.generator)
    lane = Lane(LaneConfig(), ContextBuilder(ContextConfig(), count_tokens), stages)
    request = asyncio.ensure_future(lane.search(query(), Deadline.after(60)))
    await started.wait()
    request.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await request


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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is changed by the garbage collector as well
            await asyncio.sleep(0.001)


async def test_closing_an_answer_stops_the_generator(fakes: Fakes) -> None:
    events = fakes.lane().answer(Question(query()), Deadline.after(60))
    assert isinstance(await anext(events), SourcesChosen)
    assert isinstance(await anext(events), Delta)
    assert fakes.generator.num_running == 1
    await events.aclose()
    assert fakes.generator.num_running == 0


async def test_a_generator_that_fails_half_way_fails_the_answer_after_what_it_said(fakes: Fakes) -> None:
    fakes.generator.fail_after, fakes.generator.faults.error = 2, EngineFailed("broken")
    events = fakes.lane().answer(Question(query()), Deadline.after(60))
    said = [await anext(events) for _ in range(3)]
    assert text_of(said) == "The moon"
    with pytest.raises(EngineFailed):
        await anext(events)
    await until(lambda: fakes.generator.num_running == 0)


async def test_a_generator_that_refuses_does_so_before_the_first_event(fakes: Fakes) -> None:
    fakes.generator.faults.error = InvalidInput("too long")
    events: AsyncIterator[AnswerEvent] = fakes.lane().answer(Question(query()), Deadline.after(60))
    with pytest.raises(InvalidInput):
        await anext(events)


async def test_requests_at_the_same_time_do_not_mix(fakes: Fakes) -> None:
    questions = [query(document.text) for document in DOCUMENTS] * 3
    answers = await asyncio.gather(*(answer(fakes.lane(), Question(question)) for question in questions))
    assert [text_of(events) for events in answers] == [f"{document.text} [1]" for document in DOCUMENTS] * 3


async def test_the_order_in_sequence_is_the_order_at_once(fakes: Fakes) -> None:
    at_once = await fakes.lane().search(query(), Deadline.after(60))
    in_a_row = await fakes.lane(LaneConfig(concurrent=False)).search(query(), Deadline.after(60))
    assert in_a_row.passages == at_once.passages


COMPARISON = "Which is heavier, iron or honey?"


async def test_sub_queries_are_embedded_in_one_call_and_searched_beside_the_question(fakes: Fakes) -> None:
    await fakes.lane().search(query(COMPARISON), Deadline.after(60))
    (embedded,) = fakes.embedder.requests
    assert embedded.texts[0] == COMPARISON
    assert len(embedded.texts) == 3
    assert [r.text for r in fakes.retriever.requests if r.kind == "vector"] == list(embedded.texts)
    assert sorted(r.text for r in fakes.retriever.requests if r.kind == "text") == sorted(embedded.texts)


@pytest.mark.parametrize("how", ["by the request", "by the configuration"])
async def test_sub_queries_can_be_switched_off(fakes: Fakes, how: str) -> None:
    by_request = how == "by the request"
    config = LaneConfig(rewriting=RewritingConfig(decompose=by_request))
    await fakes.lane(config).search(query(COMPARISON, rewrite=not by_request), Deadline.after(60))
    assert [request.texts for request in fakes.embedder.requests] == [(COMPARISON,)]


async def test_what_the_language_model_proposes_is_searched_as_well(fakes: Fakes) -> None:
    fakes.rewriter = FakeRewriter(Rewritten("What does the moon do?", ("honey", "What pulls the tides of the sea?")))
    found = await fakes.lane().search(query(k=3, history=("user: Tell me of the moon.",)), Deadline.after(60))
    searched = {request.text for request in fakes.retriever.requests}
    assert searched == {"What pulls the tides of the sea?", "What does the moon do?", "honey"}
    assert fakes.rewriter.histories == [("user: Tell me of the moon.",)]
    assert "rewrite language model" in calls(found.trace)


async def test_the_language_model_sees_as_many_turns_as_configured(fakes: Fakes) -> None:
    fakes.rewriter = FakeRewriter(Rewritten(None, ()))
    for turns in (2, 0):
        config = LaneConfig(llm_rewriting=LlmRewritingConfig(enabled=True, history_turns=turns))
        await fakes.lane(config).search(query(history=("one", "two", "three")), Deadline.after(60))
    assert fakes.rewriter.histories == [("two", "three"), ()]


@pytest.mark.parametrize(
    "faults", [Faults(error=EngineFailed("broken")), Faults(delay_s=30), Faults(error=InvalidInput("too long"))]
)
async def test_a_language_model_that_fails_or_is_late_is_left_out_and_named(fakes: Fakes, faults: Faults) -> None:
    without = await fakes.lane().search(query(), Deadline.after(60))
    fakes.rewriter = FakeRewriter(Rewritten(None, ("honey",)), faults)
    config = LaneConfig(llm_rewriting=LlmRewritingConfig(enabled=True, deadline_share=0.001))
    found = await fakes.lane(config).search(query(), Deadline.after(60))
    assert found.degraded == ("rewrite",)
    assert found.passages == without.passages


async def test_filters_in_the_question_and_beside_it_both_hold(fakes: Fakes) -> None:
    await fakes.lane().search(
        query("title:Sea What pulls the tides?", filter={"document_id": "tides"}), Deadline.after(9)
    )
    for request in fakes.retriever.requests:
        assert request.filter == {"title": {"contains": "Sea"}, "document_id": "tides"}
        assert request.text == "What pulls the tides?"


async def test_a_field_may_not_be_filtered_twice(fakes: Fakes) -> None:
    with pytest.raises(InvalidInput, match="title"):
        await fakes.lane().search(query("title:Sea What?", filter={"title": "Sea"}), Deadline.after(60))


async def test_filters_in_the_question_can_be_switched_off(fakes: Fakes) -> None:
    config = LaneConfig(parsing=ParsingConfig(inline_filters=False))
    await fakes.lane(config).search(query("title:Sea What pulls the tides?"), Deadline.after(60))
    assert fakes.retriever.requests[0].filter == {}


async def test_a_quoted_phrase_lifts_the_passages_that_hold_it(fakes: Fakes) -> None:
    text = 'What of the sea says "honey from nectar"?'
    off = LaneConfig(fusion=FusionConfig(phrase_weight=0), rewriting=RewritingConfig(decompose=False))
    on = off.model_copy(update={"fusion": FusionConfig(phrase_weight=10)})
    without = await fakes.lane(off).search(query(text, k=3, rerank=False), Deadline.after(60))
    lifted = await fakes.lane(on).search(query(text, k=3, rerank=False), Deadline.after(60))
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


FALLBACK = "fallback"


@pytest.fixture
def with_fallback(fakes: Fakes) -> Fakes:
    fakes.fallback = FakeGenerator(name=FALLBACK)
    return fakes


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "faults", [Faults(error=EngineFailed("broken")), Faults(delay_s=30)], ids=["fails", "too slow"]
)
async def test_a_generator_that_gives_no_word_is_stood_in_for_and_named(
    with_fallback: Fakes, faults: Faults, stream: bool
) -> None:
    with_fallback.generator.faults = faults
    events = await answer(with_fallback.lane(), Question(query(), stream=stream), timeout_s=0.5)
    last = events[-1]
    assert isinstance(last, Answered)
    assert (last.generator, last.degraded) == (FALLBACK, ("generate",))
    assert text_of(events) == "The moon pulls the tides of the sea. [1]"
    assert "generate fallback" in calls(last.trace)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generator_that_does_not_begin_is_stood_in_for_long_before_the_deadline(
    with_fallback: Fakes, stream: bool
) -> None:
    with_fallback.generator.faults = Faults(delay_s=3600)
    lane = with_fallback.lane(LaneConfig(first_word_timeout_s=0.05))
    *_, last = await answer(lane, Question(query(), stream=stream), timeout_s=3000)
    assert isinstance(last, Answered)
    assert (last.generator, last.degraded) == (FALLBACK, ("generate",))
    assert with_fallback.generator.num_running == 0


async def test_a_whole_answer_that_breaks_off_is_begun_anew_by_the_fallback(with_fallback: Fakes) -> None:
    with_fallback.generator.fail_after, with_fallback.generator.faults.error = 2, EngineFailed("broken")
    events = await answer(with_fallback.lane(), Question(query()))
    restarted = events.index(Restarted())
    assert text_of(events[:restarted]) == "The moon"
    assert text_of(events[restarted:]) == "The moon pulls the tides of the sea. [1]"
    assert isinstance(events[-1], Answered)
    assert events[-1].degraded == ("generate",)


async def test_a_stream_that_breaks_off_is_not_begun_anew(with_fallback: Fakes) -> None:
    with_fallback.generator.fail_after, with_fallback.generator.faults.error = 2, EngineFailed("broken")
    with pytest.raises(EngineFailed):
        await answer(with_fallback.lane(), Question(query(), stream=True))


async def test_what_only_the_client_can_mend_is_not_stood_in_for(with_fallback: Fakes) -> None:
    with_fallback.generator.faults.error = InvalidInput("the prompt is too long")
    with pytest.raises(InvalidInput):
        await answer(with_fallback.lane(), Question(query()))


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
