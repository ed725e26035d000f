"""What every retriever promises of filters: the right documents, and a refusal that names the field."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from deployments.contracts import Document, SearchRequest, Vector
from deployments.errors import InvalidInput
from deployments.parsing import parse_question
from tests.contract.backends import Backend

BOOKS = (
    Document("tides", "The moon pulls the tides.", "Tides", "sea.txt", {"year": 2001, "price": 9.5, "lent": True}),
    Document("bees", "Bees make honey.", "Bees", "bees.txt", {"year": 2010, "price": 12.0, "lent": False}),
    Document("iron", "Iron rusts in air.", "Iron", "it's.txt", {"year": 2020, "author": "O'Brien", "lent": False}),
    Document("größe", "Size matters to ants.", "Größe", "größe.md", {"author": "Ærø 数据 😀", "a.b-c": "dotted"}),
    Document("odd 'id\"/\\", "A text of its own.", "", "", {"author": 'say "hi" \\ / \n', "year": -3}),
)


@pytest.fixture
async def library(stages: Backend) -> Backend:
    await stages.fill("docs", *BOOKS)
    return stages


async def query(backend: Backend) -> Vector:
    vector: Vector = (await backend.embed("What do the tides do?"))[0]
    return vector


async def ids_of(backend: Backend, wanted: Mapping[str, Any] | None) -> set[str]:
    found = await backend.search(SearchRequest("docs", 100, vector=await query(backend), filter=wanted))
    return {passage.document_id for passage in found}


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
    ({"title": {"contains": "IDE"}}, {"tides"}),
    ({"title": {"contains": "grÖß"}}, {"größe"}),
    ({"source": {"contains": ".txt"}}, {"tides", "bees", "iron"}),
    ({"source": {"contains": "t's"}}, {"iron"}),
    ({"document_id": {"contains": "'ID\"/\\"}}, {"odd 'id\"/\\"}),
    ({"author": {"contains": "brien"}}, {"iron"}),
    ({"author": {"contains": "数据"}}, {"größe"}),
    ({"author": {"contains": '"hi" \\'}}, {"odd 'id\"/\\"}),
    ({"author": {"contains": "O'", "ne": "O'Brien"}}, set()),
    ({"metadata.author": {"contains": "SAY"}}, {"odd 'id\"/\\"}),
    ({"author": {"contains": ""}}, {"iron", "größe", "odd 'id\"/\\"}),
    ({"year": {"contains": "20"}}, set()),
    ({"title": {"contains": "%"}}, set()),
    ({"title": {"contains": "T_des"}}, set()),
    ({"title": {"contains": "T.*s"}}, set()),
    ({"author": {"contains": "%') OR true --"}}, set()),
    ({"author": "' OR '1'='1"}, set()),
    ({"document_id": "x' OR 'a'='a"}, set()),
    ({"author": "x'; DROP TABLE docs; --"}, set()),
)


@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=[repr(wanted) for wanted, _ in FILTERS])
async def test_a_filter_keeps_exactly_the_documents_that_meet_it(
    library: Backend, wanted: dict[str, Any] | None, expected: set[str]
) -> None:
    assert await ids_of(library, wanted) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("date:2020", {"2020", "2020-05-01", "2020-12-31T23:59"}),
        ("date:2020-05", {"2020-05-01"}),
        ("date:2020-12", {"2020-12-31T23:59"}),
        ("date:>2020", {"2021-01-01"}),
        ("date:<=2020", {"2019-12-31", "2020", "2020-05-01", "2020-12-31T23:59"}),
        ("date:2019..2020-05", {"2019-12-31", "2020", "2020-05-01"}),
    ],
)
async def test_a_year_or_month_written_as_a_date_means_all_its_days(
    stages: Backend, written: str, expected: set[str]
) -> None:
    dates = ("2019-12-31", "2020", "2020-05-01", "2020-12-31T23:59", "2021-01-01")
    await stages.fill("docs", *[Document(date, "Bees make honey.", metadata={"date": date}) for date in dates])
    assert await ids_of(stages, parse_question(f"honey {written}").filter) == expected


async def test_a_filtered_search_still_finds_k(stages: Backend) -> None:
    near = [Document(f"near{number}", "What do the tides do?") for number in range(20)]
    far = [Document(f"far{number}", "Bees make honey.", metadata={"wanted": True}) for number in range(5)]
    await stages.fill("docs", *near, *far)
    found = await stages.search(SearchRequest("docs", 5, vector=await query(stages), filter={"wanted": True}))
    assert {passage.document_id for passage in found} == {document.id for document in far}


@pytest.mark.parametrize("field", ["yaer", "metadata.yaer"])
@pytest.mark.parametrize("wanted", [1, {"ne": 1}, {"contains": "x"}, [1, "x"]])
async def test_a_field_that_no_document_has_is_refused_with_those_that_there_are(
    library: Backend, field: str, wanted: Any
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await ids_of(library, {"lent": True, field: wanted})
    assert repr(field) in refused.value.message
    assert "year" in refused.value.message


async def test_of_many_fields_the_ten_nearest_are_named(real: Backend) -> None:
    metadata = {f"field{number}": number for number in range(20)} | {"publisher": "x"}
    await real.fill("docs", Document("a", "A text.", metadata=metadata))
    with pytest.raises(InvalidInput) as refused:
        await ids_of(real, {"publihser": "x"})
    named = refused.value.message.partition("known fields: ")[2].split(", ")
    assert named[0] == "publisher"
    assert len(named) == 10


async def test_a_field_is_known_from_the_first_document_that_has_it(stages: Backend) -> None:
    await stages.fill("docs", Document("a", "A text."))
    with pytest.raises(InvalidInput):
        await ids_of(stages, {"year": 1})
    await stages.fill("docs", Document("b", "A text.", metadata={"year": 1}))
    assert await ids_of(stages, {"year": 1}) == {"b"}
    await stages.fill("docs", Document("a", "Another text.", metadata={"author": "Ærø"}))
    assert await ids_of(stages, {"author": {"contains": "ær"}}) == {"a"}
    assert await ids_of(stages, {"year": {"gte": 1}}) == {"b"}


async def test_the_fields_of_one_collection_are_unknown_in_another(stages: Backend) -> None:
    await stages.fill("docs", Document("a", "A text."))
    await stages.fill("other", Document("a", "A text.", metadata={"year": 1}))
    with pytest.raises(InvalidInput):
        await ids_of(stages, {"year": 1})


async def test_a_collection_with_more_fields_than_are_kept_track_of_takes_any(real: Backend) -> None:
    metadata = {f"field{number}": number for number in range(1001)}
    await real.fill("docs", Document("a", "A text.", metadata=metadata))
    assert await ids_of(real, {"field7": 7}) == {"a"}
    assert await ids_of(real, {"unheard_of": 7}) == set()


async def test_a_filter_holds_for_text_search_as_well(stages: Backend) -> None:
    texts = ("tides", "tides of the sea", "bees")
    await stages.fill("docs", *(Document(f"d{n}", text, metadata={"n": n}) for n, text in enumerate(texts)))
    for wanted, expected in (({"n": {"gte": 1}}, {"d1"}), ({"document_id": "d0"}, {"d0"}), ({"n": 2}, set())):
        found = await stages.search(SearchRequest("docs", 10, "text", text="tides", filter=wanted))
        assert {passage.document_id for passage in found} == expected


async def test_a_filtered_text_search_still_finds_k(stages: Backend) -> None:
    near = [Document(f"near{number}", "tides tides tides") for number in range(20)]
    far = [Document(f"far{number}", "the sea has tides", metadata={"wanted": True}) for number in range(5)]
    await stages.fill("docs", *near, *far)
    found = await stages.search(SearchRequest("docs", 5, "text", text="tides", filter={"wanted": True}))
    assert {passage.document_id for passage in found} == {document.id for document in far}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("document_id", [f"d{number}" for number in range(1000)]),
        ("name", [f"name {number}" for number in range(1000)]),
        ("number", list(range(1000))),
        ("number", [*range(500), *(number + 0.5 for number in range(500))]),
        ("number", [*range(500), *map(str, range(499)), True]),
    ],
    ids=["column", "texts", "whole numbers", "fractions", "every kind"],
)
async def test_a_list_may_have_a_thousand_values(stages: Backend, field: str, values: list[Any]) -> None:
    numbers = (7, 499, 1000)
    documents = (Document(f"d{n}", "A text.", metadata={"number": n, "name": f"name {n}"}) for n in numbers)
    await stages.fill("docs", *documents)
    assert await ids_of(stages, {field: values}) == {"d7", "d499"}


LARGE = 1234567890123456789


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (LARGE, {"large"}),
        ([LARGE, 7], {"large", "small"}),
        ([LARGE + 1, -LARGE], {"larger", "negative"}),
        ({"ne": LARGE}, {"larger", "negative", "small", "fraction", "edge", "largest"}),
        ({"gt": LARGE}, {"larger", "largest"}),
        ({"gte": LARGE, "lte": LARGE}, {"large"}),
        ({"lt": LARGE + 1}, {"large", "negative", "small", "fraction", "edge"}),
        ({"lt": -LARGE + 1}, {"negative"}),
        (2**53, set()),
        (2**53 + 1, {"edge"}),
        ({"lte": 2**53}, {"negative", "small", "fraction"}),
        (2**63 - 1, {"largest"}),
        (2**63, set()),
        ({"gte": -(2**63)}, {"large", "larger", "negative", "small", "fraction", "edge", "largest"}),
        ({"gt": 2**64}, set()),
    ],
    # A set's words come in another order in every process, and a test keeps its name.
    ids=lambda value: "" if isinstance(value, set) else repr(value),
)
async def test_whole_numbers_are_compared_to_the_last_digit(stages: Backend, wanted: Any, expected: set[str]) -> None:
    values = {
        "large": LARGE,
        "larger": LARGE + 1,
        "negative": -LARGE,
        "small": 7,
        "fraction": 7.5,
        "edge": 2**53 + 1,
        "largest": 2**63 - 1,
    }
    await stages.fill("docs", *(Document(name, f"Text {name}.", metadata={"v": v}) for name, v in values.items()))
    assert await ids_of(stages, {"v": wanted}) == expected


async def test_large_whole_numbers_are_compared_with_floats_as_floats(real: Backend) -> None:
    values = {"float": float(LARGE), "text": str(LARGE), "whole": LARGE, "unsigned": 2**64 - 1, "beyond": 1e30}
    await real.fill("docs", *(Document(name, f"Text {name}.", metadata={"v": v}) for name, v in values.items()))
    assert await ids_of(real, {"v": LARGE}) == {"float", "whole"}
    assert await ids_of(real, {"v": [LARGE]}) == {"float", "whole"}
    assert await ids_of(real, {"v": float(LARGE)}) == {"float", "whole"}
    assert await ids_of(real, {"v": {"gt": LARGE}}) == {"unsigned", "beyond"}
    assert await ids_of(real, {"v": 2**64 - 1}) == {"unsigned"}
    assert await ids_of(real, {"v": 10**30}) == {"beyond"}


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
    assert await ids_of(real, {"v": {"contains": "7"}}) == {"text"}
    assert await ids_of(real, {"v": {"contains": ""}}) == {"text", "empty"}


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
        {"title": {"contains": 5}},
        {"year": {"contains": 20}},
        {"year": {"contains": "\ud800"}},
        {"year\x00": 1},
        {"\x00": 1},
        {"year' --": 1},
        {"%": 1},
        {'year"': 1},
        {"$.year": 1},
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
    requests = [SearchRequest("docs", 3, vector=vector, filter={"a b": 1}), SearchRequest("docs", 3, vector=vector)]
    refused, answered = await asyncio.gather(*(real.search(r) for r in requests), return_exceptions=True)
    assert isinstance(refused, InvalidInput)
    assert not isinstance(answered, BaseException)
    assert len(answered) == 3


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
        holding = {f"d{n}" for n, other in enumerate(ODD_VALUES) if value.lower() in other.lower()}
        assert await ids_of(real, {"v": {"contains": value}}) == holding
