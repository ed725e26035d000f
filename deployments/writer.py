"""CollectionWriter: the one writer of every collection, and the reads that go with managing them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from deployments.contracts import CollectionInfo, Document, EmbeddingModel, StoredDocument
from deployments.errors import AlreadyExists, NotFound
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

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class CollectionWriter:
    """Writes to a collection follow one another, and a write that has begun goes on to its end.

    LanceDB finishes a commit whose caller was cancelled. If the caller's lock were let go all the same, a client that
    tries again would write beside its own first attempt and leave every chunk twice.
    """

    def __init__(self, store: StoreConfig, commits_per_optimize: int) -> None:
        self._tables = Tables(store)
        self._commits_per_optimize = commits_per_optimize
        self._commits: defaultdict[str, int] = defaultdict(int)
        # A lock lives as long as somebody holds or awaits it: names that clients make up must not pile up.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._running: set[asyncio.Task[Any]] = set()

    async def write(self, collection: str, document_ids: Sequence[str], rows: Any, model: EmbeddingModel) -> int:
        """Commit `rows` in place of the documents' old ones; returns how many documents were replaced.

        Creates the collection if need be. Raises IndexMismatch when it holds another model's vectors.
        """
        return await self._to_the_end(collection, self._write(collection, document_ids, rows, model))

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
                found.append(await self._tables.use(name, partial(_describe, name)))
            except NotFound:
                continue
        return found

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

    async def _write(self, collection: str, document_ids: Sequence[str], rows: Any, model: EmbeddingModel) -> int:
        if collection not in await self._tables.names():
            await self._create_table(collection, model)
        theirs = where_ids("document_id", list(document_ids))

        async def count_replaced(table: Any) -> int:
            check_indexed_with(collection, await table.schema(), model.name, model.dim)
            return int(await table.count_rows(f"position = 0 AND {theirs}"))

        replaced = await self._tables.use(collection, count_replaced)
        table = await self._tables.table(collection)
        if replaced:
            # One commit: no reader ever sees a document without chunks, or with the chunks of two versions.
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            await merge.when_not_matched_by_source_delete(theirs).use_index(False).execute(rows)
        else:
            await table.add(rows)
        await self._maintain(collection, table)
        return replaced

    async def _delete_document(self, collection: str, document_id: str) -> int:
        condition = f"document_id = {sql_literal(document_id)}"

        async def count(table: Any) -> int:
            return int(await table.count_rows(condition))

        num_chunks = await self._tables.use(collection, count)
        if num_chunks == 0:
            raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
        await (await self._tables.table(collection)).delete(condition)
        return num_chunks

    async def _create_new(self, name: str, model: EmbeddingModel) -> CollectionInfo:
        if name in await self._tables.names():
            raise AlreadyExists(f"collection {name!r} is there already")
        await self._create_table(name, model)
        return CollectionInfo(name, 0, 0, model.name, model.dim)

    async def _create_table(self, name: str, model: EmbeddingModel) -> None:
        connection = await self._tables.connection()
        await connection.create_table(name, schema=table_schema(model.dim, model.name))
        self._tables.forget(name)

    async def _drop(self, name: str) -> None:
        if name not in await self._tables.names():
            raise NotFound(f"there is no collection {name!r}")
        await (await self._tables.connection()).drop_table(name)
        # Only now: a read beside the deletion may have opened the table once more.
        self._tables.forget(name)

    async def _maintain(self, collection: str, table: Any) -> None:
        self._commits[collection] += 1
        if self._commits[collection] % self._commits_per_optimize:
            return
        try:
            await table.optimize()
        except RuntimeError:
            # The data is written; a compaction that lost a race is simply tried again later.
            logger.exception("compacting %r failed", collection)


async def _describe(name: str, table: Any) -> CollectionInfo:
    model, dim = indexed_with(await table.schema())
    num_documents = int(await table.count_rows("position = 0"))
    return CollectionInfo(name, num_documents, int(await table.count_rows()), model, dim)


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
