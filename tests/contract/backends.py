"""Who is put through the contract suites: the fakes, and the real stages behind their deployments and adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deployments.contracts import (
    Document,
    EmbedRequest,
    Embeds,
    Generates,
    Indexes,
    Passage,
    Reranks,
    Searches,
    SearchRequest,
    SearchResult,
    Vector,
)
from deployments.embedder import Embedder, EmbedderConfig
from deployments.generator import Generator, GeneratorConfig
from deployments.hop import HopConfig
from deployments.indexer import Indexer, IndexerConfig
from deployments.ingestion.chunking import ChunkingConfig
from deployments.remote import (
    RemoteAnswerer,
    RemoteEmbedder,
    RemoteGenerator,
    RemoteIndexer,
    RemoteReranker,
    RemoteRetriever,
)
from deployments.reranker import Reranker, RerankerConfig
from deployments.retriever import Retriever, RetrieverConfig
from deployments.store import StoreConfig
from tests.fakes import FakeEmbedder, FakeGenerator, FakeIndexer, FakeReranker, FakeRetriever, FakeStore
from tests.handles import LocalHandle

BUDGET_S = 60.0
NEVER_S = 1e6


@dataclass(frozen=True, slots=True)
class Backend:
    """The five verbs over one store."""

    embedder: Embeds
    retriever: Searches
    reranker: Reranks
    generator: Generates
    answerer: Generates
    indexer: Indexes

    async def embed(self, *texts: str) -> Vector:
        """(len(texts), dim) vectors of passages."""
        return (await self.embedder.embed(EmbedRequest(texts, "passage"), BUDGET_S)).value.vectors

    async def fill(self, collection: str, *documents: Document) -> None:
        """Index documents, all of which must be taken."""
        report = await self.indexer.index(collection, documents, BUDGET_S)
        assert report.rejected == ()

    async def search(self, request: SearchRequest) -> list[Passage]:
        return list((await self.find(request)).passages)

    async def find(self, request: SearchRequest) -> SearchResult:
        """The passages and the version that they were read from."""
        return (await self.retriever.search(request, BUDGET_S)).value

    async def version(self, collection: str = "docs") -> int:
        return (await self.retriever.version(collection, BUDGET_S)).value


def fake_backend() -> Backend:
    store, embedder = FakeStore(), FakeEmbedder()
    generator = FakeGenerator()
    return Backend(embedder, FakeRetriever(store), FakeReranker(), generator, generator, FakeIndexer(store, embedder))


def real_backend(embedder: Embedder, config: EmbedderConfig, folder: Path) -> Backend:
    """The stages of the local profile around an embedder that runs already; their data lies in `folder`."""
    store, hop, handle = StoreConfig(uri=str(folder)), HopConfig(), LocalHandle(embedder)
    generator = LocalHandle(Generator(GeneratorConfig(), store, handle))
    # Small chunks, so that documents of a few sentences have several. Maintenance would change scores, versions and
    # rows in the middle of a test that takes longer than usual.
    indexing = IndexerConfig(chunking=ChunkingConfig(chunk_tokens=48), maintain_after_s=NEVER_S)
    return Backend(
        embedder=RemoteEmbedder(handle),
        retriever=RemoteRetriever(LocalHandle(Retriever(RetrieverConfig(), store)), hop),
        reranker=RemoteReranker(LocalHandle(Reranker(RerankerConfig(), store, handle)), hop),
        generator=RemoteGenerator(generator),
        answerer=RemoteAnswerer(generator, hop),
        indexer=RemoteIndexer(LocalHandle(Indexer(indexing, store, config.model, handle))),
    )
