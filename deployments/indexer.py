"""The Indexer: the only writer of every collection. Documents become chunks, sentences, vectors and rows."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
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
from deployments.errors import AlreadyExists, InvalidInput, NotFound
from deployments.evidence import quantise
from deployments.ingestion.chunking import Chunk, Chunker, ChunkingConfig
from deployments.ingestion.sentences import split_sentences
from deployments.models import tokenizer_file
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document cut up: its chunks, the sentence spans of each chunk, and what stands before each when embedded."""

    document: Document
    heading: str
    chunks: tuple[Chunk, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]

    def passages(self) -> list[str]:
        """What is embedded for each chunk: the title gives a chunk its topic."""
        return [self.heading + chunk.text for chunk in self.chunks]

    def sentences(self) -> list[str]:
        """Every sentence of every chunk, in order."""
        pairs = zip(self.chunks, self.spans, strict=True)
        return [chunk.text[start:end] for chunk, spans in pairs for start, end in spans]


class Preparer:
    """Cuts documents into chunks and sentences. Synchronous; meant for a thread."""

    def __init__(self, config: IndexerConfig, tokenizer: str) -> None:
        self._chunker = Chunker(config.chunking, tokenizer)
        self._max_sentence_chars = config.max_sentence_chars

    def prepare(self, documents: Sequence[Document]) -> list[Prepared | RejectedDocument]:
        """One result per document, in order."""
        return [self._prepare_one(document) for document in documents]

    def _prepare_one(self, document: Document) -> Prepared | RejectedDocument:
        if not document.id or len(document.id) > 512:
            return RejectedDocument(document.id, "the id is empty or longer than 512 characters")
        if not document.text.strip():
            return RejectedDocument(document.id, "the text is empty")
        try:
            chunks = tuple(self._chunker.split(document))
        except InvalidInput as error:
            return RejectedDocument(document.id, error.message)
        spans = tuple(tuple(split_sentences(chunk.text, self._max_sentence_chars)) for chunk in chunks)
        return Prepared(document, self._chunker.heading(document.title), chunks, spans)


class Indexer:
    """The deployment; it must have exactly one replica, because one table has exactly one writer."""

    def __init__(self, config: IndexerConfig, store: StoreConfig, model: str, embedder: Any) -> None:
        from deployments.remote import RemoteEmbedder

        self._config = config
        self._handle = embedder
        self._embedder = RemoteEmbedder(embedder)
        self._tables = Tables(store)
        self._preparer = Preparer(config, str(tokenizer_file(model)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._embed_slots = asyncio.Semaphore(config.embed_calls_in_flight)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._commits: defaultdict[str, int] = defaultdict(int)
        self._model: EmbeddingModel | None = None

    async def describe(self) -> EmbeddingModel:
        """The model whose vectors are written; answers when the stage and its embedder are ready."""
        if self._model is None:
            model: EmbeddingModel = await self._handle.describe.remote()
            self._model = model
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
        rows = _rows(prepared, passages, sentences, model)
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


def _rows(prepared: Sequence[Prepared], passages: Vector, sentences: Vector, model: EmbeddingModel) -> Any:
    """The Arrow table of one commit; `passages` and `sentences` in the order of the prepared documents."""
    import pyarrow as pa

    quantised = quantise(sentences)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns: dict[str, list[Any]] = defaultdict(list)
    sentence_at = 0
    for item in prepared:
        metadata = json.dumps(dict(item.document.metadata))
        for position, (chunk, spans) in enumerate(zip(item.chunks, item.spans, strict=True)):
            columns["id"].append(f"{item.document.id}:{position}")
            columns["document_id"].append(item.document.id)
            columns["position"].append(position)
            columns["text"].append(chunk.text)
            columns["title"].append(item.document.title)
            columns["source"].append(item.document.source)
            columns["metadata"].append(metadata)
            columns["start"].append(chunk.start)
            columns["end"].append(chunk.end)
            columns["num_tokens"].append(chunk.num_tokens)
            columns["indexed_at"].append(now)
            columns["sentence_spans"].append([offset for span in spans for offset in span])
            columns["sentence_vectors"].append(quantised[sentence_at : sentence_at + len(spans)].tobytes())
            sentence_at += len(spans)
    schema = table_schema(model.dim, model.name)
    flat = pa.array(np.ascontiguousarray(passages).ravel())
    arrays = [
        pa.FixedSizeListArray.from_arrays(flat, model.dim)
        if field.name == "vector"
        else pa.ExtensionArray.from_storage(field.type, pa.array(columns["metadata"], field.type.storage_type))
        if field.name == "metadata"
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
