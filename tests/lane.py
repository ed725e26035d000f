"""A lane over fakes, and how a test asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.context import ContextBuilder, ContextConfig
from deployments.contracts import (
    Delta,
    Document,
    StageTiming,
    Timed,
)
from deployments.llm_rewriting import Rewritten
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import AnswerEvent, Lane, Question
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


async def stocked() -> Fakes:
    """Fakes whose collection "docs" holds DOCUMENTS."""
    store, embedder = FakeStore(), FakeEmbedder()
    await FakeIndexer(store, embedder).index("docs", DOCUMENTS, 1.0)
    embedder.requests.clear()
    return Fakes(embedder, FakeRetriever(store), FakeReranker(), FakeGenerator())


def query(text: str = "What pulls the tides of the sea?", k: int = 2, **options: Any) -> Query:
    return Query(text, "docs", k, **options)


def within(timeout_s: float) -> Deadline:
    return Deadline.after(timeout_s, asyncio.get_running_loop().time)


async def answer(lane: Lane, question: Question, timeout_s: float = 60) -> list[AnswerEvent]:
    return [event async for event in lane.answer(question, within(timeout_s))]


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def calls(trace: Trace) -> list[str]:
    """The calls of the stages in the order in which they ended, each with its branch."""
    return [f"{row.stage} {row.branch}".strip() for row in trace.rows]
