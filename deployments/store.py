"""The store: where LanceDB keeps a collection, what its table looks like, and how a filter becomes its SQL."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from deployments.errors import IndexMismatch, InvalidInput, NotFound
from deployments.section import Section

Value = TypeVar("Value")

COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PASSAGE_COLUMNS = ("id", "document_id", "text", "title", "source", "metadata", "start", "end", "num_tokens")

_FILTERABLE_COLUMNS = frozenset({"id", "document_id", "source", "title"})
_METADATA_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ne": "!="}


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
        description="Readers see a commit at most this many seconds later. 0 checks at every read: free on a local "
        "disk, one listing per search on an object store.",
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


def table_schema(dim: int, embedding_model: str) -> Any:
    """The Arrow schema of a collection's table: one row per chunk.

    `vector` is float32 and L2-normalised. `sentence_spans` holds start and end of each sentence as character offsets
    in `text`, flattened; `sentence_vectors` their int8 vectors, row after row (`deployments.evidence`).
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("position", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("title", pa.string()),
            pa.field("source", pa.string()),
            pa.field("metadata", pa.json_()),
            pa.field("start", pa.int64()),
            pa.field("end", pa.int64()),
            pa.field("num_tokens", pa.int32()),
            pa.field("indexed_at", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("sentence_spans", pa.list_(pa.int32())),
            pa.field("sentence_vectors", pa.binary()),
        ],
        metadata={"raglane.embedding_model": embedding_model, "raglane.dim": str(dim)},
    )


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


def where_clause(filter_: Mapping[str, Any] | None) -> str | None:
    """The filter of a SearchRequest as SQL; None when it filters nothing. Every condition must hold.

    Raises InvalidInput that names the field it can't use.
    """
    conditions = [condition for field, wanted in (filter_ or {}).items() for condition in _conditions(field, wanted)]
    return " AND ".join(conditions) or None


def _conditions(field: str, wanted: Any) -> list[str]:
    if isinstance(wanted, Mapping):
        unknown = set(wanted) - set(_COMPARISONS)
        if unknown or not wanted:
            raise InvalidInput(
                f"filter field {field!r}: unknown comparison {sorted(map(str, unknown))}; use {', '.join(_COMPARISONS)}"
            )
        return [_condition(field, _COMPARISONS[name], value) for name, value in wanted.items()]
    if isinstance(wanted, list | tuple):
        if not wanted:
            raise InvalidInput(f"filter field {field!r}: the list of values is empty")
        return ["(" + " OR ".join(_condition(field, "=", value) for value in wanted) + ")"]
    return [_condition(field, "=", wanted)]


def _condition(field: str, comparison: str, value: Any) -> str:
    """One comparison as SQL. A field that is missing, or holds another kind of value, satisfies no comparison."""
    try:
        literal = sql_literal(value)
    except InvalidInput as error:
        raise InvalidInput(f"filter field {field!r}: {error.message}") from None
    if field in _FILTERABLE_COLUMNS:
        if not isinstance(value, str):
            raise InvalidInput(f"filter field {field!r} holds text; compare it with a string")
        return f"{field} {comparison} {literal}"
    key = field.removeprefix("metadata.")
    if not _METADATA_KEY.fullmatch(key):
        raise InvalidInput(f"filter field {field!r} is not a field name; use letters, digits, '_', '-' and '.'")
    # The typed json_get_ functions fail the whole query at the first row whose value is of another kind; the value's
    # JSON text never does.
    path = f'$."{key}"'
    as_json = f"json_extract(metadata, {sql_literal(path)})"
    if isinstance(value, bool):
        return f"({as_json} IN ('true', 'false') AND {as_json} {comparison} '{literal}')"
    if isinstance(value, int | float):
        return f"TRY_CAST({as_json} AS DOUBLE) {comparison} {literal}"
    if comparison == "=":
        return f"{as_json} = {sql_literal(json.dumps(value, ensure_ascii=False))}"
    return f"({as_json} LIKE '\"%' AND json_get_string(metadata, {sql_literal(key)}) {comparison} {literal})"
