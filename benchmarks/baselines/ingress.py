"""The HTTP front of the baselines on Ray Serve: one handle call per request and stage, each awaited before the next."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of a class that Serve wraps.

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.baselines.engines import context_builder
from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.shapes import AnswerBody, AnswerResponse, SearchBody, SearchResponse
from benchmarks.baselines.textbook import HybridSearch, TextbookLane, Written
from deployments.contracts import GenerateRequest, Passage, RerankRequest, Vector

app = FastAPI()


class StagesByHandle:
    """The stages as deployments; the first call of each waits until its replica has started."""

    def __init__(
        self,
        embedder: DeploymentHandle,
        retriever: DeploymentHandle,
        reranker: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        self._embedder = embedder
        self._retriever = retriever
        self._reranker = reranker
        self._generator = generator

    async def embed(self, texts: tuple[str, ...]) -> Vector:
        vectors: Vector = await self._embedder.embed.remote(texts)
        return vectors

    async def search(self, search: HybridSearch) -> list[Passage]:
        passages: list[Passage] = await self._retriever.search.remote(search)
        return passages

    async def rerank(self, request: RerankRequest) -> Vector:
        scores: Vector = await self._reranker.rerank.remote(request)
        return scores

    async def generate(self, request: GenerateRequest) -> Written:
        written: Written = await self._generator.generate.remote(request)
        return written


@serve.ingress(app)
class Ingress:
    """The deployment that takes HTTP."""

    def __init__(
        self,
        config: BaselineConfig,
        embedder: DeploymentHandle,
        retriever: DeploymentHandle,
        reranker: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        stages = StagesByHandle(embedder, retriever, reranker, generator)
        self._lane = TextbookLane(config, context_builder(config), stages)

    @app.post("/v1/search")
    async def search(self, body: SearchBody) -> SearchResponse:
        return await self._lane.search(body)

    @app.post("/v1/answers")
    async def answers(self, body: AnswerBody) -> AnswerResponse:
        return await self._lane.answer(body)

    @app.get("/health/ready")
    async def ready(self) -> dict[str, str]:
        # Serve makes an ingress only after the stages that it is given.
        return {"status": "ready"}
