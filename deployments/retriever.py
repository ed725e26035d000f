"""The search stage: passages near a vector, or with the words of a text, from LanceDB; what can share a scan does."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from deployments.autoscaling import ItemCount
from deployments.contracts import Call, Outcome, Passage, SearchRequest, SearchResult, StageTiming, Timed
from deployments.errors import DeadlineExceeded, EngineFailed, IndexMismatch, InvalidInput, StageError
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.filters import no_such_field, unknown_field, where_clause
from deployments.indexes import rows_per_partition
from deployments.passages import ROW_ID, PassageRows
from deployments.replica import settle
from deployments.section import Section, load_engine
from deployments.store import (
    TEXT_COLUMN,
    StoreConfig,
    Tables,
    check_indexed_with,
    collection_version,
    known_fields,
)
from deployments.tally import BusyClock
from deployments.telemetry import Reading

Request = TypeVar("Request")
Value = TypeVar("Value")

# Commits come apart by more than a search takes, so the second search finds what the first was too early or late for.
_MAX_SEARCHES = 3

logger = logging.getLogger(__name__)


class RetrieverConfig(Section):
    """How collections are searched."""

    engine: str = Field(
        "deployments.retriever:LanceSearch", description="Import path module:Class of the search engine."
    )
    nprobes: int = Field(
        50,
        ge=1,
        description="Partitions that an approximate vector index visits. Where they hold fewer than k passages that "
        "meet the filter, all passages are compared.",
    )
    refine_factor: int | None = Field(
        None, ge=1, description="An approximate search rescores k × this many rows exactly; null: no rescoring."
    )
    passage_cache_bytes: int = Field(
        256 * 2**20, ge=0, description="Texts of passages kept in memory by each replica, in bytes."
    )


class RetrieverSettings(Section):
    """What a search engine is built from."""

    retriever: RetrieverConfig
    store: StoreConfig


class LanceSearch:
    """Vector and text search over LanceDB tables.

    Vector searches of one collection that arrive together share one scan. A text search is a query of its own, which
    runs beside the others; the same text asked for several times is searched once.
    """

    def __init__(self, settings: RetrieverSettings) -> None:
        self._config = settings.retriever
        self._tables = Tables(settings.store)
        self._rows = PassageRows(settings.retriever.passage_cache_bytes)
        from lancedb.query import MatchQuery

        self._match_query = MatchQuery

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult | StageError]:
        """For each request, in order, at most k passages by descending score (ties by id), or its error.

        The score is the cosine, or BM25 over title and text.
        """
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[_what_is_shared(request)].append(index)
        answers = await asyncio.gather(*(self._search_group([requests[i] for i in g]) for g in groups.values()))
        results: dict[int, SearchResult | StageError] = {}
        for members, answer in zip(groups.values(), answers, strict=True):
            results.update(zip(members, answer, strict=True))
        return [results[index] for index in range(len(requests))]

    async def versions(self, collections: Sequence[str]) -> list[int | StageError]:
        """For each collection, in order, the version that a search would read now, or its error."""
        names = list(dict.fromkeys(collections))
        read = await asyncio.gather(*(self._version_or_error(name) for name in names))
        versions = dict(zip(names, read, strict=True))
        return [versions[name] for name in collections]

    async def _version_or_error(self, collection: str) -> int | StageError:
        async def version(table: Any) -> int:
            return collection_version(await table.schema(), await table.version())

        try:
            return await self._tables.use(collection, version)
        except StageError as error:
            return error
        except Exception:
            logger.exception("reading the version of %r failed", collection)
            return _failed(collection)

    async def _search_group(self, requests: Sequence[SearchRequest]) -> Sequence[SearchResult | StageError]:
        first = requests[0]
        try:
            _check_complete(first)
            if first.kind == "text":
                return [await self._tables.use(first.collection, partial(self._match, first))] * len(requests)
            return await self._tables.use(first.collection, partial(self._scan, requests))
        except StageError as error:
            return [error] * len(requests)
        except Exception:
            logger.exception("searching %r failed", first.collection)
            return [_failed(first.collection)] * len(requests)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of this engine."""
        yield from self._rows.read()

    async def _match(self, request: SearchRequest, table: Any) -> SearchResult:
        schema, version, where = await _begin(table, request)
        # A MatchQuery has no syntax: whatever the text holds is words. Half a surrogate pair would not even travel.
        text = request.text.encode("utf-8", "replace").decode()
        query = table.query().nearest_to_text(self._match_query(text, TEXT_COLUMN)).limit(request.k)
        if where is not None:
            query = query.where(where)
        query = query.select(["_score"]).with_row_id()
        hits, rows = await self._with_rows(request.collection, table, schema, lambda: _read(query, "_score"))
        return _result([rows[row].scored(score) for row, score in zip(hits.rows, hits.values, strict=True)], version)

    async def _scan(self, requests: Sequence[SearchRequest], table: Any) -> list[SearchResult]:
        schema, version, where = await _begin(table, requests[0])
        hits, rows = await self._with_rows(
            requests[0].collection, table, schema, lambda: self._nearest(table, requests, where)
        )
        found: list[list[Passage]] = [[] for _ in requests]
        for query, row, distance in zip(hits.queries, hits.rows, hits.values, strict=True):
            # LanceDB's dot distance is 1 − dot product.
            found[query].append(rows[row].scored(1.0 - distance))
        return [_result(passages, version) for passages in found]

    async def _with_rows(
        self, collection: str, table: Any, schema: Any, search: Callable[[], Awaitable[_Hits]]
    ) -> tuple[_Hits, dict[int, Passage]]:
        """What `search` finds and, by address, what stands there."""
        for _ in range(_MAX_SEARCHES):
            hits = await search()
            rows = await self._rows.get(collection, table, schema, hits.rows)
            if all(row in rows for row in hits.rows):
                return hits, rows
            # A commit took a row away between finding and reading it; what replaced it is to be found now.
        return hits.among(rows), rows

    async def _nearest(self, table: Any, requests: Sequence[SearchRequest], where: str | None) -> _Hits:
        query = self._vector_query(table, requests)
        if where is not None:
            query = query.where(where)
        hits = await _read(query, "_distance")
        if len(hits.rows) < len(requests) * requests[0].k and await _has_partitions(table):
            # What is wanted may lie in other partitions; more of them in a query means that all are always visited.
            hits = await _read(query.bypass_vector_index(), "_distance")
        return hits

    def _vector_query(self, table: Any, requests: Sequence[SearchRequest]) -> Any:
        vectors = [np.asarray(request.vector, dtype=np.float32) for request in requests]
        query = table.query().nearest_to(vectors if len(vectors) > 1 else vectors[0])
        # Stored and query vectors are unit vectors, so the dot product is the cosine; it is the cheaper one.
        query = query.distance_type("dot").limit(requests[0].k).nprobes(self._config.nprobes)
        if self._config.refine_factor is not None:
            query = query.refine_factor(self._config.refine_factor)
        return query.select(["_distance", "query_index"] if len(vectors) > 1 else ["_distance"]).with_row_id()


@dataclass(frozen=True, slots=True)
class _Hits:
    """What a query found, in parallel lists: the addresses of the rows, their scores or distances, and of several
    queries at once the one that found them."""

    rows: list[int]
    values: list[float]
    queries: list[int]

    def among(self, rows: Collection[int]) -> _Hits:
        """Those whose address is one of `rows`."""
        kept = [index for index, row in enumerate(self.rows) if row in rows]
        return _Hits(
            [self.rows[index] for index in kept],
            [self.values[index] for index in kept],
            [self.queries[index] for index in kept],
        )


async def _read(query: Any, value: str) -> _Hits:
    found = await query.to_arrow()
    rows: list[int] = found[ROW_ID].to_numpy().tolist()
    queries = found["query_index"].to_numpy().tolist() if "query_index" in found.column_names else [0] * len(rows)
    return _Hits(rows, found[value].to_numpy().tolist(), queries)


async def _has_partitions(table: Any) -> bool:
    """Whether a search may leave vectors out."""
    for index in await table.list_indices():
        if "vector" in index.columns:
            rows_each = rows_per_partition(index)
            return rows_each is None or (index.num_indexed_rows or 0) > rows_each
    return False


def _what_is_shared(request: SearchRequest) -> tuple[Any, ...]:
    """Requests for which this is the same are answered by one query."""
    if request.kind == "text":
        asked: Any = request.text
    else:
        asked = None if request.vector is None else (len(request.vector), request.embedding_model)
    filter_key = json.dumps(dict(request.filter or {}), sort_keys=True, default=repr)
    return request.collection, request.k, request.kind, asked, filter_key


def _check_complete(request: SearchRequest) -> None:
    if request.kind == "text" and not request.text:
        raise InvalidInput("a text search needs a text")
    if request.kind == "vector" and request.vector is None:
        raise InvalidInput("a vector search needs a vector")


async def _begin(table: Any, request: SearchRequest) -> tuple[Any, int, str | None]:
    """The schema and the version that are about to be read, and the filter as SQL. Raises what is wrong with the
    request."""
    where = where_clause(request.filter)
    schema = await table.schema()
    # Read before the query: passages that are newer than the version they are filed under are merely found again.
    version = collection_version(schema, await table.version())
    _check_searchable(request, schema)
    await _check_fields(request, table, schema)
    return schema, version, where


def _check_searchable(request: SearchRequest, schema: Any) -> None:
    if request.kind == "vector" and request.vector is not None:
        check_indexed_with(request.collection, schema, request.embedding_model, len(request.vector))
    if request.kind == "text" and TEXT_COLUMN not in schema.names:
        raise IndexMismatch(
            f"collection {request.collection!r} was made before there was text search; it can be searched by text "
            "when the indexer has started again, or when any document is ingested into it"
        )


async def _check_fields(request: SearchRequest, table: Any, schema: Any) -> None:
    known = known_fields(schema)
    unknown = None if known is None else unknown_field(request.filter, known)
    # An empty collection has no fields yet: its first documents may be on their way.
    if known is not None and unknown is not None and await table.count_rows():
        raise no_such_field(unknown, known, request.collection)


def _failed(collection: str) -> EngineFailed:
    return EngineFailed(f"searching collection {collection!r} failed; the log has the details")


def _result(passages: list[Passage], version: int) -> SearchResult:
    return SearchResult(tuple(sorted(passages, key=lambda passage: (-passage.score, passage.id))), version)


class Retriever:
    """The deployment. Reads are snapshots, so replicas need not know of each other or of the writer."""

    def __init__(self, config: RetrieverConfig, store: StoreConfig, telemetry: TelemetryConfig = ENABLED) -> None:
        self._engine = load_engine(config.engine, RetrieverSettings(retriever=config, store=store))
        self._items = ItemCount()
        self._busy = BusyClock("search")
        # An engine of one's own need not count anything.
        engines_own = [self._engine.read] if hasattr(self._engine, "read") else []
        export(telemetry, "search", self._busy.read, *engines_own)
        settle()

    async def search(self, calls: Sequence[Call[SearchRequest]]) -> list[Outcome[SearchResult]]:
        """One outcome per call, in order."""
        with self._items.of(calls), self._busy:
            return await _answer(calls, self._engine.search)

    async def version(self, calls: Sequence[Call[str]]) -> list[Outcome[int]]:
        """The version of each named collection, one outcome per call, in order."""
        with self._busy:
            return await _answer(calls, self._engine.versions)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The items in hand, for the policy `deployments.autoscaling:scale_by_items`."""
        return self._items.stats()

    async def describe(self) -> str:
        """Answers when the stage is ready."""
        return type(self._engine).__name__


async def _answer(
    calls: Sequence[Call[Request]], work: Callable[[list[Request]], Awaitable[Sequence[Value | StageError]]]
) -> list[Outcome[Value]]:
    """Do the calls that have time left together; the longest of their budgets bounds them all."""
    alive = [index for index, call in enumerate(calls) if call.budget_s > 0]
    late: Outcome[Value] = Outcome(error=DeadlineExceeded("no time was left for the search"))
    outcomes = [late] * len(calls)
    if not alive:
        return outcomes
    started = time.perf_counter()
    try:
        async with asyncio.timeout(max(calls[index].budget_s for index in alive)):
            results = await work([calls[index].request for index in alive])
    except TimeoutError:
        return outcomes
    timing = StageTiming(compute_s=time.perf_counter() - started, batch_size=len(alive))
    for index, result in zip(alive, results, strict=True):
        if isinstance(result, StageError):
            outcomes[index] = Outcome(error=result)
        else:
            outcomes[index] = Outcome(result=Timed(result, timing))
    return outcomes
