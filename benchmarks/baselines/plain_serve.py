"""raglane's stages on Ray Serve as its documentation has them: a FastAPI ingress, one handle call per request and
stage, and `@serve.batch` with its default parameters (10 requests, 10 ms) in front of what gains from batches.

Deployed by `raglane up --config benchmarks/profiles/…_plain.yaml`, so that Ray, its flags and the replicas are those of
raglane, whose lane this is: the same engines, store, questions and answers. What is left out is raglane's own work:
coalesced hops, its batcher, branches side by side. Where there was a choice, it is the one in favour of this server:

* a hybrid search is one call, not two, and the search stage fuses what it finds, so that fewer passages travel;
* forward passes run in a thread, and the event loop stays free;
* the generator is not batched, since its engine takes requests one by one: a timer would only delay them;
* `max_ongoing_requests` is as in raglane's profiles; Serve's default of 5 would never fill a batch.
"""

# No `from __future__ import annotations` here: Serve reads build_app's annotation at run time.

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
        if config.batch_wait_timeout_s is not None:
            self.embed.set_batch_wait_timeout_s(config.batch_wait_timeout_s)

    @serve.batch  # type: ignore[untyped-decorator]
    async def embed(self, requests: list[tuple[str, ...]]) -> list[Vector]:
        return await self._engine.embed(requests)


class Retriever:
    """The search stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Searching(config)
        if config.batch_wait_timeout_s is not None:
            self.search.set_batch_wait_timeout_s(config.batch_wait_timeout_s)

    @serve.batch  # type: ignore[untyped-decorator]
    async def search(self, searches: list[HybridSearch]) -> list[list[Passage]]:
        return await self._engine.search(searches)


class Reranker:
    """The rerank stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Scoring(config)
        if config.batch_wait_timeout_s is not None:
            self.rerank.set_batch_wait_timeout_s(config.batch_wait_timeout_s)

    @serve.batch  # type: ignore[untyped-decorator]
    async def rerank(self, requests: list[RerankRequest]) -> list[Vector]:
        return await self._engine.rerank(requests)


class Generator:
    """The generate stage."""

    def __init__(self, config: BaselineConfig) -> None:
        self._engine = Answering(config)

    async def generate(self, request: GenerateRequest) -> Written:
        return await self._engine.generate(request)


def build_app(args: BaselineConfig) -> Application:
    """Build the application: `import_path: benchmarks.baselines.plain_serve:build_app` in a Serve config file."""
    stages = [serve.deployment(stage).bind(args) for stage in (Embedder, Retriever, Reranker, Generator)]
    return serve.deployment(Ingress).bind(args, *stages)
