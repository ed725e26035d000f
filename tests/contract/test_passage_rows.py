"""Passages that a search engine has read once and keeps: never another's text, never one that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pytest

from deployments.contracts import Document, Passage, SearchRequest, SearchResult
from deployments.retriever import LanceSearch, RetrieverConfig, RetrieverSettings
from deployments.store import StoreConfig
from tests.contract.backends import Backend

LARGE = 2**20


def engine(folder: Path, max_bytes: int = LARGE) -> LanceSearch:
    config = RetrieverConfig(passage_cache_bytes=max_bytes)
    return LanceSearch(RetrieverSettings(retriever=config, store=StoreConfig(uri=str(folder))))


def lookups(search: LanceSearch) -> tuple[int, int]:
    """Passages that were known, and passages that had to be read."""
    counted = {labels: value for _, labels, value in search.read()}
    return int(counted["passage", "hit"]), int(counted["passage", "miss"])


async def find(search: LanceSearch, text: str, k: int = 100) -> list[Passage]:
    [result] = await search.search([SearchRequest("docs", k, "text", text=text)])
    assert isinstance(result, SearchResult), result
    return list(result.passages)


def numbered(numbers: Sequence[int]) -> list[Document]:
    return [
        Document(f"d{n}", f"common text of number{n}", f"Title {n}", f"file{n}", {"n": n, "tags": f"t{n}"})
        for n in numbers
    ]


async def test_a_passage_is_read_once_and_is_whole_every_time(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    await real.fill("docs", *numbered(range(5)))
    first = await find(search, "common")
    assert lookups(search) == (0, 5)
    second = await find(search, "common")
    assert lookups(search) == (5, 5)
    assert first == second
    assert {(p.document_id, p.text, p.title, p.source, p.metadata["n"]) for p in second} == {
        (f"d{n}", f"common text of number{n}", f"Title {n}", f"file{n}", n) for n in range(5)
    }
    # What another search found is known, and has that search's score.
    [passage] = await find(search, "number3")
    assert lookups(search) == (6, 5)
    assert passage.score > next(p.score for p in first if p.document_id == "d3")


async def test_vectors_and_words_find_the_same_rows(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    await real.fill("docs", *numbered(range(5)))
    vectors = await real.embed("common text of number1", "common text of number2")
    requests = [SearchRequest("docs", 5, vector=vector) for vector in vectors]
    found = await search.search([*requests, SearchRequest("docs", 5, "text", text="common")])
    for result in found:
        assert isinstance(result, SearchResult)
        assert {p.id for p in result.passages} == {f"d{n}:0" for n in range(5)}
    hits, misses = lookups(search)
    assert misses >= 5
    assert hits + misses == 10


async def test_what_is_replaced_deleted_or_added_is_seen_at_once(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    await real.fill("docs", *numbered(range(5)))
    await find(search, "common")
    await real.fill("docs", Document("d1", "common but new"), Document("d9", "common and more"))
    await real.indexer.delete_document("docs", "d2")
    texts = {p.document_id: p.text for p in await find(search, "common")}
    assert texts == {
        "d0": "common text of number0",
        "d1": "common but new",
        "d3": "common text of number3",
        "d4": "common text of number4",
        "d9": "common and more",
    }


async def test_rows_that_a_compaction_moved_are_found_where_they_are_now(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    for number in range(5):
        await real.fill("docs", *numbered([number]))
    before = await find(search, "common")
    table = await (await lancedb.connect_async(tmp_path)).open_table("docs")
    await table.optimize(cleanup_older_than=timedelta(milliseconds=1))
    assert {p.text for p in await find(search, "common")} == {p.text for p in before}


async def test_a_collection_of_the_same_name_does_not_inherit_passages(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    await real.fill("docs", *numbered(range(3)))
    await find(search, "common")
    await real.indexer.delete_collection("docs")
    await real.fill("docs", *(Document(f"d{n}", f"common but other {n}") for n in range(3)))
    assert {p.text for p in await find(search, "common")} == {f"common but other {n}" for n in range(3)}


@pytest.mark.parametrize("max_bytes", [0, 3000])
async def test_a_small_bound_costs_lookups_and_no_passages(real: Backend, tmp_path: Path, max_bytes: int) -> None:
    search = engine(tmp_path, max_bytes)
    await real.fill("docs", *numbered(range(10)))
    for _ in range(3):
        assert {p.document_id for p in await find(search, "common")} == {f"d{n}" for n in range(10)}
    hits, misses = lookups(search)
    assert hits + misses == 30
    assert misses > 10


async def test_a_row_that_goes_between_finding_and_reading_it_is_searched_for_again(
    real: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document is replaced right after the search for it: the search tells of its new text, not of nothing."""
    search = engine(tmp_path)
    await real.fill("docs", *numbered(range(3)))
    take = lancedb.AsyncTable.take_row_ids
    replaced = False

    class Late:
        """The query for the rows, which runs when the document has been replaced."""

        def __init__(self, query: Any) -> None:
            self._query = query

        def select(self, columns: list[str]) -> Late:
            return Late(self._query.select(columns))

        def with_row_id(self) -> Late:
            return Late(self._query.with_row_id())

        async def to_arrow(self) -> Any:
            nonlocal replaced
            if not replaced:
                replaced = True
                await real.fill("docs", Document("d1", "common but new"))
            return await self._query.to_arrow()

    with monkeypatch.context() as between:
        between.setattr(lancedb.AsyncTable, "take_row_ids", lambda table, rows: Late(take(table, rows)))
        texts = {p.document_id: p.text for p in await find(search, "common")}
    assert texts == {"d0": "common text of number0", "d1": "common but new", "d2": "common text of number2"}


async def test_scores_of_a_search_are_its_own_where_many_share_a_scan(real: Backend, tmp_path: Path) -> None:
    search = engine(tmp_path)
    texts = [f"common text of number{n}" for n in range(8)]
    await real.fill("docs", *(Document(f"d{n}", text) for n, text in enumerate(texts)))
    vectors = await real.embed(*texts)
    for _ in range(2):
        found = await search.search([SearchRequest("docs", 8, vector=vector) for vector in vectors])
        for vector, result in zip(vectors, found, strict=True):
            assert isinstance(result, SearchResult)
            cosines = dict(zip(texts, vectors @ vector, strict=True))
            assert {p.text: p.score for p in result.passages} == pytest.approx(cosines, abs=1e-4)
