"""The lane over fakes: order of the stages, deadlines, what is left out when a stage fails, and the answer's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from deployments.context import NOT_FOUND, ContextConfig
from deployments.contracts import STAGES, Delta, Document, Embeddings, EmbedRequest, GenerationOptions, Timed
from deployments.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidInput,
    NotFound,
    Overloaded,
    StageError,
    StageUnavailable,
)
from deployments.hop import serve_each
from deployments.remote import RemoteEmbedder
from serve_app.pipeline import Answered, AnswerEvent, Lane, LaneConfig, Query, Question, SourcesChosen, Stages
from serve_app.trace import Deadline
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
class Fakes:
    """A lane over fakes, and the fakes."""

    embedder: FakeEmbedder
    retriever: FakeRetriever
    reranker: FakeReranker
    generator: FakeGenerator

    def lane(self, config: LaneConfig | None = None, context: ContextConfig | None = None) -> Lane:
        stages = Stages(self.embedder, self.retriever, self.reranker, self.generator)
        return Lane(config or LaneConfig(), context or ContextConfig(), stages, count_tokens)


@pytest.fixture
async def fakes() -> Fakes:
    store, embedder = FakeStore(), FakeEmbedder()
    await FakeIndexer(store, embedder).index("docs", DOCUMENTS, 1.0)
    embedder.requests.clear()
    return Fakes(embedder, FakeRetriever(store), FakeReranker(), FakeGenerator())


def query(text: str = "What pulls the tides of the sea?", k: int = 2, rerank: bool = True) -> Query:
    return Query(text, "docs", k, rerank=rerank)


async def answer(lane: Lane, question: Question, timeout_s: float = 60) -> list[AnswerEvent]:
    return [event async for event in lane.answer(question, Deadline.after(timeout_s))]


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_the_stages_of_an_answer_follow_each_other_in_the_trace(fakes: Fakes) -> None:
    *_, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(last, Answered)
    assert [row.stage for row in last.trace.rows] == list(STAGES)
    assert sum(row.total_s for row in last.trace.rows) <= last.trace.elapsed_s()


async def test_the_stages_of_a_search_end_with_reranking(fakes: Fakes) -> None:
    found = await fakes.lane().search(query(), Deadline.after(60))
    assert [row.stage for row in found.trace.rows] == ["parse", "rewrite", "embed", "search", "rerank"]
    assert found.degraded == ()


async def test_a_search_returns_the_k_best_of_the_candidates_it_reranked(fakes: Fakes) -> None:
    found = await fakes.lane(LaneConfig(rerank_candidates=3)).search(query(k=1), Deadline.after(60))
    assert [passage.document_id for passage in found.passages] == ["tides"]
    assert fakes.retriever.requests[0].k == 3
    assert len(fakes.reranker.requests[0].candidates) == 3


async def test_more_results_than_candidates_may_be_asked_for(fakes: Fakes) -> None:
    found = await fakes.lane(LaneConfig(rerank_candidates=1)).search(query(k=3), Deadline.after(60))
    assert len(found.passages) == 3


async def test_without_reranking_the_stage_is_skipped_and_no_candidate_too_many_is_searched(fakes: Fakes) -> None:
    found = await fakes.lane().search(query(rerank=False), Deadline.after(60))
    assert [row.stage for row in found.trace.rows] == ["parse", "rewrite", "embed", "search"]
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


@pytest.mark.parametrize("stage", ["embedder", "retriever"])
async def test_a_stage_that_can_not_be_done_without_fails_the_search(fakes: Fakes, stage: str) -> None:
    getattr(fakes, stage).faults.error = StageUnavailable("gone")
    with pytest.raises(StageUnavailable):
        await fakes.lane().search(query(), Deadline.after(60))


@pytest.mark.parametrize("stage", ["embedder", "retriever", "reranker", "generator"])
async def test_a_stage_that_is_too_slow_exceeds_the_deadline(fakes: Fakes, stage: str) -> None:
    getattr(fakes, stage).faults = Faults(delay_s=30)
    with pytest.raises(DeadlineExceeded):
        await answer(fakes.lane(), Question(query()), timeout_s=0.1)


async def test_no_stage_begins_after_the_deadline(fakes: Fakes) -> None:
    class Late(FakeEmbedder):
        async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
            embedded = await super().embed(request, budget_s)
            await asyncio.sleep(budget_s + 0.01)
            return embedded

    fakes.embedder = Late()
    with pytest.raises(DeadlineExceeded):
        await fakes.lane().search(query(), Deadline.after(0.02))
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
    lane = Lane(LaneConfig(), ContextConfig(), stages, count_tokens)
    with pytest.raises(DeadlineExceeded):
        await lane.search(query(), Deadline.after(0.05))
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
    lane = Lane(LaneConfig(), ContextConfig(), stages, count_tokens)
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
    assert text_of(said) == "The moon "
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
