"""The search stage: passages near a vector, from LanceDB, many callers' vectors in one scan."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deployments.autoscaling import ItemCount
from deployments.contracts import Call, Outcome, Passage, SearchRequest, StageTiming, Timed
from deployments.errors import DeadlineExceeded, EngineFailed, InvalidInput, StageError
from deployments.section import Section, load_engine
from deployments.store import PASSAGE_COLUMNS, StoreConfig, Tables, check_indexed_with, where_clause

logger = logging.getLogger(__name__)


class RetrieverConfig(Section):
    """How collections are searched."""

    engine: str = Field(
        "deployments.retriever:LanceSearch", description="Import path module:Class of the search engine."
    )
    nprobes: int = Field(20, ge=1, description="Partitions that an approximate vector index visits.")
    refine_factor: int | None = Field(
        None, ge=1, description="An approximate search rescores k × this many rows exactly; null: no rescoring."
    )


class RetrieverSettings(Section):
    """What a search engine is built from."""

    retriever: RetrieverConfig
    store: StoreConfig


class LanceSearch:
    """Vector search over LanceDB tables. Searches of one collection that arrive together share one scan."""

    def __init__(self, settings: RetrieverSettings) -> None:
        self._config = settings.retriever
        self._tables = Tables(settings.store)

    async def search(self, requests: Sequence[SearchRequest]) -> list[list[Passage] | StageError]:
        """For each request, in order, at most k passages by descending cosine similarity (ties by id), or its error."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        results: list[list[Passage] | StageError] = [[] for _ in requests]
        for index, request in enumerate(requests):
            filter_key = json.dumps(dict(request.filter or {}), sort_keys=True, default=repr)
            groups[request.collection, request.k, request.mode, len(request.vector), filter_key].append(index)
        answers = await asyncio.gather(*(self._search_group([requests[i] for i in g]) for g in groups.values()))
        for members, answer in zip(groups.values(), answers, strict=True):
            for index, result in zip(members, answer, strict=True):
                results[index] = result
        return results

    async def _search_group(self, requests: Sequence[SearchRequest]) -> Sequence[list[Passage] | StageError]:
        first = requests[0]
        try:
            if first.mode != "vector":
                raise InvalidInput(f"search mode {first.mode!r} is not available; use 'vector'")
            return await self._scan(first.collection, requests)
        except StageError as error:
            return [error] * len(requests)
        except Exception:
            logger.exception("searching %r failed", first.collection)
            return [EngineFailed(f"searching collection {first.collection!r} failed; the log has the details")] * len(
                requests
            )

    async def _scan(self, collection: str, requests: Sequence[SearchRequest]) -> list[list[Passage] | StageError]:
        where = where_clause(requests[0].filter)

        async def scan(table: Any) -> list[dict[str, Any]]:
            check_indexed_with(collection, await table.schema(), "", len(requests[0].vector))
            return await self._rows(table, requests, where)

        found: list[list[Passage]] = [[] for _ in requests]
        for row in await self._tables.use(collection, scan):
            found[row.get("query_index", 0)].append(_passage(row))
        return [sorted(passages, key=lambda p: (-p.score, p.id)) for passages in found]

    async def _rows(self, table: Any, requests: Sequence[SearchRequest], where: str | None) -> list[dict[str, Any]]:
        vectors = [np.asarray(request.vector, dtype=np.float32) for request in requests]
        query = table.query().nearest_to(vectors if len(vectors) > 1 else vectors[0])
        # Stored and query vectors are unit vectors, so the dot product is the cosine; it is the cheaper one.
        query = query.distance_type("dot").limit(requests[0].k).nprobes(self._config.nprobes)
        if self._config.refine_factor is not None:
            query = query.refine_factor(self._config.refine_factor)
        if where is not None:
            query = query.where(where)
        columns = [*PASSAGE_COLUMNS, "_distance"]
        result = await query.select([*columns, "query_index"] if len(vectors) > 1 else columns).to_arrow()
        rows: list[dict[str, Any]] = result.to_pylist()
        return rows


def _passage(row: dict[str, Any]) -> Passage:
    return Passage(
        id=row["id"],
        document_id=row["document_id"],
        text=row["text"],
        # LanceDB's dot distance is 1 − dot product.
        score=1.0 - row["_distance"],
        title=row["title"],
        source=row["source"],
        metadata=json.loads(row["metadata"] or "{}"),
        start=row["start"],
        end=row["end"],
        num_tokens=row["num_tokens"],
    )


class Retriever:
    """The deployment. Reads are snapshots, so replicas need not know of each other or of the writer."""

    def __init__(self, config: RetrieverConfig, store: StoreConfig) -> None:
        self._engine = load_engine(config.engine, RetrieverSettings(retriever=config, store=store))
        self._items = ItemCount()

    async def search(self, calls: Sequence[Call[SearchRequest]]) -> list[Outcome[list[Passage]]]:
        """One outcome per call, in order."""
        alive = [index for index, call in enumerate(calls) if call.budget_s > 0]
        late: Outcome[list[Passage]] = Outcome(error=DeadlineExceeded("no time was left for the search"))
        outcomes = [late] * len(calls)
        if not alive:
            return outcomes
        started = time.perf_counter()
        try:
            async with asyncio.timeout(max(calls[index].budget_s for index in alive)):
                with self._items.of(alive):
                    results = await self._engine.search([calls[index].request for index in alive])
        except TimeoutError:
            return outcomes
        timing = StageTiming(compute_s=time.perf_counter() - started, batch_size=len(alive))
        for index, result in zip(alive, results, strict=True):
            failed = isinstance(result, StageError)
            outcomes[index] = Outcome(error=result) if failed else Outcome(result=Timed(result, timing))
        return outcomes

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The items in hand, for the policy `deployments.autoscaling:scale_by_items`."""
        return self._items.stats()

    async def describe(self) -> str:
        """Answers when the stage is ready."""
        return type(self._engine).__name__
