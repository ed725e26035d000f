"""RAG in one process, as a tutorial has it: FastAPI under uvicorn, `SentenceTransformer.encode()` in a thread.

The searches are LanceDB's asynchronous ones; reranking by sentence evidence and extractive answers are raglane's.

    python -m benchmarks.baselines.plain_fastapi --port 8000 --data DIR

`DIR` is the data folder of a raglane server ($RAGLANE_DATA if left out), whose collections this one reads. The model,
its number format and number of threads are those of raglane's local profile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from benchmarks.baselines.engines import Answering, Scoring, Searching, context_builder
from benchmarks.baselines.settings import BaselineConfig, store_of_environment
from benchmarks.baselines.shapes import AnswerBody, AnswerResponse, SearchBody, SearchResponse
from benchmarks.baselines.textbook import HybridSearch, TextbookLane, Written
from deployments.contracts import GenerateRequest, Passage, RerankRequest, Vector
from deployments.models import model_location
from deployments.store import StoreConfig
from deployments.torch_runtime import set_up


class StagesInProcess:
    """The stages as plain calls."""

    def __init__(self, config: BaselineConfig) -> None:
        from sentence_transformers import SentenceTransformer

        embedder = config.embedder
        device, dtype = set_up(embedder.device, embedder.dtype, embedder.num_threads)
        location = model_location(embedder.model)
        self._model: Any = SentenceTransformer(location, device=device, model_kwargs={"dtype": dtype})
        self._searching = Searching(config)
        self._scoring = Scoring(config)
        self._answering = Answering(config)

    async def embed(self, texts: tuple[str, ...]) -> Vector:
        vectors: Vector = await run_in_threadpool(
            self._model.encode, list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    async def search(self, search: HybridSearch) -> list[Passage]:
        (passages,) = await self._searching.search([search])
        return passages

    async def rerank(self, request: RerankRequest) -> Vector:
        (scores,) = await self._scoring.rerank([request])
        return scores

    async def generate(self, request: GenerateRequest) -> Written:
        return await self._answering.generate(request)


def create_app(config: BaselineConfig) -> FastAPI:
    """The HTTP app; loads the models."""
    lane = TextbookLane(config, context_builder(config), StagesInProcess(config))
    app = FastAPI()

    @app.post("/v1/search")
    async def search(body: SearchBody) -> SearchResponse:
        return await lane.search(body)

    @app.post("/v1/answers")
    async def answers(body: AnswerBody) -> AnswerResponse:
        return await lane.answer(body)

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.plain_fastapi", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="HTTP port (default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="data folder of a raglane server (default: $RAGLANE_DATA)")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    store = StoreConfig(uri=f"{options.data}/lancedb") if options.data else store_of_environment()
    uvicorn.run(create_app(BaselineConfig(store=store)), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
