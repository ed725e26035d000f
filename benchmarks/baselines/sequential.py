"""The textbook pipeline on Ray Serve: the same stages one after another, each worker with one request at a time, and no
batches.

A request is embedded, then searched by vector, then by words, then reranked, then answered; nothing of it runs beside
anything else of it. While one worker has a request, those of the other stages work on others, and the ingress takes any
number. A lock keeps a worker to one request: with `max_ongoing_requests: 1` Serve's router would try again only after
a pause, and this server would be slower than its design. Deployed as `benchmarks.baselines.plain_serve` is.
"""

# No `from __future__ import annotations` here: Serve reads build_app's annotation at run time.

import asyncio

from ray import serve
from ray.serve import Application

from benchmarks.baselines.engines import Answering, Encoding, Scoring, Searching
from benchmarks.baselines.ingress import Ingress
from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.textbook import HybridSearch, Written
from deployments.contracts import GenerateRequest, Passage, RerankRequest, Vector


class Embedder:
    """The embed stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Encoding(config)
        self._free = asyncio.Lock()

    async def embed(self, texts: tuple[str, ...]) -> Vector:
        async with self._free:
            (vectors,) = await self._engine.embed([texts])
            return vectors


class Retriever:
    """The search stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Searching(config)
        self._free = asyncio.Lock()

    async def search(self, search: HybridSearch) -> list[Passage]:
        async with self._free:
            return await self._engine.search_in_a_row(search)


class Reranker:
    """The rerank stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Scoring(config)
        self._free = asyncio.Lock()

    async def rerank(self, request: RerankRequest) -> Vector:
        async with self._free:
            (scores,) = await self._engine.rerank([request])
            return scores


class Generator:
    """The generate stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Answering(config)
        self._free = asyncio.Lock()

    async def generate(self, request: GenerateRequest) -> Written:
        async with self._free:
            return await self._engine.generate(request)


def build_app(args: BaselineConfig) -> Application:
    """Build the application: `import_path: benchmarks.baselines.sequential:build_app` in a Serve config file."""
    stages = [serve.deployment(stage).bind(args) for stage in (Embedder, Retriever, Reranker, Generator)]
    return serve.deployment(Ingress).bind(args, *stages)
