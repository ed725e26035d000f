"""No branch of the lane waits for another: over engines with known delays, it takes its longest path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import SearchMode, SearchRequest, SearchResult, StageTiming, Timed
from deployments.llm_rewriting import LlmRewritingConfig, Rewritten
from deployments.rewriting import RewritingConfig
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, Lane, Question
from serve_app.retrieval import Query, Stages
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
from tests.lane import DOCUMENTS
from tests.virtual_time import timed

EMBED_S, VECTOR_S, TEXT_S, REWRITE_S, RERANK_S, GENERATE_S = 3.0, 2.0, 4.0, 5.0, 1.0, 6.0
TOLERANCE = 0.10

SIMPLE = "What pulls the tides of the sea?"
COMPARISON = "Which is heavier, iron or honey?"


class DelayedRetriever(FakeRetriever):
    """A text search may take longer than a vector search."""

    async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
        await asyncio.sleep(VECTOR_S if request.kind == "vector" else TEXT_S)
        return await super().search(request, budget_s)


@dataclass
class DelayedRewriter:
    """A language model that proposes the same queries for every question."""

    queries: tuple[str, ...]
    faults: Faults

    async def rewrite(
        self, question: str, history: Sequence[str], budget_s: float, request_id: str = ""
    ) -> Timed[Rewritten]:
        await self.faults.strike(budget_s)
        return Timed(Rewritten(None, self.queries), StageTiming())


@dataclass(frozen=True)
class Shape:
    """One shape of the DAG, with the length of its longest path and of all its calls in a row, in seconds."""

    mode: SearchMode
    question: str
    rewritten: tuple[str, ...] | None
    longest_s: float
    in_a_row_s: float


AFTER_SEARCH = RERANK_S + GENERATE_S
SHAPES = {
    "vector": Shape("vector", SIMPLE, None, EMBED_S + VECTOR_S, EMBED_S + VECTOR_S),
    "text": Shape("text", SIMPLE, None, TEXT_S, TEXT_S),
    "hybrid": Shape("hybrid", SIMPLE, None, EMBED_S + VECTOR_S, EMBED_S + VECTOR_S + TEXT_S),
    "hybrid, sub-queries by rule": Shape(
        "hybrid", COMPARISON, None, EMBED_S + VECTOR_S, EMBED_S + 3 * VECTOR_S + 3 * TEXT_S
    ),
    "vector, sub-queries by rule": Shape("vector", COMPARISON, None, EMBED_S + VECTOR_S, EMBED_S + 3 * VECTOR_S),
    "vector, language model": Shape(
        "vector", SIMPLE, ("moon", "sea"), REWRITE_S + EMBED_S + VECTOR_S, REWRITE_S + 2 * EMBED_S + 3 * VECTOR_S
    ),
    "hybrid, language model": Shape(
        "hybrid",
        SIMPLE,
        ("moon", "sea", "tide"),
        REWRITE_S + EMBED_S + VECTOR_S,
        REWRITE_S + 2 * EMBED_S + 4 * VECTOR_S + 4 * TEXT_S,
    ),
    "hybrid, language model without proposals": Shape(
        "hybrid", SIMPLE, (), max(EMBED_S + VECTOR_S, REWRITE_S), REWRITE_S + EMBED_S + VECTOR_S + TEXT_S
    ),
    "hybrid, both kinds of sub-queries": Shape(
        "hybrid",
        COMPARISON,
        ("weight of iron per litre",),
        REWRITE_S + EMBED_S + VECTOR_S,
        REWRITE_S + 2 * EMBED_S + 4 * VECTOR_S + 4 * TEXT_S,
    ),
}


async def lane(shape: Shape, concurrent: bool, rewrite_s: float = REWRITE_S) -> Lane:
    embedder, store = FakeEmbedder(), FakeStore()
    await FakeIndexer(store, embedder).index("docs", DOCUMENTS, 1.0)
    embedder.faults = Faults(delay_s=EMBED_S)
    stages = Stages(
        embedder,
        DelayedRetriever(store),
        FakeReranker(Faults(delay_s=RERANK_S)),
        FakeGenerator(faults=Faults(delay_s=GENERATE_S)),
        rewriter=None if shape.rewritten is None else DelayedRewriter(shape.rewritten, Faults(rewrite_s)),
    )
    config = LaneConfig(concurrent=concurrent, rewriting=RewritingConfig())
    return Lane(config, ContextBuilder(ContextConfig(), count_tokens), stages)


def within(timeout_s: float) -> Deadline:
    return Deadline.after(timeout_s, asyncio.get_running_loop().time)


async def ask(shape: Shape, concurrent: bool) -> Answered:
    query = Query(shape.question, "docs", k=3, mode=shape.mode)
    answering = (await lane(shape, concurrent)).answer(Question(query), within(600))
    *_, last = [event async for event in answering]
    assert isinstance(last, Answered)
    return last


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_answer_takes_as_long_as_the_longest_path(shape: Shape) -> None:
    answered, took_s = timed(lambda: ask(shape, concurrent=True))
    assert took_s == pytest.approx(shape.longest_s + AFTER_SEARCH, rel=TOLERANCE)
    assert answered.degraded == ()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_sequence_it_takes_as_long_as_all_calls_together_and_finds_the_same(shape: Shape) -> None:
    in_a_row, took_s = timed(lambda: ask(shape, concurrent=False))
    at_once, _ = timed(lambda: ask(shape, concurrent=True))
    assert took_s == pytest.approx(shape.in_a_row_s + AFTER_SEARCH, rel=TOLERANCE)
    assert in_a_row.citations == at_once.citations
    assert sorted(row.stage for row in in_a_row.trace.rows) == sorted(row.stage for row in at_once.trace.rows)


def test_a_language_model_that_is_late_holds_up_nothing_but_its_share() -> None:
    shape = SHAPES["hybrid, language model"]

    async def ask_with_a_slow_model() -> Answered:
        slow = await lane(shape, concurrent=True, rewrite_s=100.0)
        query = Query(shape.question, "docs", k=3)
        *_, last = [event async for event in slow.answer(Question(query), within(40))]
        assert isinstance(last, Answered)
        return last

    answered, took_s = timed(ask_with_a_slow_model)
    share_s = 40 * LlmRewritingConfig().deadline_share
    assert took_s == pytest.approx(share_s + AFTER_SEARCH, rel=TOLERANCE)
    assert answered.degraded == ("rewrite",)
    assert answered.citations
