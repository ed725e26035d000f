"""What every retriever promises. The reference is a comparison of the query with every passage, in numpy."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from deployments.contracts import Document, SearchRequest, Vector
from deployments.errors import (
    DeadlineExceeded,
    IndexMismatch,
    InvalidInput,
    NotFound,
)
from tests.contract.backends import Backend

SENTENCES = (
    "The moon pulls the tides of the sea.",
    "Bees make honey from nectar.",
    "Iron rusts in moist air.",
    "A hive has one queen.",
    "The tides turn twice a day.",
    "Steel is iron with some carbon.",
)


@pytest.fixture
async def filled(stages: Backend) -> Backend:
    await stages.fill("docs", *(Document(f"d{number}", text) for number, text in enumerate(SENTENCES)))
    return stages


async def query(backend: Backend, text: str = "What do the tides do?") -> Vector:
    vector: Vector = (await backend.embed(text))[0]
    return vector


async def test_scores_are_cosines_in_descending_order(filled: Backend) -> None:
    vector = await query(filled)
    found = await filled.search(SearchRequest("docs", vector, 100))
    cosines = await filled.embed(*SENTENCES) @ vector
    expected = sorted(zip(cosines.tolist(), SENTENCES, strict=True), reverse=True)
    assert [passage.text for passage in found] == [text for _, text in expected]
    assert [passage.score for passage in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("k", [1, 3, 6, 50])
async def test_at_most_k_passages_come_and_they_are_the_best(filled: Backend, k: int) -> None:
    vector = await query(filled)
    everything = await filled.search(SearchRequest("docs", vector, 100))
    assert await filled.search(SearchRequest("docs", vector, k)) == everything[:k]


async def test_ties_are_ordered_by_id(stages: Backend) -> None:
    await stages.fill("docs", *(Document(name, "One and the same text.") for name in ("c", "e", "a", "d", "b")))
    found = await stages.search(SearchRequest("docs", await query(stages), 10))
    assert len({passage.score for passage in found}) == 1
    assert [passage.document_id for passage in found] == ["a", "b", "c", "d", "e"]


async def test_a_passage_carries_what_was_indexed(stages: Backend) -> None:
    document = Document("a/b", "  Bees make honey.", "Bees", "bees.txt", {"year": 2010, "lent": False, "author": "Ærø"})
    await stages.fill("docs", document)
    (passage,) = await stages.search(SearchRequest("docs", await query(stages), 10))
    assert (passage.document_id, passage.title, passage.source) == ("a/b", "Bees", "bees.txt")
    assert passage.metadata == document.metadata
    assert document.text[passage.start : passage.end] == passage.text
    assert passage.text.strip() == "Bees make honey."
    assert passage.num_tokens >= 3


async def test_searches_that_arrive_together_each_get_their_own_result(stages: Backend) -> None:
    for collection, offset in (("docs", 2000), ("other", 2003)):
        await stages.fill(
            collection,
            *(Document(f"d{n}", text, metadata={"year": offset + n}) for n, text in enumerate(SENTENCES)),
        )
    vectors = [await query(stages, text) for text in ("What moves the sea?", "Who makes honey?", "Why does iron rust?")]
    requests = [
        SearchRequest(collection, vector, k, filter=wanted)
        for vector in vectors
        for collection in ("docs", "other")
        for k in (1, 4)
        for wanted in (None, {"year": 2004}, {"year": {"gte": 2005}})
    ]
    alone = [await stages.search(request) for request in requests]
    assert await asyncio.gather(*(stages.search(request) for request in requests)) == alone
    assert all(alone)


@pytest.mark.parametrize("bad_first", [True, False])
async def test_a_search_that_fails_does_not_fail_those_that_came_with_it(filled: Backend, bad_first: bool) -> None:
    vector = await query(filled)
    good = SearchRequest("docs", vector, 3)
    expected = await filled.search(good)
    bad = {
        NotFound: SearchRequest("nowhere", vector, 3),
        IndexMismatch: SearchRequest("docs", np.ones(len(vector) + 1, np.float32), 3),
        InvalidInput: SearchRequest("docs", vector, 3, mode="text", text="tides"),
    }
    for error, request in bad.items():
        together = [request, good] if bad_first else [good, request]
        results = await asyncio.gather(*(filled.search(r) for r in together), return_exceptions=True)
        refused, answered = results if bad_first else reversed(results)
        assert isinstance(refused, error)
        assert answered == expected


async def test_an_unknown_collection_is_not_found(stages: Backend) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await stages.search(SearchRequest("nowhere", await query(stages), 3))


async def test_a_vector_of_another_dimension_does_not_match_the_index(filled: Backend) -> None:
    with pytest.raises(IndexMismatch):
        await filled.search(SearchRequest("docs", np.ones(7, np.float32), 3))


async def test_an_empty_collection_has_no_passages(stages: Backend) -> None:
    await stages.indexer.create_collection("empty")
    assert await stages.search(SearchRequest("empty", await query(stages), 3)) == []
    assert await stages.search(SearchRequest("empty", await query(stages), 3, filter={"year": 1})) == []


async def test_without_time_left_nothing_is_searched(filled: Backend) -> None:
    with pytest.raises(DeadlineExceeded):
        await filled.retriever.search(SearchRequest("docs", await query(filled), 3), 0.0)


async def test_what_is_written_after_the_collection_was_opened_is_found(filled: Backend) -> None:
    vector = await query(filled)
    await filled.search(SearchRequest("docs", vector, 1))
    await filled.fill("docs", Document("late", "What do the tides do?"))
    (best,) = await filled.search(SearchRequest("docs", vector, 1))
    assert best.document_id == "late"
    await filled.indexer.delete_document("docs", "late")
    (best,) = await filled.search(SearchRequest("docs", vector, 1))
    assert best.document_id != "late"


async def test_a_collection_that_was_deleted_is_not_found(filled: Backend) -> None:
    vector = await query(filled)
    await filled.search(SearchRequest("docs", vector, 1))
    await filled.indexer.delete_collection("docs")
    for _ in range(2):
        with pytest.raises(NotFound):
            await filled.search(SearchRequest("docs", vector, 1))


async def test_a_collection_that_was_deleted_and_made_anew_shows_only_what_is_in_it_now(filled: Backend) -> None:
    vector = await query(filled)
    for generation in range(3):
        await filled.search(SearchRequest("docs", vector, 1))
        await filled.indexer.delete_collection("docs")
        await filled.fill("docs", Document(f"new{generation}", "A new text."))
        found = await filled.search(SearchRequest("docs", vector, 100))
        assert [passage.document_id for passage in found] == [f"new{generation}"]


@pytest.mark.parametrize("name", ["../docs", "a/b", "", "docs'", ".hidden", "x" * 64])
async def test_a_collection_name_can_not_leave_the_store(real: Backend, name: str) -> None:
    with pytest.raises(InvalidInput):
        await real.search(SearchRequest(name, await query(real), 3))
