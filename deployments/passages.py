"""Passages by the row they stand in: a search asks LanceDB for rows and scores alone, and reads each row's text once.

A row never changes: what replaces a document stands in rows of its own, and an address that a table has given up is not
given to another row. What a search finds is therefore known by its address for as long as the table exists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deployments.byte_lru import ByteLru
from deployments.contracts import Passage
from deployments.store import PASSAGE_COLUMNS, made_at_ms
from deployments.telemetry import CACHE_BYTES, CACHE_LOOKUPS, Reading

ROW_ID = "_rowid"

# Of a row beside its strings: its numbers, the metadata's parsed values and the objects around them all.
_ROW_BYTES = 1024

# Name of the collection, when its table was made, address of the row in it.
_Address = tuple[str, int, int]


class PassageRows:
    """Reads passages and keeps as many as `max_bytes` hold. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._cache: ByteLru[_Address, Passage] = ByteLru(max_bytes)
        self._hits = 0
        self._misses = 0

    async def get(self, collection: str, table: Any, schema: Any, addresses: Sequence[int]) -> dict[int, Passage]:
        """The rows by address, all with score 0; one that was deleted or moved since it was found is missing."""
        made_ms = made_at_ms(schema)
        known: dict[int, Passage] = {}
        missing = []
        for address in dict.fromkeys(addresses):
            passage = self._cache.get((collection, made_ms, address))
            if passage is None:
                missing.append(address)
            else:
                known[address] = passage
        self._hits += len(known)
        self._misses += len(missing)
        if missing:
            columns = (
                await table.take_row_ids(missing).select([*PASSAGE_COLUMNS]).with_row_id().to_arrow()
            ).to_pylist()
            for values in columns:
                address = values[ROW_ID]
                known[address] = _passage(values)
                # Without the moment at which it was made, a table can't be told from its successor of the same name.
                if made_ms:
                    self._cache.put((collection, made_ms, address), known[address], _num_bytes(values))
        return known

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the cache."""
        yield CACHE_LOOKUPS, ("passage", "hit"), self._hits
        yield CACHE_LOOKUPS, ("passage", "miss"), self._misses
        yield CACHE_BYTES, ("passage",), self._cache.num_bytes


def _passage(values: Mapping[str, Any]) -> Passage:
    return Passage(
        id=values["id"],
        document_id=values["document_id"],
        text=values["text"],
        score=0.0,
        title=values["title"],
        source=values["source"],
        metadata=json.loads(values["metadata"] or "{}"),
        start=values["start"],
        end=values["end"],
        num_tokens=values["num_tokens"],
        position=values["position"],
    )


def _num_bytes(values: Mapping[str, Any]) -> int:
    texts = (value for value in values.values() if isinstance(value, str))
    return _ROW_BYTES + sum(map(sys.getsizeof, texts))
