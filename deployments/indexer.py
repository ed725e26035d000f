"""The Indexer: takes documents in. They are cut up, embedded, and written by the one writer of every collection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from deployments.contracts import (
    CollectionInfo,
    Document,
    EmbeddingModel,
    EmbedRequest,
    IndexReport,
    RejectedDocument,
    StoredDocument,
    Vector,
)
from deployments.errors import EngineFailed
from deployments.ingestion.chunking import ChunkingConfig
from deployments.ingestion.preparation import Prepared, Preparer
from deployments.models import tokenizer_file
from deployments.rows import table_rows
from deployments.section import Section
from deployments.store import StoreConfig, check_collection_name
from deployments.writer import CollectionWriter


class IndexerConfig(Section):
    """How documents are cut, embedded and written."""

    chunking: ChunkingConfig = Field(default_factory=ChunkingConfig, description="How documents are cut into passages.")
    max_sentence_chars: int = Field(600, ge=50, description="Longer sentences are cut in several.")
    texts_per_embed_call: int = Field(128, ge=1, description="Texts that travel to the embedder in one request.")
    embed_calls_in_flight: int = Field(4, ge=1, description="Requests to the embedder at once; they run as bulk.")
    commits_per_optimize: int = Field(32, ge=1, description="The table is compacted after this many commits.")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Documents that could be embedded, with (n, dim) float32 vectors in their order, and those that could not."""

    prepared: list[Prepared]
    passages: Vector
    sentences: Vector
    num_tokens: int
    rejected: list[RejectedDocument]


class Indexer:
    """The deployment; it must have exactly one replica, because one table has exactly one writer."""

    def __init__(self, config: IndexerConfig, store: StoreConfig, model: str, embedder: Any) -> None:
        from deployments.remote import RemoteEmbedder

        self._config = config
        self._embedder = RemoteEmbedder(embedder)
        self._writer = CollectionWriter(store, config.commits_per_optimize)
        self._preparer = Preparer(config.chunking, config.max_sentence_chars, str(tokenizer_file(model)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._embed_slots = asyncio.Semaphore(config.embed_calls_in_flight)
        self._model: EmbeddingModel | None = None

    async def describe(self) -> EmbeddingModel:
        """The model whose vectors are written; answers when the stage and its embedder are ready."""
        if self._model is None:
            self._model = await self._embedder.describe()
        return self._model

    async def index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport:
        """Index documents in one commit, creating the collection if need be. The same id again replaces.

        A document that can't be indexed is reported as rejected; the others are written all the same.
        """
        check_collection_name(collection)
        model = await self.describe()
        unique, rejected = _without_duplicates(documents)
        results = await self._in_thread(self._preparer.prepare, unique)
        rejected.extend(result for result in results if isinstance(result, RejectedDocument))
        embedded = await self._embed([result for result in results if isinstance(result, Prepared)], budget_s)
        rejected.extend(embedded.rejected)
        ids = [prepared.document.id for prepared in embedded.prepared]
        if not ids:
            return IndexReport((), 0, 0, 0, 0, tuple(rejected))
        rows = await self._in_thread(table_rows, embedded.prepared, embedded.passages, embedded.sentences, model)
        return IndexReport(
            indexed=tuple(ids),
            replaced=await self._writer.write(collection, ids, rows, model),
            num_chunks=len(embedded.passages),
            num_sentences=len(embedded.sentences),
            num_tokens=embedded.num_tokens,
            rejected=tuple(rejected),
        )

    async def get_document(self, collection: str, document_id: str) -> StoredDocument:
        """The document put together again from its chunks. Raises NotFound."""
        return await self._writer.get_document(collection, document_id)

    async def delete_document(self, collection: str, document_id: str) -> int:
        """Remove a document; returns how many chunks it had. Raises NotFound."""
        return await self._writer.delete_document(collection, document_id)

    async def create_collection(self, name: str) -> CollectionInfo:
        """Make an empty collection. Raises AlreadyExists."""
        return await self._writer.create(name, await self.describe())

    async def list_collections(self) -> list[CollectionInfo]:
        """Every collection, by name."""
        return await self._writer.list()

    async def delete_collection(self, name: str) -> None:
        """Remove a collection and all that is in it. Raises NotFound."""
        await self._writer.delete(name)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _embed(self, prepared: list[Prepared], budget_s: float) -> Embedded:
        """Embed the documents together; if the engine fails on one, halves are tried until it is found and rejected."""
        try:
            passages, passage_tokens = await self._vectors([text for p in prepared for text in p.passages()], budget_s)
            sentences, sentence_tokens = await self._vectors(
                [text for p in prepared for text in p.sentences()], budget_s
            )
        except EngineFailed as error:
            if len(prepared) == 1:
                return Embedded([], _NOTHING, _NOTHING, 0, [RejectedDocument(prepared[0].document.id, error.message)])
            middle = len(prepared) // 2
            halves = [await self._embed(half, budget_s) for half in (prepared[:middle], prepared[middle:])]
            return _joined(*halves)
        return Embedded(prepared, passages, sentences, passage_tokens + sentence_tokens, [])

    async def _vectors(self, texts: Sequence[str], budget_s: float) -> tuple[Vector, int]:
        """(len(texts), dim) float32 in the order of the texts, and their tokens."""
        size = self._config.texts_per_embed_call

        async def embed(batch: tuple[str, ...]) -> tuple[Vector, int]:
            async with self._embed_slots:
                request = EmbedRequest(batch, role="passage", priority="bulk")
                embedded = (await self._embedder.embed(request, budget_s)).value
            return embedded.vectors, embedded.num_tokens

        tasks = [asyncio.create_task(embed(tuple(texts[at : at + size]))) for at in range(0, len(texts), size)]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            # After the first error the others would only be load that nobody waits for.
            for task in tasks:
                task.cancel()
        vectors = np.concatenate([vectors for vectors, _ in parts]) if parts else _NOTHING
        return vectors, sum(tokens for _, tokens in parts)


_NOTHING: Vector = np.zeros((0, 0), dtype=np.float32)


def _joined(first: Embedded, second: Embedded) -> Embedded:
    """Two halves as one; a half that was rejected whole has no vectors to join."""
    halves = [half for half in (first, second) if half.prepared]
    return Embedded(
        [*first.prepared, *second.prepared],
        np.concatenate([half.passages for half in halves]) if halves else _NOTHING,
        np.concatenate([half.sentences for half in halves]) if halves else _NOTHING,
        first.num_tokens + second.num_tokens,
        [*first.rejected, *second.rejected],
    )


def _without_duplicates(documents: Sequence[Document]) -> tuple[list[Document], list[RejectedDocument]]:
    seen: set[str] = set()
    unique: list[Document] = []
    rejected: list[RejectedDocument] = []
    for document in documents:
        if document.id in seen:
            rejected.append(RejectedDocument(document.id, "the same id stands twice in one request"))
        else:
            seen.add(document.id)
            unique.append(document)
    return unique, rejected
