"""The metrics that raglane exports through Ray: names, labels, units. Ray puts `ray_` in front of each name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ray.serve.metrics import Counter, Gauge

Cache = Literal["embedding", "answer"]


class CacheMetrics:
    """One cache of this replica: `raglane_cache_lookups_total` by result, and `raglane_cache_bytes`."""

    def __init__(self, cache: Cache) -> None:
        self._lookups = Counter(
            "raglane_cache_lookups",
            description="Lookups in a cache: hit, or miss.",
            tag_keys=("cache", "result"),
        )
        self._bytes = Gauge("raglane_cache_bytes", description="What a cache holds, in bytes.", tag_keys=("cache",))
        self._cache = cache
        self._reported = {"hit": 0, "miss": 0}

    def report(self, hits: int, misses: int, num_bytes: int) -> None:
        """Export the counts, which are those since the start."""
        for result, count in (("hit", hits), ("miss", misses)):
            new = count - self._reported[result]
            if new > 0:
                self._lookups.inc(new, {"cache": self._cache, "result": result})
                self._reported[result] = count
        self._bytes.set(num_bytes, {"cache": self._cache})


class IndexMetrics:
    """`raglane_index_coverage`: the share of a collection's chunks that an index covers, 0 to 1."""

    def __init__(self) -> None:
        self._coverage = Gauge(
            "raglane_index_coverage",
            description="Share of a collection's chunks that an index covers.",
            tag_keys=("collection", "index"),
        )

    def report(self, coverage: Mapping[str, Mapping[str, float]]) -> None:
        """Export the coverage of every index of every collection."""
        for collection, indexes in coverage.items():
            for index, share in indexes.items():
                self._coverage.set(share, {"collection": collection, "index": index})
