"""The lane: which stage follows which, under one deadline, with one trace. Knows neither Ray nor HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from deployments.context import ContextConfig, CountTokens, choose_sources, cited_sources, prompt_messages
from deployments.contracts import (
    Candidate,
    Delta,
    EmbedRequest,
    Embeds,
    GenerateRequest,
    Generates,
    GenerationEvent,
    GenerationOptions,
    Passage,
    RerankRequest,
    Reranks,
    Searches,
    SearchMode,
    SearchRequest,
    Source,
    Stage,
    Usage,
    Vector,
)
from deployments.errors import EngineFailed, InvalidInput, StageError
from deployments.parsing import QUESTION_MAX_CHARS, parse_question
from deployments.ranking import blend
from deployments.rewriting import rewrite
from deployments.section import Section
from serve_app.trace import Deadline, Trace


class LaneConfig(Section):
    """What one request may ask for, and what it gets when it does not say."""

    default_collection: str = Field("docs", description="The collection that is used when a request names none.")
    default_timeout_s: float = Field(30.0, gt=0, description="A request's deadline when it sets no timeout_s.")
    max_timeout_s: float = Field(300.0, gt=0, description="The longest deadline that a request may set.")
    default_k: int = Field(10, ge=1, description="Results of a search, and sources considered for an answer.")
    max_k: int = Field(1000, ge=1, description="The most results that a search may ask for.")
    rerank_candidates: int = Field(50, ge=1, description="Passages retrieved for reranking, if k is not larger.")
    rerank_weight: float = Field(
        0.6, ge=0, description="Weight of the rerank score in the final order, against 1 for the retrieval score."
    )
    rerank_timeout_s: float = Field(
        10.0, gt=0, description="Reranking that takes longer is left out of the answer, which says so in `degraded`."
    )
    question_max_chars: int = Field(QUESTION_MAX_CHARS, ge=1, description="Longer questions are refused.")


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. `k`, `mode` and `filter` as in SearchRequest."""

    text: str
    collection: str
    k: int
    mode: SearchMode = "vector"
    rerank: bool = True
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A query to be answered, and how. `request_id` names the request in logs and in the generator."""

    query: Query
    options: GenerationOptions = field(default_factory=GenerationOptions)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Passages by descending score, the stages that had to be left out, and where the time went."""

    passages: list[Passage]
    degraded: tuple[Stage, ...]
    trace: Trace


@dataclass(frozen=True, slots=True)
class SourcesChosen:
    """First event of an answer: the sources it may cite."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Last event of an answer: everything but its text, which came as `Delta` events."""

    citations: tuple[Source, ...]
    finish_reason: str
    generator: str
    usage: Usage
    degraded: tuple[Stage, ...]
    trace: Trace


AnswerEvent = SourcesChosen | Delta | Answered


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages that are deployments, as the lane sees them."""

    embedder: Embeds
    retriever: Searches
    reranker: Reranks
    generator: Generates


class Lane:
    """parse → rewrite → embed → search → rerank → context → generate."""

    def __init__(self, config: LaneConfig, context: ContextConfig, stages: Stages, count_tokens: CountTokens) -> None:
        self.config = config
        self._context = context
        self._stages = stages
        self._count_tokens = count_tokens

    async def search(self, query: Query, deadline: Deadline) -> Found:
        """The passages that match the query best."""
        found, _, _ = await self._retrieve(query, deadline)
        return found

    async def answer(self, question: Question, deadline: Deadline) -> AsyncGenerator[AnswerEvent]:
        """The answer as events: `SourcesChosen`, any number of `Delta`, `Answered`. Closing it stops the generator."""
        found, text, vector = await self._retrieve(question.query, deadline)
        trace = found.trace
        with trace.local("context"):
            sources = choose_sources(found.passages, self._context, self._count_tokens)
            messages = prompt_messages(text, sources, self._context)
        request = GenerateRequest(
            question=text,
            sources=sources,
            messages=messages,
            options=question.options,
            collection=question.query.collection,
            question_vector=vector,
            request_id=question.request_id,
            budget_s=deadline.remaining_s(),
        )
        started = time.perf_counter()
        pieces: list[str] = []
        async with aclosing(self._stages.generator.generate(request)) as events:
            # A generator that refuses (a prompt too long, say) does so here, while the answer can still be an error.
            event = await _next_event(events)
            yield SourcesChosen(sources)
            while isinstance(event, Delta):
                pieces.append(event.text)
                yield event
                event = await _next_event(events)
        trace.add("generate", time.perf_counter() - started, event.timing)
        cited = cited_sources("".join(pieces), sources)
        yield Answered(cited, event.finish_reason, event.generator, event.usage, found.degraded, trace)

    async def _retrieve(self, query: Query, deadline: Deadline) -> tuple[Found, str, Vector]:
        """What was found, the question as it was understood, and its vector."""
        trace = Trace()
        with trace.local("parse"):
            text = parse_question(query.text, self.config.question_max_chars)
        with trace.local("rewrite"):
            query = replace(query, text=rewrite(text)[0])
        vector = await self._embed(query.text, trace, deadline)
        passages = await self._search(query, vector, trace, deadline)
        degraded: tuple[Stage, ...] = ()
        if query.rerank:
            try:
                passages = await self._rerank(query, vector, passages, trace, deadline)
            except InvalidInput:
                raise
            except StageError:
                # Without any time left there is no answer to give; else it is given without reranking.
                deadline.remaining_s()
                degraded = ("rerank",)
        return Found(passages[: query.k], degraded, trace), text, vector

    async def _embed(self, text: str, trace: Trace, deadline: Deadline) -> Vector:
        started = time.perf_counter()
        embedded = await self._stages.embedder.embed(EmbedRequest((text,)), deadline.remaining_s())
        trace.add("embed", time.perf_counter() - started, embedded.timing)
        vector: Vector = embedded.value.vectors[0]
        return vector

    async def _search(self, query: Query, vector: Vector, trace: Trace, deadline: Deadline) -> list[Passage]:
        k = max(query.k, self.config.rerank_candidates) if query.rerank else query.k
        request = SearchRequest(query.collection, vector, k, query.mode, query.text, query.filter)
        started = time.perf_counter()
        found = await self._stages.retriever.search(request, deadline.remaining_s())
        trace.add("search", time.perf_counter() - started, found.timing)
        return found.value

    async def _rerank(
        self, query: Query, vector: Vector, passages: list[Passage], trace: Trace, deadline: Deadline
    ) -> list[Passage]:
        candidates = tuple(Candidate(p.text, p.id, p.title) for p in passages)
        request = RerankRequest(query.text, candidates, query.collection, vector)
        started = time.perf_counter()
        budget_s = min(deadline.remaining_s(), self.config.rerank_timeout_s)
        scored = await self._stages.reranker.rerank(request, budget_s)
        trace.add("rerank", time.perf_counter() - started, scored.timing)
        return blend(passages, scored.value, self.config.rerank_weight)


async def _next_event(events: AsyncGenerator[GenerationEvent]) -> GenerationEvent:
    event = await anext(events, None)
    if event is None:
        raise EngineFailed("the generator broke off before the end of its answer")
    return event
