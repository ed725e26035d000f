"""What every retriever promises. The reference is a comparison of the query with every passage, in numpy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

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

BOOKS = (
    Document("tides", "The moon pulls the tides.", "Tides", "sea.txt", {"year": 2001, "price": 9.5, "lent": True}),
    Document("bees", "Bees make honey.", "Bees", "bees.txt", {"year": 2010, "price": 12.0, "lent": False}),
    Document("iron", "Iron rusts in air.", "Iron", "it's.txt", {"year": 2020, "author": "O'Brien", "lent": False}),
    Document("größe", "Size matters to ants.", "Größe", "größe.md", {"author": "Ærø 数据 😀", "a.b-c": "dotted"}),
    Document("odd 'id\"/\\", "A text of its own.", "", "", {"author": 'say "hi" \\ / \n', "year": -3}),
)


@pytest.fixture
async def filled(stages: Backend) -> Backend:
    await stages.fill("docs", *(Document(f"d{number}", text) for number, text in enumerate(SENTENCES)))
    return stages


@pytest.fixture
async def library(stages: Backend) -> Backend:
    await stages.fill("docs", *BOOKS)
    return stages


async def query(backend: Backend, text: str = "What do the tides do?") -> Vector:
    vector: Vector = (await backend.embed(text))[0]
    return vector


async def ids_of(backend: Backend, wanted: Mapping[str, Any] | None) -> set[str]:
    found = await backend.search(SearchRequest("docs", await query(backend), 100, filter=wanted))
    return {passage.document_id for passage in found}


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


async def test_searches_that_arrive_together_each_get_their_own_result(library: Backend) -> None:
    await library.fill("other", *(Document(f"d{number}", text) for number, text in enumerate(SENTENCES)))
    texts = ("What moves the sea?", "Who makes honey?", "Why does iron rust?")
    vectors = [await query(library, text) for text in texts]
    requests = [
        SearchRequest(collection, vector, k, filter=wanted)
        for vector in vectors
        for collection in ("docs", "other")
        for k in (1, 4)
        for wanted in (None, {"source": "bees.txt"}, {"year": {"gte": 2005}})
    ]
    alone = [await library.search(request) for request in requests]
    assert await asyncio.gather(*(library.search(request) for request in requests)) == alone
    assert any(alone)


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


FILTERS: tuple[tuple[dict[str, Any] | None, set[str]], ...] = (
    (None, {"tides", "bees", "iron", "größe", "odd 'id\"/\\"}),
    ({}, {"tides", "bees", "iron", "größe", "odd 'id\"/\\"}),
    ({"document_id": "bees"}, {"bees"}),
    ({"document_id": "odd 'id\"/\\"}, {"odd 'id\"/\\"}),
    ({"source": "it's.txt"}, {"iron"}),
    ({"title": "Größe"}, {"größe"}),
    ({"title": ""}, {"odd 'id\"/\\"}),
    ({"year": 2010}, {"bees"}),
    ({"year": 2010.0}, {"bees"}),
    ({"metadata.year": 2010}, {"bees"}),
    ({"year": -3}, {"odd 'id\"/\\"}),
    ({"year": "2010"}, set()),
    ({"price": 9.5}, {"tides"}),
    ({"lent": True}, {"tides"}),
    ({"lent": False}, {"bees", "iron"}),
    ({"author": "O'Brien"}, {"iron"}),
    ({"author": "Ærø 数据 😀"}, {"größe"}),
    ({"author": 'say "hi" \\ / \n'}, {"odd 'id\"/\\"}),
    ({"a.b-c": "dotted"}, {"größe"}),
    ({"year": [2001, 2020, 1999]}, {"tides", "iron"}),
    ({"source": ["sea.txt", "bees.txt"]}, {"tides", "bees"}),
    ({"author": ["O'Brien", "nobody"]}, {"iron"}),
    ({"year": {"gt": 2010}}, {"iron"}),
    ({"year": {"gte": 2010}}, {"bees", "iron"}),
    ({"year": {"lt": 2010}}, {"tides", "odd 'id\"/\\"}),
    ({"year": {"lte": 2010}}, {"tides", "bees", "odd 'id\"/\\"}),
    ({"year": {"ne": 2010}}, {"tides", "iron", "odd 'id\"/\\"}),
    ({"year": {"gte": 2001, "lt": 2020}}, {"tides", "bees"}),
    ({"price": {"gt": 9.5}}, {"bees"}),
    ({"lent": {"ne": True}}, {"bees", "iron"}),
    ({"author": {"ne": "O'Brien"}}, {"größe", "odd 'id\"/\\"}),
    ({"author": {"gte": "O", "lt": "P"}}, {"iron"}),
    ({"source": {"gt": "bees.txt", "lt": "it's.txt"}}, {"größe"}),
    ({"year": 2010, "lent": False}, {"bees"}),
    ({"year": 2010, "lent": True}, set()),
    ({"unheard_of": 1}, set()),
    ({"unheard_of": {"ne": 1}}, set()),
    ({"author": "' OR '1'='1"}, set()),
    ({"document_id": "x' OR 'a'='a"}, set()),
    ({"author": "x'; DROP TABLE docs; --"}, set()),
)


@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=[repr(wanted) for wanted, _ in FILTERS])
async def test_a_filter_keeps_exactly_the_documents_that_meet_it(
    library: Backend, wanted: dict[str, Any] | None, expected: set[str]
) -> None:
    assert await ids_of(library, wanted) == expected


async def test_a_filtered_search_still_finds_k(stages: Backend) -> None:
    near = [Document(f"near{number}", "What do the tides do?") for number in range(20)]
    far = [Document(f"far{number}", "Bees make honey.", metadata={"wanted": True}) for number in range(5)]
    await stages.fill("docs", *near, *far)
    found = await stages.search(SearchRequest("docs", await query(stages), 5, filter={"wanted": True}))
    assert {passage.document_id for passage in found} == {document.id for document in far}


async def test_a_field_may_hold_values_of_every_kind(real: Backend) -> None:
    values = {"number": 7, "text": "7", "yes": True, "no": False, "nothing": None, "fraction": 7.5, "empty": ""}
    await real.fill("docs", *(Document(name, f"Text {name}.", metadata={"v": v}) for name, v in values.items()))
    assert await ids_of(real, {"v": 7}) == {"number"}
    assert await ids_of(real, {"v": "7"}) == {"text"}
    assert await ids_of(real, {"v": True}) == {"yes"}
    assert await ids_of(real, {"v": {"ne": True}}) == {"no"}
    assert await ids_of(real, {"v": {"gt": 0}}) == {"number", "fraction"}
    assert await ids_of(real, {"v": {"gte": ""}}) == {"text", "empty"}
    assert await ids_of(real, {"v": {"ne": "7"}}) == {"empty"}
    assert await ids_of(real, {"v": [7, "7", True]}) == {"number", "text", "yes"}


@pytest.mark.parametrize(
    "wanted",
    [
        {"year) OR (1=1": 1},
        {"a' OR '1'='1": "x"},
        {"a b": 1},
        {"": 1},
        {"größe": 1},
        {"metadata.": 1},
        {"year": None},
        {"year": []},
        {"year": {}},
        {"year": [[1]]},
        {"year": {"or": 1}},
        {"year": {"gt": {"lt": 1}}},
        {"year": float("nan")},
        {"year": {"lt": float("inf")}},
        {"year": 10**400},
        {"year": "\ud800"},
        {"source": 5},
        {"title": {"gt": True}},
    ],
    ids=repr,
)
async def test_a_filter_that_can_not_be_used_is_refused_by_the_name_of_its_field(
    real: Backend, wanted: dict[str, Any]
) -> None:
    await real.fill("docs", *BOOKS)
    with pytest.raises(InvalidInput) as refused:
        await ids_of(real, wanted)
    assert repr(next(iter(wanted))) in refused.value.message


async def test_a_filter_that_can_not_be_used_does_not_fail_its_neighbours(real: Backend) -> None:
    await real.fill("docs", *BOOKS)
    vector = await query(real)
    requests = [SearchRequest("docs", vector, 3, filter={"a b": 1}), SearchRequest("docs", vector, 3)]
    refused, answered = await asyncio.gather(*(real.search(r) for r in requests), return_exceptions=True)
    assert isinstance(refused, InvalidInput)
    assert not isinstance(answered, BaseException)
    assert len(answered) == 3


@pytest.mark.parametrize("name", ["../docs", "a/b", "", "docs'", ".hidden", "x" * 64])
async def test_a_collection_name_can_not_leave_the_store(real: Backend, name: str) -> None:
    with pytest.raises(InvalidInput):
        await real.search(SearchRequest(name, await query(real), 3))


ODD_VALUES = (
    *(chr(code) for code in range(0x20)),
    *"\x7f\x85\u200b\u2028\ufeff\ufffd😀",
    *("", " ", "'", "''", '"', "\\", '\\"', "\\u0041", "/", "%", "_", "null", "true", "1", "{}", "é", "e\u0301"),
)


async def test_any_text_finds_exactly_itself_as_a_filter_value(real: Backend) -> None:
    documents = (Document(f"d{number}", "Text.", metadata={"v": value}) for number, value in enumerate(ODD_VALUES))
    await real.fill("docs", *documents)
    for number, value in enumerate(ODD_VALUES):
        assert await ids_of(real, {"v": value}) == {f"d{number}"}
        assert await ids_of(real, {"v": {"gte": value, "lte": value}}) == {f"d{number}"}
