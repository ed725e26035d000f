"""CollectionWriter: the one writer of every collection, and the reads that go with managing them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from deployments.contracts import CollectionInfo, Document, EmbeddingModel, StoredDocument
from deployments.errors import AlreadyExists, NotFound
from deployments.indexes import IndexesConfig, TableIndexes, Upkeep
from deployments.rows import Batch
from deployments.store import (
    StoreConfig,
    Tables,
    add_missing_columns,
    check_collection_name,
    check_indexed_with,
    indexed_with,
    record_fields,
    sql_literal,
    table_schema,
    where_ids,
)

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class CollectionWriter:
    """Writes to a collection follow one another, and a write that has begun goes on to its end.

    LanceDB finishes a commit whose caller was cancelled. If the caller's lock were let go all the same, a client that
    tries again would write beside its own first attempt and leave every chunk twice. Maintenance is a write like any
    other: LanceDB lets one of the two fail where they meet.
    """

    def __init__(self, store: StoreConfig, indexes: IndexesConfig) -> None:
        self._tables = Tables(store)
        self._indexes = TableIndexes(indexes)
        self._upkeep = Upkeep(indexes, self._maintain)
        # A lock lives as long as somebody holds or awaits it: names that clients make up must not pile up.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()

    async def catch_up(self) -> None:
        """Plan the maintenance that an earlier writer may have left undone, for every collection."""
        for name in await self._tables.names():
            self._upkeep.catch_up(name)

    def on_their_way(self, collection: str) -> AbstractContextManager[None]:
        """Documents are being prepared for the collection inside the block, so that it is not quiet."""
        return self._upkeep.on_their_way(collection)

    async def close(self) -> None:
        """Plan no more maintenance, and return when all that was begun has come to its end."""
        await self._upkeep.close()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def write(self, collection: str, batch: Batch, model: EmbeddingModel) -> int:
        """Commit the batch in place of its documents' old chunks; returns how many documents were replaced.

        Creates the collection if need be. Raises IndexMismatch when it holds another model's vectors.
        """
        return await self._to_the_end(collection, self._write(collection, batch, model))

    async def delete_document(self, collection: str, document_id: str) -> int:
        """Remove a document; returns how many chunks it had. Raises NotFound."""
        check_collection_name(collection)
        return await self._to_the_end(collection, self._delete_document(collection, document_id))

    async def create(self, name: str, model: EmbeddingModel) -> CollectionInfo:
        """Make an empty collection. Raises AlreadyExists."""
        check_collection_name(name)
        return await self._to_the_end(name, self._create_new(name, model))

    async def delete(self, name: str) -> None:
        """Remove a collection and all that is in it. Raises NotFound."""
        check_collection_name(name)
        await self._to_the_end(name, self._drop(name))

    async def get_document(self, collection: str, document_id: str) -> StoredDocument:
        """The document put together again from its chunks. Raises NotFound."""
        columns = ["position", "text", "title", "source", "metadata", "start", "end", "indexed_at"]
        condition = f"document_id = {sql_literal(document_id)}"

        async def read(table: Any) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = (await table.query().where(condition).select(columns).to_arrow()).to_pylist()
            return rows

        rows = sorted(await self._tables.use(collection, read), key=lambda row: row["position"])
        if not rows:
            raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
        first = rows[0]
        metadata = json.loads(first["metadata"] or "{}")
        document = Document(document_id, _joined(rows), first["title"], first["source"], metadata)
        return StoredDocument(document, len(rows), first["indexed_at"])

    async def list(self) -> list[CollectionInfo]:
        """Every collection, by name; one that is deleted meanwhile is left out."""
        found = []
        for name in sorted(await self._tables.names()):
            try:
                found.append(await self._tables.use(name, partial(self._describe, name)))
            except NotFound:
                continue
        return found

    async def coverage(self) -> dict[str, dict[str, float]]:
        """For each collection and each of its indexes, the share of the chunks that the index covers."""
        covered = {}
        for name in await self._tables.names():
            try:
                covered[name] = await self._tables.use(name, self._indexes.coverage)
            except NotFound:
                continue
        return covered

    async def _to_the_end(self, collection: str, work: Coroutine[Any, Any, Value]) -> Value:
        """Run one piece of work on a collection, alone, whatever becomes of the caller."""
        lock = self._locks.setdefault(collection, asyncio.Lock())

        async def alone() -> Value:
            async with lock:
                return await work

        task = asyncio.create_task(alone())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _write(self, collection: str, batch: Batch, model: EmbeddingModel) -> int:
        if collection not in await self._tables.names():
            await self._create_table(collection, model)
        theirs = where_ids("document_id", list(batch.document_ids))

        async def prepare(table: Any) -> int:
            check_indexed_with(collection, await table.schema(), model.name, model.dim)
            await add_missing_columns(table)
            # Before the rows: a field that is known too early finds nothing, one that is known too late is refused.
            await record_fields(table, batch.fields)
            return int(await table.count_rows(f"position = 0 AND {theirs}"))

        replaced = await self._tables.use(collection, prepare)
        table = await self._tables.table(collection)
        if replaced:
            # One commit: no reader ever sees a document without chunks, or with the chunks of two versions.
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            await merge.when_not_matched_by_source_delete(theirs).use_index(False).execute(batch.rows)
        else:
            await table.add(batch.rows)
        await self._committed(collection, table)
        return replaced

    async def _delete_document(self, collection: str, document_id: str) -> int:
        condition = f"document_id = {sql_literal(document_id)}"

        async def count(table: Any) -> int:
            return int(await table.count_rows(condition))

        num_chunks = await self._tables.use(collection, count)
        if num_chunks == 0:
            raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
        table = await self._tables.table(collection)
        await table.delete(condition)
        await self._committed(collection, table)
        return num_chunks

    async def _create_new(self, name: str, model: EmbeddingModel) -> CollectionInfo:
        if name in await self._tables.names():
            raise AlreadyExists(f"collection {name!r} is there already")
        await self._create_table(name, model)
        return await self._tables.use(name, partial(self._describe, name))

    async def _create_table(self, name: str, model: EmbeddingModel) -> None:
        schema = table_schema(model.dim, model.name, created_ms=time.time_ns() // 1_000_000)
        table = await (await self._tables.connection()).create_table(name, schema=schema)
        self._tables.forget(name)
        try:
            # Already now: it is the index that says what a word is, also for the chunks that it does not cover yet.
            await self._indexes.make(table)
        except Exception:
            logger.exception("making the indexes of %r failed; it is tried again later", name)
            self._upkeep.committed(name, behind=True)

    async def _drop(self, name: str) -> None:
        if name not in await self._tables.names():
            raise NotFound(f"there is no collection {name!r}")
        await (await self._tables.connection()).drop_table(name)
        # Only now: a read beside the deletion may have opened the table once more.
        self._tables.forget(name)

    async def _committed(self, collection: str, table: Any) -> None:
        try:
            behind = await self._indexes.is_behind(table)
        except Exception:
            # The rows are written; that must not look like a failure because of what comes after.
            logger.exception("how much the indexes of %r cover can't be told", collection)
            behind = True
        self._upkeep.committed(collection, behind)

    async def _maintain(self, collection: str) -> None:
        await self._to_the_end(collection, self._tables.use(collection, self._indexes.maintain))

    async def _describe(self, name: str, table: Any) -> CollectionInfo:
        model, dim = indexed_with(await table.schema())
        num_documents = int(await table.count_rows("position = 0"))
        coverage = await self._indexes.coverage(table)
        return CollectionInfo(name, num_documents, int(await table.count_rows()), model, dim, coverage)


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
