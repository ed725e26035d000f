"""The store: where LanceDB keeps a collection, what its table looks like, and what the table's schema remembers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from deployments.errors import IndexMismatch, InvalidInput, NotFound
from deployments.section import Section

Value = TypeVar("Value")

COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PASSAGE_COLUMNS = ("id", "document_id", "text", "title", "source", "metadata", "start", "end", "num_tokens", "position")
# Title and text as one column, so that BM25 counts their words together and gives one score.
TEXT_COLUMN = "search_text"
TITLE_VECTOR_COLUMN = "title_vector"

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FIELDS_KEY = b"raglane.fields"
# The record is part of every version of the table, so it must stay small.
_MAX_RECORDED_FIELDS = 1000


class StoreConfig(Section):
    """Where the collections live and how fresh their readers are."""

    uri: str = Field("~/.raglane/lancedb", description="A local folder, or an s3://, gs:// or az:// location.")
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of the object store (region, endpoint, credentials), as LanceDB takes them.",
    )
    read_consistency_s: float = Field(
        0.0,
        ge=0,
        description="Readers see a commit at most this many seconds later: what was added is found from then on, what "
        "was deleted or replaced is not. 0 checks at every read: free on a local disk, a few listings per search on an "
        "object store.",
    )

    def location(self) -> str:
        """The URI with `~` expanded."""
        return self.uri if "://" in self.uri else str(Path(self.uri).expanduser().absolute())


def check_collection_name(name: str) -> str:
    """Return the name or raise InvalidInput that says what a name looks like."""
    if not COLLECTION_NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} can't name a collection; use 1 to 63 letters, digits, '_' or '-', none of the last two first"
        )
    return name


class Tables:
    """Open tables by collection, kept open because opening one costs more than a search."""

    def __init__(self, config: StoreConfig) -> None:
        # Adding rows to a vector index warns of every partition that gets none. This is read when lancedb is imported.
        os.environ.setdefault("LANCEDB_LOG", "warn,lance::index::vector::builder=error")
        # Imported while the replica starts: the first request should not wait for it.
        import lancedb

        self._connect = lancedb.connect_async
        self._config = config
        self._connection: Any = None
        self._tables: dict[str, Any] = {}

    async def connection(self) -> Any:
        """The one connection to the store, opened on first use; its tables refresh as the config says."""
        if self._connection is None:
            self._connection = await self._connect(
                self._config.location(),
                storage_options=self._config.storage_options or None,
                read_consistency_interval=timedelta(seconds=self._config.read_consistency_s),
            )
        return self._connection

    async def table(self, collection: str) -> Any:
        """The collection's `AsyncTable`; raises NotFound where there is none."""
        if collection in self._tables:
            return self._tables[collection]
        check_collection_name(collection)
        connection = await self.connection()
        try:
            table = await connection.open_table(collection)
        except ValueError as error:
            # LanceDB reports a missing table as a ValueError; anything else about the store must not be hidden by it.
            if "not found" not in str(error).lower():
                raise
            raise NotFound(f"there is no collection {collection!r}; create it or ingest documents into it") from None
        self._tables[collection] = table
        return table

    async def use(self, collection: str, action: Callable[[Any], Awaitable[Value]]) -> Value:
        """The result of `action` on the collection's table.

        When it fails, it is tried once more on a table opened afresh: the collection may have been deleted, or made
        anew under the same name, since its table was opened. Raises NotFound where there is no collection.
        """
        opened_before = collection in self._tables
        table = await self.table(collection)
        try:
            return await action(table)
        except (RuntimeError, ValueError, OSError):
            # What LanceDB raises for a table whose files are gone, depending on where the read finds out.
            if not opened_before:
                raise
            self.forget(collection)
            return await action(await self.table(collection))

    def forget(self, collection: str) -> None:
        """Drop the open table, so that a collection that was deleted or made anew is opened again."""
        self._tables.pop(collection, None)

    async def names(self) -> set[str]:
        """The names of all collections."""
        connection = await self.connection()
        names: set[str] = set()
        page_token: str | None = None
        while True:
            page = await connection.list_tables(page_token=page_token, limit=1000)
            names.update(page.tables)
            page_token = page.page_token
            if not page_token:
                return names


def table_schema(dim: int, embedding_model: str, created_ms: int | None = None) -> Any:
    """The Arrow schema of a collection's table: one row per chunk. A table is made with `created_ms`, rows go without.

    `vector` is float32 and L2-normalised. `sentence_spans` holds start and end of each sentence as character offsets
    in `text`, flattened; `sentence_vectors` their int8 vectors, row after row; `title_vector` that of the title, empty
    without one (`deployments.evidence`). `search_text` is what text search reads.
    """
    import pyarrow as pa

    remembered = {"raglane.embedding_model": embedding_model, "raglane.dim": str(dim)}
    fields = None
    if created_ms is not None:
        remembered["raglane.created_ms"] = str(created_ms)
        fields = {_FIELDS_KEY: b"[]"}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("position", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("title", pa.string()),
            pa.field("source", pa.string()),
            pa.field("metadata", pa.json_(), metadata=fields),
            pa.field("start", pa.int64()),
            pa.field("end", pa.int64()),
            pa.field("num_tokens", pa.int32()),
            pa.field("indexed_at", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("sentence_spans", pa.list_(pa.int32())),
            pa.field("sentence_vectors", pa.binary()),
            pa.field(TITLE_VECTOR_COLUMN, pa.binary()),
            pa.field(TEXT_COLUMN, pa.string()),
        ],
        metadata=remembered,
    )


async def add_missing_columns(table: Any) -> None:
    """Give a table that was made before text search, or before titles had vectors, the columns for them."""
    import pyarrow as pa

    present = (await table.schema()).names
    if TEXT_COLUMN not in present:
        await table.add_columns({TEXT_COLUMN: "title || chr(10) || text"})
    if TITLE_VECTOR_COLUMN not in present:
        await table.add_columns(pa.field(TITLE_VECTOR_COLUMN, pa.binary()))


def known_fields(schema: Any) -> frozenset[str] | None:
    """The metadata keys that the collection's documents have, or had; None where there is no record of them."""
    fields = json.loads((schema.field("metadata").metadata or {}).get(_FIELDS_KEY, b"null"))
    return None if fields is None else frozenset(fields)


async def record_fields(table: Any, fields: frozenset[str]) -> None:
    """Add metadata keys to the record, in a commit of their own, which is made only for a key that is new.

    Beyond a thousand keys the record is given up: it no longer tells a typing error from a field.
    """
    known = known_fields(await table.schema())
    if known is None or fields <= known:
        return
    together = sorted(known | fields)
    record = json.dumps(together if len(together) <= _MAX_RECORDED_FIELDS else None)
    await table.update_field_metadata({"path": "metadata", "metadata": {_FIELDS_KEY.decode(): record}})


def collection_version(schema: Any, table_version: int) -> int:
    """The version of a collection: it grows with every commit, and with the making of a new table of the same name.

    A table counts its commits from 1, whatever stood there before it; the moment it was made goes before that count.
    """
    return int(made_at_ms(schema) * 2**20 + table_version)


def made_at_ms(schema: Any) -> int:
    """When the table was made, in milliseconds since 1970; 0 where it was made before tables knew."""
    return int((schema.metadata or {}).get(b"raglane.created_ms", b"0"))


def indexed_with(schema: Any) -> tuple[str, int]:
    """The embedding model and dimension a table was made with, from its schema."""
    metadata = schema.metadata or {}
    return metadata.get(b"raglane.embedding_model", b"").decode(), int(metadata.get(b"raglane.dim", b"0"))


def check_indexed_with(collection: str, schema: Any, embedding_model: str, dim: int) -> None:
    """Raise IndexMismatch when the collection's vectors come from another model."""
    model, its_dim = indexed_with(schema)
    if its_dim != dim or (embedding_model and model != embedding_model):
        raise IndexMismatch(
            f"collection {collection!r} was indexed with {model!r} ({its_dim} dimensions), but the embedder is "
            f"{embedding_model or 'another model'!r} ({dim} dimensions); delete the collection and ingest it again"
        )


def sql_literal(value: Any) -> str:
    """A scalar as a SQL literal; raises InvalidInput for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return json.dumps(value)
    if isinstance(value, str) and not _SURROGATE.search(value):
        return "'" + value.replace("'", "''") + "'"
    raise InvalidInput(f"{value!r} is not a valid string, a finite number or a boolean")


def where_ids(column: str, ids: list[str]) -> str:
    """A condition that holds for rows whose `column` is one of `ids`."""
    return f"{column} IN ({', '.join(sql_literal(value) for value in ids)})"
