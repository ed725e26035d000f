"""The indexes of a collection's table: which there are, when each is made, and what keeps them covering its rows."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from deployments.errors import NotFound
from deployments.section import Section
from deployments.store import TEXT_COLUMN, add_missing_columns

logger = logging.getLogger(__name__)

Language = Literal[
    "Arabic",
    "Danish",
    "Dutch",
    "English",
    "Finnish",
    "French",
    "German",
    "Greek",
    "Hungarian",
    "Italian",
    "Norwegian",
    "Portuguese",
    "Romanian",
    "Russian",
    "Spanish",
    "Swedish",
    "Tamil",
    "Turkish",
]

TEXT_INDEX = "text"
VECTOR_INDEX = "vector"
# Columns that rows are looked up by; their indexes have their names.
_LOOKUP_COLUMNS = ("document_id", "id")
_MAX_RETRY_S = 300.0


class TextIndexConfig(Section):
    """How text becomes the words that text search counts. A change takes effect at the next maintenance, which makes
    the index anew."""

    base_tokenizer: Literal["simple", "whitespace", "icu"] = Field(
        "simple",
        description="Where words end: `simple` at white space and punctuation, `whitespace` at white space alone, "
        "`icu` by dictionary, for Chinese, Japanese and Thai.",
    )
    language: Language = Field("English", description="The language of stemming and stop words.")
    lower_case: bool = Field(True, description="Upper and lower case are the same.")
    stem: bool = Field(True, description="Forms of a word are the same: running, runs, run.")
    remove_stop_words: bool = Field(True, description="Words like `the` and `and` are not counted.")
    ascii_folding: bool = Field(True, description="Letters are the same with and without accents: café, cafe.")
    max_token_length: int = Field(40, ge=1, description="Longer words, in bytes, are not counted.")


class IndexesConfig(Section):
    """How what is written is indexed."""

    text_index: TextIndexConfig = Field(default_factory=TextIndexConfig, description="Words, for text search.")
    vector_index_min_rows: int = Field(
        1000,
        ge=1,
        description="With fewer chunks a vector search reads all vectors from the table; from this many on they are in "
        "an index, which readers keep in memory.",
    )
    vector_index_exact_below: int = Field(
        100_000,
        ge=1,
        description="With fewer chunks the index is one partition, and searches compare with every vector; with more "
        "it is an IVF index, of which a search visits `retriever.nprobes` partitions.",
    )
    vector_index_max_segments: int = Field(
        16,
        ge=1,
        description="Each maintenance that finds new chunks adds a segment to the vector index, and a search visits "
        "them all; when there are more, the index is made anew.",
    )
    commits_per_optimize: int = Field(
        32, ge=1, description="After this many commits the table is compacted and new chunks are added to the indexes."
    )
    max_unindexed_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="When an index lacks more than this share of the chunks, they are added at once. Searches find "
        "them before as well, at the cost of a scan.",
    )
    min_unindexed_rows: int = Field(1000, ge=1, description="Fewer chunks than this never count as too large a share.")
    maintain_after_s: float = Field(
        2.0, gt=0, description="A collection that is not written to for this long has its new chunks indexed."
    )
    keep_versions_s: float = Field(
        600.0,
        ge=60,
        description="Versions of a table that were replaced longer ago are removed from the disk; it must be longer "
        "than any search and than `store.read_consistency_s`.",
    )


class TableIndexes:
    """Makes a table's indexes and says how much they cover. Only the table's writer may use it, between two writes."""

    def __init__(self, config: IndexesConfig) -> None:
        self._config = config

    async def make(self, table: Any) -> None:
        """Make the indexes that are due and not there, or were made with other options."""
        from lancedb.index import FTS, BTree

        made = {index.name: index for index in await table.list_indices()}
        for column in _LOOKUP_COLUMNS:
            if column not in made:
                await table.create_index(column, config=BTree(), name=column)
        options = self._config.text_index.model_dump()
        if TEXT_INDEX not in made or not _has_options(made[TEXT_INDEX], options):
            await table.create_index(TEXT_COLUMN, config=FTS(**options), name=TEXT_INDEX, replace=True)
        num_rows = int(await table.count_rows())
        if num_rows >= self._config.vector_index_min_rows and self._is_due(made.get(VECTOR_INDEX), num_rows):
            await _make_vector_index(table, self._rows_per_partition(num_rows))

    async def maintain(self, table: Any) -> None:
        """Compact the table, bring its indexes to cover every row, and remove old versions. Idempotent."""
        await add_missing_columns(table)
        await table.optimize(cleanup_older_than=timedelta(seconds=self._config.keep_versions_s))
        await self.make(table)

    async def coverage(self, table: Any) -> dict[str, float]:
        """For each index, the share of the rows that it covers: 0.0 for one that is due and not made yet."""
        return await self._coverage(table, int(await table.count_rows()))

    async def is_behind(self, table: Any) -> bool:
        """Whether so many rows are in no index that searches should not wait for a quiet moment."""
        num_rows = int(await table.count_rows())
        uncovered = 1.0 - min((await self._coverage(table, num_rows)).values())
        return uncovered > self._config.max_unindexed_share and uncovered * num_rows >= self._config.min_unindexed_rows

    async def _coverage(self, table: Any, num_rows: int) -> dict[str, float]:
        made = {index.name: index for index in await table.list_indices()}
        due = {TEXT_INDEX, *_LOOKUP_COLUMNS}
        if num_rows >= self._config.vector_index_min_rows:
            due.add(VECTOR_INDEX)
        return {name: _share(made.get(name), num_rows) for name in sorted(due | made.keys())}

    def _is_due(self, vector_index: Any, num_rows: int) -> bool:
        if vector_index is None or (vector_index.num_segments or 1) > self._config.vector_index_max_segments:
            return True
        made_for = rows_per_partition(vector_index)
        wanted = self._rows_per_partition(num_rows)
        return made_for is not None and (wanted >= 2 * made_for or made_for >= 2 * wanted)

    def _rows_per_partition(self, num_rows: int) -> int:
        """All of them where searches are exact, else as many as there are partitions."""
        exact_below = self._config.vector_index_exact_below
        return exact_below if num_rows < exact_below else math.isqrt(num_rows)


def rows_per_partition(vector_index: Any) -> int | None:
    """How many rows a partition of the index was made to hold; None where that is not known."""
    size = (vector_index.index_details or {}).get("target_partition_size")
    return None if size is None else int(size)


async def _make_vector_index(table: Any, rows_each: int) -> None:
    """An IVF index of whole vectors: scores stay exact cosines, and only which rows are compared is approximate.

    With one partition nothing is. It is made for its readers, who keep an index in memory: a search over 9,880 vectors
    of 384 dimensions took 1.5 ms of CPU time, and 9.0 ms where they were read from the table.
    """
    from lancedb.index import IvfFlat

    # To ask for the partitions' size is the only way to keep it: where it is not known, optimize() joins all
    # partitions of less than some thousand rows.
    # Of LanceDB's 256 and 50, a quarter and two fifths: partitions that are as good, in much less time.
    training = {"sample_rate": 64, "max_iterations": 20}
    config = IvfFlat(distance_type="dot", target_partition_size=rows_each, **training)
    await table.create_index("vector", config=config, name=VECTOR_INDEX, replace=True)


def _has_options(index: Any, options: Mapping[str, Any]) -> bool:
    details = index.index_details or {}
    return all(details.get(name, value) == value for name, value in options.items())


def _share(index: Any, num_rows: int) -> float:
    if num_rows == 0:
        return 1.0
    if index is None:
        return 0.0
    covered, uncovered = index.num_indexed_rows or 0, index.num_unindexed_rows or 0
    return covered / (covered + uncovered) if covered + uncovered else 1.0


class Upkeep:
    """When a collection is maintained: after many commits, or when nothing has been written to it for a while.

    Maintenance writes the table anew, so it must not run after every commit of an ingest: as long as documents are on
    their way, nothing counts as quiet. What maintenance replaced is removed from the disk later, by one more.

    `maintain` does the work. One collection is maintained at a time, because each takes every core. Where it fails,
    what was written stays as it is, and the work is tried again later.
    """

    def __init__(self, config: IndexesConfig, maintain: Callable[[str], Awaitable[None]]) -> None:
        self._config = config
        self._maintain = maintain
        self._commits: Counter[str] = Counter()
        self._on_their_way: Counter[str] = Counter()
        self._due: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._closed = False

    def committed(self, collection: str, behind: bool) -> None:
        """Take note of a commit; `behind` asks for maintenance as soon as the writes that wait already are done."""
        self._commits[collection] += 1
        if self._failures[collection] and collection in self._timers:
            # It is tried again when it is planned to be: each try takes every core.
            return
        if behind or self._commits[collection] >= self._config.commits_per_optimize:
            self._due.add(collection)
        self._schedule(collection, 0.0 if collection in self._due else self._config.maintain_after_s)

    def catch_up(self, collection: str) -> None:
        """Maintain the collection as soon as nothing is on its way to it: an earlier writer may have left that undone.

        It counts as a commit, because it replaces files that are to be removed later.
        """
        self._commits[collection] += 1
        self._schedule(collection, 0.0)

    @contextmanager
    def on_their_way(self, collection: str) -> Iterator[None]:
        """Documents are being prepared for the collection inside the block."""
        self._on_their_way[collection] += 1
        try:
            yield
        finally:
            self._on_their_way[collection] -= 1
            if not self._on_their_way[collection]:
                # Names that clients make up must not pile up.
                del self._on_their_way[collection]

    async def close(self) -> None:
        """Plan nothing more, and return when what runs has come to its end."""
        self._closed = True
        for collection in list(self._timers):
            self._cancel(collection)
        await asyncio.gather(*self._running.values())

    def _schedule(self, collection: str, delay_s: float) -> None:
        """Maintain the collection in `delay_s` seconds; what was planned for it before is forgotten."""
        if self._closed:
            return
        self._cancel(collection)
        self._timers[collection] = asyncio.get_running_loop().call_later(delay_s, self._begin, collection)

    def _cancel(self, collection: str) -> None:
        timer = self._timers.pop(collection, None)
        if timer is not None:
            timer.cancel()

    def _begin(self, collection: str) -> None:
        del self._timers[collection]
        is_written_to = collection in self._on_their_way and collection not in self._due
        if collection in self._running or is_written_to:
            self._schedule(collection, self._config.maintain_after_s)
            return
        task = asyncio.create_task(self._run(collection))
        self._running[collection] = task
        task.add_done_callback(lambda _: self._running.pop(collection))

    async def _run(self, collection: str) -> None:
        try:
            async with self._turn:
                num_commits = self._commits.pop(collection, 0)
                self._due.discard(collection)
                await self._maintain(collection)
        except NotFound:
            # It was deleted meanwhile.
            self._failures.pop(collection, None)
        except Exception:
            logger.exception("maintaining %r failed; it is tried again later", collection)
            self._commits[collection] += num_commits
            self._failures[collection] += 1
            self._schedule(collection, self._retry_after_s(collection))
        else:
            self._failures.pop(collection, None)
            if num_commits and collection not in self._timers:
                self._schedule(collection, self._config.keep_versions_s + self._config.maintain_after_s)

    def _retry_after_s(self, collection: str) -> float:
        return min(_MAX_RETRY_S, self._config.maintain_after_s * 2.0 ** self._failures[collection])
