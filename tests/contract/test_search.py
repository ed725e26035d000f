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
from tests.contract.documents import LONG

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
    found = await filled.search(SearchRequest("docs", 100, vector=vector))
    cosines = await filled.embed(*SENTENCES) @ vector
    expected = sorted(zip(cosines.tolist(), SENTENCES, strict=True), reverse=True)
    assert [passage.text for passage in found] == [text for _, text in expected]
    assert [passage.score for passage in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("k", [1, 3, 6, 50])
async def test_at_most_k_passages_come_and_they_are_the_best(filled: Backend, k: int) -> None:
    vector = await query(filled)
    everything = await filled.search(SearchRequest("docs", 100, vector=vector))
    assert await filled.search(SearchRequest("docs", k, vector=vector)) == everything[:k]


async def test_ties_are_ordered_by_id(stages: Backend) -> None:
    await stages.fill("docs", *(Document(name, "One and the same text.") for name in ("c", "e", "a", "d", "b")))
    found = await stages.search(SearchRequest("docs", 10, vector=await query(stages)))
    assert len({passage.score for passage in found}) == 1
    assert [passage.document_id for passage in found] == ["a", "b", "c", "d", "e"]


async def test_the_passages_of_a_document_are_counted_from_0(stages: Backend) -> None:
    await stages.fill("docs", Document("long", LONG))
    found = await stages.search(SearchRequest("docs", 100, vector=await query(stages)))
    assert len(found) > 1
    in_order = sorted(found, key=lambda passage: passage.start)
    assert [passage.position for passage in in_order] == list(range(len(found)))


async def test_a_passage_carries_what_was_indexed(stages: Backend) -> None:
    document = Document("a/b", "  Bees make honey.", "Bees", "bees.txt", {"year": 2010, "lent": False, "author": "Ærø"})
    await stages.fill("docs", document)
    (passage,) = await stages.search(SearchRequest("docs", 10, vector=await query(stages)))
    assert (passage.document_id, passage.title, passage.source) == ("a/b", "Bees", "bees.txt")
    assert passage.metadata == document.metadata
    assert document.text[passage.start : passage.end] == passage.text
    assert passage.text.strip() == "Bees make honey."
    assert passage.num_tokens >= 3
    assert passage.position == 0


async def test_searches_that_arrive_together_each_get_their_own_result(stages: Backend) -> None:
    for collection, offset in (("docs", 2000), ("other", 2003)):
        await stages.fill(
            collection,
            *(Document(f"d{n}", text, metadata={"year": offset + n}) for n, text in enumerate(SENTENCES)),
        )
    vectors = [await query(stages, text) for text in ("What moves the sea?", "Who makes honey?", "Why does iron rust?")]
    requests = [
        SearchRequest(collection, k, vector=vector, filter=wanted)
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
    good = SearchRequest("docs", 3, vector=vector)
    expected = await filled.search(good)
    bad = {
        NotFound: SearchRequest("nowhere", 3, vector=vector),
        IndexMismatch: SearchRequest("docs", 3, vector=np.ones(len(vector) + 1, np.float32)),
        InvalidInput: SearchRequest("docs", 3),
    }
    for error, request in bad.items():
        together = [request, good] if bad_first else [good, request]
        results = await asyncio.gather(*(filled.search(r) for r in together), return_exceptions=True)
        refused, answered = results if bad_first else reversed(results)
        assert isinstance(refused, error)
        assert answered == expected


async def test_an_unknown_collection_is_not_found(stages: Backend) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await stages.search(SearchRequest("nowhere", 3, vector=await query(stages)))


async def test_a_vector_of_another_dimension_does_not_match_the_index(filled: Backend) -> None:
    with pytest.raises(IndexMismatch):
        await filled.search(SearchRequest("docs", 3, vector=np.ones(7, np.float32)))


async def test_an_empty_collection_has_no_passages(stages: Backend) -> None:
    await stages.indexer.create_collection("empty")
    assert await stages.search(SearchRequest("empty", 3, vector=await query(stages))) == []
    assert await stages.search(SearchRequest("empty", 3, vector=await query(stages), filter={"year": 1})) == []


async def test_without_time_left_nothing_is_searched(filled: Backend) -> None:
    with pytest.raises(DeadlineExceeded):
        await filled.retriever.search(SearchRequest("docs", 3, vector=await query(filled)), 0.0)


async def test_what_is_written_after_the_collection_was_opened_is_found(filled: Backend) -> None:
    vector = await query(filled)
    await filled.search(SearchRequest("docs", 1, vector=vector))
    await filled.fill("docs", Document("late", "What do the tides do?"))
    (best,) = await filled.search(SearchRequest("docs", 1, vector=vector))
    assert best.document_id == "late"
    await filled.indexer.delete_document("docs", "late")
    (best,) = await filled.search(SearchRequest("docs", 1, vector=vector))
    assert best.document_id != "late"


async def test_a_collection_that_was_deleted_is_not_found(filled: Backend) -> None:
    vector = await query(filled)
    await filled.search(SearchRequest("docs", 1, vector=vector))
    await filled.indexer.delete_collection("docs")
    for _ in range(2):
        with pytest.raises(NotFound):
            await filled.search(SearchRequest("docs", 1, vector=vector))


async def test_a_collection_that_was_deleted_and_made_anew_shows_only_what_is_in_it_now(filled: Backend) -> None:
    vector = await query(filled)
    for generation in range(3):
        await filled.search(SearchRequest("docs", 1, vector=vector))
        await filled.indexer.delete_collection("docs")
        await filled.fill("docs", Document(f"new{generation}", "A new text."))
        found = await filled.search(SearchRequest("docs", 100, vector=vector))
        assert [passage.document_id for passage in found] == [f"new{generation}"]


async def test_a_result_says_from_which_version_it_was_read(filled: Backend) -> None:
    vector = await query(filled)
    for request in (SearchRequest("docs", 3, vector=vector), SearchRequest("docs", 3, "text", text="tides")):
        assert (await filled.find(request)).version == await filled.version()


async def test_every_change_of_a_collection_makes_a_greater_version(stages: Backend) -> None:
    versions = []
    for change in (
        stages.indexer.create_collection("docs"),
        stages.fill("docs", Document("a", "One text.")),
        stages.fill("docs", Document("a", "Another text.")),
        stages.fill("docs", Document("b", "A third text.", metadata={"year": 2001})),
        stages.indexer.delete_document("docs", "a"),
    ):
        await change
        versions.append(await stages.version())
    assert versions == sorted(set(versions))


async def test_a_collection_that_is_made_anew_has_no_version_again(stages: Backend) -> None:
    versions: list[int] = []
    for _ in range(3):
        # Each time with fewer commits than the time before.
        for number in range(4 - len(versions)):
            await stages.fill("docs", Document(f"d{number}", "A text."))
        versions.append(await stages.version())
        await stages.indexer.delete_collection("docs")
    assert versions == sorted(set(versions))


async def test_the_version_of_an_unknown_collection_is_not_found_beside_that_of_a_known_one(filled: Backend) -> None:
    names = ("docs", "nowhere", "docs")
    first, second, third = await asyncio.gather(*map(filled.version, names), return_exceptions=True)
    assert isinstance(second, NotFound)
    assert first == third == await filled.version()
    await filled.indexer.delete_collection("docs")
    with pytest.raises(NotFound):
        await filled.version()


async def test_without_time_left_no_version_is_read(filled: Backend) -> None:
    with pytest.raises(DeadlineExceeded):
        await filled.retriever.version("docs", 0.0)


async def test_no_result_is_newer_than_the_version_that_is_read_after_it(filled: Backend) -> None:
    """Filed under its version, a result must not outlive the commit that comes after it."""
    vector = await query(filled)

    async def write() -> None:
        for number in range(10):
            await filled.fill("docs", Document("changing", f"Text {number}."))

    writing = asyncio.ensure_future(write())
    texts: dict[int, set[str]] = {}
    while not writing.done():
        before = await filled.version()
        found = await filled.find(SearchRequest("docs", 100, vector=vector, filter={"document_id": "changing"}))
        assert before <= found.version <= await filled.version()
        texts.setdefault(found.version, set()).update(passage.text for passage in found.passages)
        await asyncio.sleep(0)
    await writing
    last = await filled.find(SearchRequest("docs", 100, vector=vector, filter={"document_id": "changing"}))
    assert [passage.text for passage in last.passages] == ["Text 9."]
    assert last.version == await filled.version()


@pytest.mark.parametrize("name", ["../docs", "a/b", "", "docs'", ".hidden", "x" * 64])
async def test_a_collection_name_can_not_leave_the_store(real: Backend, name: str) -> None:
    with pytest.raises(InvalidInput):
        await real.search(SearchRequest(name, 3, vector=await query(real)))


async def test_a_collection_of_another_model_is_refused_even_of_the_same_dimension(filled: Backend) -> None:
    vector = await query(filled)
    with pytest.raises(IndexMismatch):
        await filled.search(SearchRequest("docs", 3, vector=vector, embedding_model="another/model"))
    assert await filled.search(SearchRequest("docs", 3, vector=vector))
