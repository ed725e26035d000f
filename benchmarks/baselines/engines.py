"""The engines of the stages, run plainly: what is handed to them together is computed together, and nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.textbook import HybridSearch, Written
from deployments.batching import BatchEngine
from deployments.context import ContextBuilder
from deployments.contracts import (
    Delta,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    Passage,
    RerankRequest,
    SearchRequest,
    SearchResult,
    Timed,
    Vector,
)
from deployments.embedder import Text, load_embedding_engine
from deployments.errors import EngineFailed, StageError
from deployments.evidence import SentenceEvidence
from deployments.generator import GeneratorSettings
from deployments.models import model_location
from deployments.reranker import load_scoring_engine
from deployments.retriever import RetrieverSettings
from deployments.section import load_engine
from deployments.token_counting import TokenCounter

# What sentence-transformers' encode() and predict() do by default: longest first, 32 rows at a time.
ROWS_PER_PASS = 32
BUDGET_S = 60.0


def run_sorted(engine: BatchEngine[Any, Any, Any], items: Sequence[Any]) -> list[Any]:
    """One result per item, in order, as encode() and predict() get them. Raises the first item's error that has one."""
    prepared = []
    for one in engine.prepare(items):
        if isinstance(one, StageError):
            raise one
        prepared.append(one)
    longest_first = sorted(range(len(prepared)), key=lambda index: -prepared[index][1])
    results: dict[int, Any] = {}
    for start in range(0, len(longest_first), ROWS_PER_PASS):
        chosen = longest_first[start : start + ROWS_PER_PASS]
        results.update(zip(chosen, engine.run([prepared[index][0] for index in chosen]), strict=True))
    return [results[index] for index in range(len(prepared))]


class Encoding:
    """The embedding engine."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = load_embedding_engine(config.embedder)

    async def embed(self, requests: Sequence[tuple[str, ...]]) -> list[Vector]:
        """For each request the vectors of its texts, (len(texts), dim) float32; all texts in one go, off the loop."""
        texts = [Text(text, "query", truncate=True) for request in requests for text in request]
        embedded = await asyncio.to_thread(run_sorted, self._engine, texts)
        vectors = np.stack([one.vector for one in embedded])
        return np.split(vectors, np.cumsum([len(request) for request in requests])[:-1])


class Searching:
    """The search engine, and the fusion of what it finds."""

    def __init__(self, config: BaselineConfig) -> None:
        settings = RetrieverSettings(retriever=config.retriever, store=config.store)
        self._engine = load_engine(config.retriever.engine, settings)
        self._fusion = config.fusion

    async def search(self, searches: Sequence[HybridSearch]) -> list[list[Passage]]:
        """The passages of each search, best first; all searches in one call of the engine."""
        results = iter(await self._found([request for search in searches for request in search.requests()]))
        return [search.fused([next(results) for _ in search.requests()], self._fusion) for search in searches]

    async def search_in_a_row(self, search: HybridSearch) -> list[Passage]:
        """The passages of one search, best first, each request of it awaited before the next."""
        results = [(await self._found([request]))[0] for request in search.requests()]
        return search.fused(results, self._fusion)

    async def _found(self, requests: list[SearchRequest]) -> list[SearchResult]:
        found: list[SearchResult] = []
        for result in await self._engine.search(requests):
            if isinstance(result, StageError):
                raise result
            found.append(result)
        return found


class Scoring:
    """The reranking engine: a cross-encoder, or sentence evidence from the store."""

    def __init__(self, config: BaselineConfig) -> None:
        self._scorer: Any = None
        if config.reranker.method == "cross_encoder":
            self._scorer = load_scoring_engine(config.reranker)
        else:
            self._evidence = SentenceEvidence(config.store, NoEmbedder(), config.reranker.evidence)

    async def rerank(self, requests: Sequence[RerankRequest]) -> list[Vector]:
        """For each request (len(candidates),) float32, higher is better; a cross-encoder reads all pairs in one go."""
        if self._scorer is None:
            return list(await asyncio.gather(*(self._by_evidence(request) for request in requests)))
        pairs = [
            (request.query, f"{candidate.title}\n{candidate.text}" if candidate.title else candidate.text)
            for request in requests
            for candidate in request.candidates
        ]
        scores = np.array(await asyncio.to_thread(run_sorted, self._scorer, pairs), dtype=np.float32)
        return np.split(scores, np.cumsum([len(request.candidates) for request in requests])[:-1])

    async def _by_evidence(self, request: RerankRequest) -> Vector:
        scored = await self._evidence.score(
            request.query_vector, request.query, request.candidates, request.collection, BUDGET_S
        )
        return np.array([candidate.best for candidate in scored], dtype=np.float32)


class Answering:
    """The answering engine."""

    def __init__(self, config: BaselineConfig) -> None:
        settings = GeneratorSettings(generator=config.generator, store=config.store)
        self._engine = load_engine(config.generator.engine, settings, NoEmbedder())

    async def generate(self, request: GenerateRequest) -> Written:
        """The whole answer."""
        pieces: list[str] = []
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if not isinstance(event, Delta):
                    return Written("".join(pieces), event)
                pieces.append(event.text)
        raise EngineFailed("the answer broke off before its end")


class NoEmbedder:
    """Stands where sentences that are not stored would be embedded: a collection that nobody writes to has none."""

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        raise EngineFailed("a baseline scores stored passages only; do not write to the collection meanwhile")


def context_builder(config: BaselineConfig) -> ContextBuilder:
    """Counts tokens with the embedder's tokenizer, as raglane does without a language model."""
    return ContextBuilder(config.context, TokenCounter(model_location(config.embedder.model)).count)
