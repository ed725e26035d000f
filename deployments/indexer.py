"""The Indexer: takes documents in. They are cut up, embedded, and written by the one writer of every collection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from deployments.errors import EngineFailed, Overloaded
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.indexes import IndexesConfig
from deployments.ingestion.chunking import ChunkingConfig
from deployments.ingestion.preparation import Prepared, Preparer
from deployments.models import tokenizer_file
from deployments.rows import Vectors, batch_of
from deployments.store import StoreConfig, check_collection_name
from deployments.tally import BusyClock
from deployments.telemetry import INDEX
from deployments.together import all_together
from deployments.writer import CollectionWriter

# Requests to index that are in hand at once; more are refused. Each holds its documents in memory, and one of Serve's
# slots: of those (`max_ongoing_requests`) so many must be left that everything else is answered meanwhile.
MAX_INDEXINGS = 64
# Of these so many are worked on; the others would only wait for the embedder, with all that was prepared for them.
INDEXED_AT_ONCE = 16


class IndexerConfig(IndexesConfig):
    """How documents are cut, embedded, written and indexed."""

    chunking: ChunkingConfig = Field(default_factory=ChunkingConfig, description="How documents are cut into passages.")
    max_sentence_chars: int = Field(600, ge=50, description="Longer sentences are cut in several.")
    text_neighbours: int = Field(
        1,
        ge=0,
        le=8,
        description="Passages before and after a passage whose words text search counts for it as well: what it is "
        "about often stands next to it. Costs their room in the text index.",
    )
    texts_per_embed_call: int = Field(128, ge=1, description="Texts that travel to the embedder in one request.")
    embed_calls_in_flight: int = Field(4, ge=1, description="Requests to the embedder at once; they run as bulk.")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Documents that could be embedded, with their vectors, and those that could not."""

    prepared: list[Prepared]
    vectors: Vectors
    num_tokens: int
    rejected: list[RejectedDocument]


class Indexer:
    """The deployment; it must have exactly one replica, because one table has exactly one writer."""

    def __init__(
        self,
        config: IndexerConfig,
        store: StoreConfig,
        model: str,
        embedder: Any,
        telemetry: TelemetryConfig = ENABLED,
    ) -> None:
        from deployments.remote import RemoteEmbedder

        self._config = config
        self._embedder = RemoteEmbedder(embedder, model=model)
        self._writer = CollectionWriter(store, config)
        self._preparer = Preparer(config.chunking, config.max_sentence_chars, str(tokenizer_file(model)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._embed_slots = asyncio.Semaphore(config.embed_calls_in_flight)
        self._index_slots = asyncio.Semaphore(INDEXED_AT_ONCE)
        self._num_to_index = 0
        self._model: EmbeddingModel | None = None
        self._catching_up = asyncio.Lock()
        self._has_caught_up = False
        self._busy = BusyClock(INDEX)
        export(telemetry, INDEX, self._busy.read, self._embedder.read)

    async def describe(self) -> EmbeddingModel:
        """The model whose vectors are written; answers when the stage and its embedder are ready."""
        if self._model is None:
            self._model = await self._embedder.describe()
        await self._catch_up()
        return self._model

    async def index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport:
        """Index documents in one commit, creating the collection if need be. The same id again replaces.

        A document that can't be indexed is reported as rejected; the others are written all the same. Raises
        Overloaded where MAX_INDEXINGS requests are being worked on or wait already.
        """
        check_collection_name(collection)
        expires_at = time.monotonic() + budget_s
        with self._counted(), self._writer.on_their_way(collection), self._busy:
            async with self._index_slots:
                return await self._index(collection, documents, expires_at - time.monotonic())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One more request to index, inside the block. Raises Overloaded where there are too many."""
        if self._num_to_index >= MAX_INDEXINGS:
            raise Overloaded(f"{self._num_to_index} requests to index documents are in hand; try again later")
        self._num_to_index += 1
        try:
            yield
        finally:
            self._num_to_index -= 1

    async def _index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport:
        model = await self.describe()
        unique, rejected = _without_duplicates(documents)
        results = await self._in_thread(self._preparer.prepare, unique)
        rejected.extend(result for result in results if isinstance(result, RejectedDocument))
        embedded = await self._embed([result for result in results if isinstance(result, Prepared)], budget_s)
        rejected.extend(embedded.rejected)
        if not embedded.prepared:
            return IndexReport((), 0, 0, 0, 0, tuple(rejected))
        neighbours = self._config.text_neighbours
        batch = await self._in_thread(batch_of, embedded.prepared, embedded.vectors, model, neighbours)
        return IndexReport(
            indexed=batch.document_ids,
            replaced=await self._writer.write(collection, batch, model),
            num_chunks=len(embedded.vectors.passages),
            num_sentences=len(embedded.vectors.sentences),
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

    async def coverage(self) -> dict[str, dict[str, float]]:
        """For each collection and each of its indexes, the share of the chunks that the index covers."""
        covered = await self._writer.coverage()
        # Ingresses ask for it all the time: without them a restarted Indexer would wait for somebody to write.
        await self._catch_up()
        return covered

    async def close(self) -> None:
        """Return when every write and all maintenance that was begun has come to its end; no more is planned."""
        await self._writer.close()

    async def __del__(self) -> None:
        """Serve awaits this when the last request is over, for as long as the deployment's grace period lasts."""
        # Serve calls it also where __init__ failed.
        if hasattr(self, "_writer"):
            await self.close()

    async def _catch_up(self) -> None:
        """Plan what an earlier Indexer may have left undone; only the first call that succeeds does anything."""
        async with self._catching_up:
            if not self._has_caught_up:
                await self._writer.catch_up()
                self._has_caught_up = True

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _embed(self, prepared: list[Prepared], budget_s: float) -> Embedded:
        """Embed the documents together; if the engine fails on one, halves are tried until it is found and rejected."""
        passages = [text for item in prepared for text in item.passages()]
        sentences = [text for item in prepared for text in item.sentences()]
        titles = [item.document.title for item in prepared if item.has_title]
        try:
            # Together: a short document is one call, and of a long list only the last call is not full.
            vectors, num_tokens = await self._vectors([*passages, *sentences, *titles], budget_s)
        except EngineFailed as error:
            if len(prepared) == 1:
                return Embedded([], _NO_VECTORS, 0, [RejectedDocument(prepared[0].document.id, error.message)])
            middle = len(prepared) // 2
            halves = [await self._embed(half, budget_s) for half in (prepared[:middle], prepared[middle:])]
            return _joined(*halves)
        parts = np.split(vectors, [len(passages), len(passages) + len(sentences)])
        return Embedded(prepared, Vectors(*parts), num_tokens, [])

    async def _vectors(self, texts: Sequence[str], budget_s: float) -> tuple[Vector, int]:
        """(len(texts), dim) float32 in the order of the texts, and their tokens."""
        size = self._config.texts_per_embed_call

        async def embed(batch: tuple[str, ...]) -> tuple[Vector, int]:
            async with self._embed_slots:
                request = EmbedRequest(batch, role="passage", priority="bulk")
                embedded = (await self._embedder.embed(request, budget_s)).value
            return embedded.vectors, embedded.num_tokens

        parts = await all_together([embed(tuple(texts[at : at + size])) for at in range(0, len(texts), size)])
        vectors = np.concatenate([vectors for vectors, _ in parts]) if parts else _NOTHING
        return vectors, sum(tokens for _, tokens in parts)


_NOTHING: Vector = np.zeros((0, 0), dtype=np.float32)
_NO_VECTORS = Vectors(_NOTHING, _NOTHING, _NOTHING)


def _joined(first: Embedded, second: Embedded) -> Embedded:
    """Two halves as one."""
    a, b = first.vectors, second.vectors
    return Embedded(
        [*first.prepared, *second.prepared],
        Vectors(_stacked(a.passages, b.passages), _stacked(a.sentences, b.sentences), _stacked(a.titles, b.titles)),
        first.num_tokens + second.num_tokens,
        [*first.rejected, *second.rejected],
    )


def _stacked(first: Vector, second: Vector) -> Vector:
    """Two matrices as one; one without rows has no columns either."""
    return np.concatenate([part for part in (first, second) if len(part)]) if len(first) or len(second) else _NOTHING


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
