"""The textbook pipeline: embed, search, rerank, build the context, generate, each stage awaited before the next.

What the stages compute is raglane's: its parsing, its fusion, its prompts. Only how they are called is another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.shapes import AnswerBody, AnswerResponse, Ask, Result, SearchBody, SearchResponse
from deployments.citations import CitationFilter, cited_sources
from deployments.context import NOT_FOUND, ContextBuilder
from deployments.contracts import (
    Candidate,
    Generated,
    GenerateRequest,
    Passage,
    RerankRequest,
    SearchRequest,
    SearchResult,
    Vector,
)
from deployments.parsing import ParsedQuestion, parse_question
from deployments.ranking import FusionConfig, Hits, blend, fuse
from deployments.rewriting import sub_queries


@dataclass(frozen=True, slots=True)
class HybridSearch:
    """All searches of one question: each of its texts by its vector, (len(texts), dim) float32, and by its words.

    The search stage fuses what it finds and returns the best `num_results`.
    """

    collection: str
    texts: tuple[str, ...]
    vectors: Vector
    parsed: ParsedQuestion
    depth: int
    num_results: int

    def requests(self) -> list[SearchRequest]:
        """The vector searches in the order of the texts, then the text searches."""
        by_vector = [
            SearchRequest(self.collection, self.depth, "vector", vector=vector, filter=self.parsed.filter)
            for vector in self.vectors
        ]
        by_text = [
            SearchRequest(self.collection, self.depth, "text", text=text, filter=self.parsed.filter)
            for text in self.texts
        ]
        return [*by_vector, *by_text]

    def fused(self, results: Sequence[SearchResult], config: FusionConfig) -> list[Passage]:
        """One order of what the requests found, best first; `results` are in their order."""
        hits = [
            Hits(index % len(self.texts), request.kind, result.passages, len(result.passages) < self.depth)
            for index, (request, result) in enumerate(zip(self.requests(), results, strict=True))
        ]
        return fuse(hits, config, self.parsed.phrases)[: self.num_results]


@dataclass(frozen=True, slots=True)
class Written:
    """A whole answer: its text and the generator's last event."""

    text: str
    end: Generated


class Stages(Protocol):
    """The stages that compute, however they are called."""

    async def embed(self, texts: tuple[str, ...]) -> Vector: ...

    async def search(self, search: HybridSearch) -> list[Passage]: ...

    async def rerank(self, request: RerankRequest) -> Vector: ...

    async def generate(self, request: GenerateRequest) -> Written: ...


@dataclass(frozen=True, slots=True)
class _Found:
    text: str
    collection: str
    passages: list[Passage]
    vector: Vector


class TextbookLane:
    """parse → rewrite → embed → search → rerank → context → generate, in a row."""

    def __init__(self, config: BaselineConfig, context: ContextBuilder, stages: Stages) -> None:
        self._config = config
        self._context = context
        self._stages = stages

    async def search(self, body: SearchBody) -> SearchResponse:
        """The passages that match a query best."""
        found = await self._find(body, body.query)
        return SearchResponse(results=[Result.of(passage) for passage in found.passages])

    async def answer(self, body: AnswerBody) -> AnswerResponse:
        """An answer from the documents, with citations."""
        found = await self._find(body, body.question)
        context = self._context.build(found.text, found.passages)
        request = GenerateRequest(
            question=found.text,
            sources=context.sources,
            messages=context.messages,
            collection=found.collection,
            question_vector=found.vector,
        )
        written = await self._stages.generate(request)
        citations = CitationFilter(len(context.sources), self._context.check_citations)
        text = citations.feed(written.text) + citations.flush()
        cited = cited_sources(citations.cited, context.sources)
        return AnswerResponse.of(text, cited, citations.removed, text.strip() != NOT_FOUND, written.end)

    async def _find(self, ask: Ask, text: str) -> _Found:
        config = self._config
        k = min(ask.k or config.default_k, config.max_k)
        collection = ask.collection or config.default_collection
        parsed = parse_question(text, config.parsing)
        texts = (parsed.text, *sub_queries(parsed, config.rewriting))
        vectors = await self._stages.embed(texts)
        wanted = max(k, config.rerank_candidates)
        depth = max(k, config.candidates_per_search)
        passages = await self._stages.search(HybridSearch(collection, texts, vectors, parsed, depth, wanted))
        candidates = tuple(Candidate(p.text, p.id, p.title) for p in passages[: config.rerank_candidates])
        scores = await self._stages.rerank(RerankRequest(parsed.text, candidates, collection, vectors[0]))
        best = blend(passages, scores, config.rerank_weight)[:k]
        return _Found(parsed.text, collection, best, vectors[0])
