"""The lane over fakes that fail, are late or are cancelled: what is left out or stood in for, and what fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import (
    Delta,
    Embeddings,
    EmbedRequest,
    SearchMode,
    SearchRequest,
    SearchResult,
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
from deployments.remote import RemoteEmbedder
from deployments.telemetry import DEGRADED
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, AnswerEvent, Lane, Question, Restarted, SourcesChosen
from serve_app.retrieval import Stages
from tests.fakes import (
    FakeEmbedder,
    FakeGenerator,
    FakeRetriever,
    Faults,
    count_tokens,
)
from tests.handles import LocalHandle
from tests.lane import FakeRewriter, Fakes, answer, calls, query, stocked, text_of, within

# What is late here is so by the loop's clock: a slow machine changes nothing.
pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def fakes() -> Fakes:
    return await stocked()


@pytest.mark.parametrize("error", [EngineFailed("broken"), StageUnavailable("gone"), Overloaded("full"), NotFound("x")])
async def test_a_reranker_that_fails_is_left_out_and_named(fakes: Fakes, error: StageError) -> None:
    unranked = await fakes.lane().search(query(rerank=False), within(60))
    fakes.reranker.faults.error = error
    found = await fakes.lane().search(query(), within(60))
    assert found.degraded == ("rerank",)
    assert (DEGRADED, ("rerank", error.reason), 1) in list(found.trace.tally.read())
    assert found.passages == unranked.passages
    *_, last = await answer(fakes.lane(), Question(query()))
    assert isinstance(last, Answered)
    assert last.degraded == ("rerank",)


async def test_what_the_client_must_know_is_not_hidden_as_degraded(fakes: Fakes) -> None:
    fakes.reranker.faults.error = InvalidInput("too long")
    with pytest.raises(InvalidInput):
        await fakes.lane().search(query(), within(60))


async def test_a_reranker_that_is_too_slow_is_left_out_while_there_is_time_to_answer(fakes: Fakes) -> None:
    fakes.reranker.faults = Faults(delay_s=30)
    found = await fakes.lane(LaneConfig(rerank_timeout_s=0.01)).search(query(), within(60))
    assert found.degraded == ("rerank",)
    assert len(found.passages) == 2


async def test_without_any_search_there_is_no_answer(fakes: Fakes) -> None:
    fakes.retriever.faults.error = StageUnavailable("gone")
    with pytest.raises(StageUnavailable, match="gone"):
        await fakes.lane().search(query(), within(60))


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
async def test_without_embedding_the_text_search_answers_and_the_stage_is_named(fakes: Fakes, mode: SearchMode) -> None:
    by_text = await fakes.lane().search(query(mode="text"), within(60))
    fakes.embedder.faults.error = StageUnavailable("gone")
    found = await fakes.lane().search(query(mode=mode), within(60))
    assert found.degraded == ("embed",)
    assert [passage.id for passage in found.passages] == [passage.id for passage in by_text.passages]
    *_, last = await answer(fakes.lane(), Question(query(mode=mode)))
    assert isinstance(last, Answered)
    assert last.degraded == ("embed",)


async def test_embedding_that_is_too_slow_is_left_out_while_there_is_time_to_answer(fakes: Fakes) -> None:
    fakes.embedder.faults = Faults(delay_s=30)
    found = await fakes.lane(LaneConfig(embed_timeout_s=0.01)).search(query(), within(60))
    assert found.degraded == ("embed",)


@pytest.mark.parametrize("broken", ["vector", "text"])
async def test_one_kind_of_search_answers_for_the_other_and_the_stage_is_named(fakes: Fakes, broken: str) -> None:
    class HalfBroken(FakeRetriever):
        async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
            if request.kind == broken:
                raise EngineFailed("the index is broken")
            return await super().search(request, budget_s)

    fakes.retriever = HalfBroken(fakes.retriever.store)
    found = await fakes.lane().search(query(), within(60))
    assert found.degraded == ("search",)
    assert found.passages[0].document_id == "tides"


@pytest.mark.parametrize("error", [InvalidInput("bad filter"), NotFound("no such collection"), IndexMismatch("other")])
async def test_what_only_the_client_can_mend_fails_the_search(fakes: Fakes, error: StageError) -> None:
    fakes.retriever.faults.error = error
    with pytest.raises(type(error)):
        await fakes.lane().search(query(), within(60))


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


async def test_no_stage_begins_after_the_deadline(fakes: Fakes) -> None:
    class Late(FakeEmbedder):
        async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
            embedded = await super().embed(request, budget_s)
            await asyncio.sleep(budget_s + 0.01)
            return embedded

    fakes.embedder = Late()
    with pytest.raises(DeadlineExceeded):
        await fakes.lane().search(query(mode="vector"), within(0.02))
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
    found = await lane.search(query(), within(1.0))
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
    request = asyncio.ensure_future(lane.search(query(), within(60)))
    await started.wait()
    request.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await request


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is changed by the garbage collector as well
            await asyncio.sleep(0.001)


async def test_closing_an_answer_stops_the_generator(fakes: Fakes) -> None:
    events = fakes.lane().answer(Question(query()), within(60))
    assert isinstance(await anext(events), SourcesChosen)
    assert isinstance(await anext(events), Delta)
    assert fakes.generator.num_running == 1
    await events.aclose()
    assert fakes.generator.num_running == 0


async def test_a_generator_that_fails_half_way_fails_the_answer_after_what_it_said(fakes: Fakes) -> None:
    fakes.generator.fail_after, fakes.generator.faults.error = 2, EngineFailed("broken")
    events = fakes.lane().answer(Question(query()), within(60))
    said = [await anext(events) for _ in range(3)]
    assert text_of(said) == "The moon"
    with pytest.raises(EngineFailed):
        await anext(events)
    await until(lambda: fakes.generator.num_running == 0)


async def test_a_generator_that_refuses_does_so_before_the_first_event(fakes: Fakes) -> None:
    fakes.generator.faults.error = InvalidInput("too long")
    events: AsyncIterator[AnswerEvent] = fakes.lane().answer(Question(query()), within(60))
    with pytest.raises(InvalidInput):
        await anext(events)


@pytest.mark.parametrize(
    "faults", [Faults(error=EngineFailed("broken")), Faults(delay_s=30), Faults(error=InvalidInput("too long"))]
)
async def test_a_language_model_that_fails_or_is_late_is_left_out_and_named(fakes: Fakes, faults: Faults) -> None:
    without = await fakes.lane().search(query(), within(60))
    fakes.rewriter = FakeRewriter(Rewritten(None, ("honey",)), faults)
    config = LaneConfig(llm_rewriting=LlmRewritingConfig(enabled=True, deadline_share=0.001))
    found = await fakes.lane(config).search(query(), within(60))
    assert found.degraded == ("rewrite",)
    assert found.passages == without.passages


async def test_a_retriever_that_never_tells_the_version_leaves_time_for_the_answer(fakes: Fakes) -> None:
    lane = fakes.lane()
    await answer(lane, Question(query()))
    version = fakes.retriever.version

    async def never(collection: str, budget_s: float) -> Timed[int]:
        await Faults(delay_s=3600).strike(budget_s)
        return await version(collection, budget_s)

    fakes.retriever.version = never  # type: ignore[method-assign]
    *_, last = await answer(lane, Question(query()), timeout_s=30)
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


async def test_a_stream_whose_fallback_refuses_as_well_has_not_begun(with_fallback: Fakes) -> None:
    assert with_fallback.fallback is not None
    with_fallback.generator.faults.error = StageUnavailable("restarting")
    with_fallback.fallback.faults.error = Overloaded("too many answers")
    events = with_fallback.lane().answer(Question(query(), stream=True), within(60))
    with pytest.raises(Overloaded):
        await anext(events)


async def test_what_only_the_client_can_mend_is_not_stood_in_for(with_fallback: Fakes) -> None:
    with_fallback.generator.faults.error = InvalidInput("the prompt is too long")
    with pytest.raises(InvalidInput):
        await answer(with_fallback.lane(), Question(query()))
