"""The Indexer: the only writer of every collection. Documents become chunks, sentences, vectors and rows."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from deployments.errors import AlreadyExists, NotFound
from deployments.ingestion.chunking import ChunkingConfig
from deployments.ingestion.preparation import Prepared, Preparer
from deployments.models import tokenizer_file
from deployments.rows import table_rows
from deployments.section import Section
from deployments.store import (
    StoreConfig,
    Tables,
    check_collection_name,
    check_indexed_with,
    indexed_with,
    sql_literal,
    table_schema,
    where_ids,
)

logger = logging.getLogger(__name__)


class IndexerConfig(Section):
    """How documents are cut, embedded and written."""

    chunking: ChunkingConfig = Field(default_factory=ChunkingConfig, description="How documents are cut into passages.")
    max_sentence_chars: int = Field(600, ge=50, description="Longer sentences are cut in several.")
    texts_per_embed_call: int = Field(128, ge=1, description="Texts that travel to the embedder in one request.")
    embed_calls_in_flight: int = Field(4, ge=1, description="Requests to the embedder at once; they run as bulk.")
    commits_per_optimize: int = Field(32, ge=1, description="The table is compacted after this many commits.")


class Indexer:
    """The deployment; it must have exactly one replica, because one table has exactly one writer."""

    def __init__(self, config: IndexerConfig, store: StoreConfig, model: str, embedder: Any) -> None:
        from deployments.remote import RemoteEmbedder

        self._config = config
        self._embedder = RemoteEmbedder(embedder)
        self._tables = Tables(store)
        self._preparer = Preparer(config.chunking, config.max_sentence_chars, str(tokenizer_file(model)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._embed_slots = asyncio.Semaphore(config.embed_calls_in_flight)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._commits: defaultdict[str, int] = defaultdict(int)
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
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(self._thread, self._preparer.prepare, unique)
        prepared = [result for result in results if isinstance(result, Prepared)]
        rejected.extend(result for result in results if isinstance(result, RejectedDocument))
        if not prepared:
            return IndexReport((), 0, 0, 0, 0, tuple(rejected))
        passages, passage_tokens = await self._embed([text for p in prepared for text in p.passages()], budget_s)
        sentences, sentence_tokens = await self._embed([text for p in prepared for text in p.sentences()], budget_s)
        rows = table_rows(prepared, passages, sentences, model)
        async with self._locks[collection]:
            replaced = await self._write(collection, [p.document.id for p in prepared], rows, model)
        return IndexReport(
            indexed=tuple(p.document.id for p in prepared),
            replaced=replaced,
            num_chunks=len(passages),
            num_sentences=len(sentences),
            num_tokens=passage_tokens + sentence_tokens,
            rejected=tuple(rejected),
        )

    async def get_document(self, collection: str, document_id: str) -> StoredDocument:
        """The document put together again from its chunks. Raises NotFound."""
        table = await self._tables.table(collection)
        columns = ["position", "text", "title", "source", "metadata", "start", "end", "indexed_at"]
        query = table.query().where(f"document_id = {sql_literal(document_id)}").select(columns)
        rows = sorted((await query.to_arrow()).to_pylist(), key=lambda row: row["position"])
        if not rows:
            raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
        first = rows[0]
        metadata = json.loads(first["metadata"] or "{}")
        document = Document(document_id, _joined(rows), first["title"], first["source"], metadata)
        return StoredDocument(document, len(rows), first["indexed_at"])

    async def delete_document(self, collection: str, document_id: str) -> int:
        """Remove a document; returns how many chunks it had. Raises NotFound."""
        condition = f"document_id = {sql_literal(document_id)}"
        async with self._locks[check_collection_name(collection)]:
            table = await self._tables.table(collection)
            count = int(await table.count_rows(condition))
            if count == 0:
                raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
            await table.delete(condition)
        return count

    async def create_collection(self, name: str) -> CollectionInfo:
        """Make an empty collection. Raises AlreadyExists."""
        check_collection_name(name)
        model = await self.describe()
        async with self._locks[name]:
            if name in await self._tables.names():
                raise AlreadyExists(f"collection {name!r} is there already")
            await self._create(name, model)
        return CollectionInfo(name, 0, 0, model.name, model.dim)

    async def list_collections(self) -> list[CollectionInfo]:
        """Every collection, by name."""
        return [await self._describe_collection(name) for name in sorted(await self._tables.names())]

    async def delete_collection(self, name: str) -> None:
        """Remove a collection and all that is in it. Raises NotFound."""
        async with self._locks[check_collection_name(name)]:
            if name not in await self._tables.names():
                raise NotFound(f"there is no collection {name!r}")
            self._tables.forget(name)
            await (await self._tables.connection()).drop_table(name)

    async def _describe_collection(self, name: str) -> CollectionInfo:
        table = await self._tables.table(name)
        model, dim = indexed_with(await table.schema())
        num_documents = await table.count_rows("position = 0")
        return CollectionInfo(name, num_documents, await table.count_rows(), model, dim)

    async def _embed(self, texts: Sequence[str], budget_s: float) -> tuple[Vector, int]:
        """(len(texts), dim) float32 in the order of the texts, and their tokens."""
        size = self._config.texts_per_embed_call
        calls = [tuple(texts[start : start + size]) for start in range(0, len(texts), size)]

        async def embed(batch: tuple[str, ...]) -> tuple[Vector, int]:
            async with self._embed_slots:
                request = EmbedRequest(batch, role="passage", priority="bulk")
                embedded = (await self._embedder.embed(request, budget_s)).value
            return embedded.vectors, embedded.num_tokens

        parts = await asyncio.gather(*(embed(batch) for batch in calls))
        return np.concatenate([vectors for vectors, _ in parts]), sum(tokens for _, tokens in parts)

    async def _write(self, collection: str, document_ids: list[str], rows: Any, model: EmbeddingModel) -> int:
        """Commit the rows, taking the place of the documents' old ones; returns how many documents were replaced."""
        try:
            table = await self._tables.table(collection)
        except NotFound:
            table = await self._create(collection, model)
        check_indexed_with(collection, await table.schema(), model.name, model.dim)
        theirs = where_ids("document_id", document_ids)
        replaced = int(await table.count_rows(f"position = 0 AND {theirs}"))
        if replaced:
            # One commit: no reader ever sees a document without chunks, or with the chunks of two versions.
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            await merge.when_not_matched_by_source_delete(theirs).use_index(False).execute(rows)
        else:
            await table.add(rows)
        await self._maintain(collection, table)
        return replaced

    async def _create(self, collection: str, model: EmbeddingModel) -> Any:
        connection = await self._tables.connection()
        self._tables.forget(collection)
        await connection.create_table(collection, schema=table_schema(model.dim, model.name))
        return await self._tables.table(collection)

    async def _maintain(self, collection: str, table: Any) -> None:
        self._commits[collection] += 1
        if self._commits[collection] % self._config.commits_per_optimize:
            return
        try:
            await table.optimize()
        except RuntimeError:
            # The data is written; a compaction that lost a race is simply tried again later.
            logger.exception("compacting %r failed", collection)


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


def _joined(rows: Sequence[dict[str, Any]]) -> str:
    """The text of a document from its chunks; what lay between two chunks was white space."""
    text = ""
    reached = 0
    for row in rows:
        if row["start"] > reached and text:
            text += "\n"
        text += row["text"][max(0, reached - row["start"]) :]
        reached = max(reached, row["end"])
    return text
