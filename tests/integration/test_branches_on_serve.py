"""The lane's branches on real Ray Serve: what each of them finds, and that they find the same one after the other.

The embedder hashes words, so that a vector knows nothing but a text's exact words; the generator plans sub-queries.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.serving import StartApp, until_covered

CONFIG: dict[str, Any] = {
    "embedder": {"engine": "tests.engines:WordHashEncoder"},
    "generator": {"engine": "tests.engines:Planner"},
}
LANE = {
    "default_collection": "notes",
    "default_k": 3,
    "llm_rewriting": {"enabled": True},
    "fusion": {"sub_query_weight": 1},
}

DOCUMENTS = [
    {"id": "pump", "text": "It stopped (E4711)."},
    {"id": "valve", "text": "Valves open by hand and close by themselves when the boiler is cold."},
    {"id": "boiler", "text": "A boiler that leaks is emptied first and repaired on the next day."},
    {"id": "anna", "text": "anna's garden has roses"},
    {"id": "otto", "text": "otto's orchard has plums"},
]


@pytest.fixture(scope="module")
def start(start_app: StartApp) -> Callable[..., str]:
    """Brings the application to other options of the lane; the documents are there."""

    def start(**options: Any) -> str:
        return start_app(CONFIG | {"lane": LANE | options})

    url = start()
    taken = httpx.post(f"{url}/v1/documents", json={"documents": DOCUMENTS}, timeout=60)
    assert len(taken.json()["indexed"]) == len(DOCUMENTS)
    until_covered(url, "notes")
    return start


@pytest.fixture(scope="module")
def url(start: Callable[..., str]) -> str:
    return start()


async def search(url: str, *queries: str, **options: Any) -> list[dict[str, Any]]:
    """Ask all at once; the answers in the order of the queries."""
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as client:
        posts = [client.post("/v1/search", json={"query": query, "rerank": False} | options) for query in queries]
        return [response.raise_for_status().json() for response in await asyncio.gather(*posts)]


def ids(found: dict[str, Any]) -> list[str]:
    return [result["document_id"] for result in found["results"]]


def rows(found: dict[str, Any], call: str) -> list[dict[str, Any]]:
    return [row for row in found["timings"] if f"{row['stage']} {row['branch']}".strip() == call]


async def test_hybrid_search_finds_by_words_what_vectors_miss(url: str) -> None:
    (by_vector,) = await search(url, "E4711", mode="vector", k=1)
    (by_text,) = await search(url, "E4711", mode="text", k=1)
    (by_both,) = await search(url, "E4711", k=1)
    assert ids(by_vector) != ["pump"]
    assert ids(by_text) == ["pump"]
    assert ids(by_both) == ["pump"]


async def test_hybrid_search_finds_by_vectors_what_words_miss(url: str) -> None:
    (by_text,) = await search(url, "by and by", mode="text")
    (by_both,) = await search(url, "by and by", k=1)
    assert ids(by_text) == []
    assert ids(by_both) == ["valve"]


async def test_a_comparison_is_searched_thing_by_thing_beside_the_question(url: str) -> None:
    question = "Which is older, the boiler or the orchard?"
    (found,) = await search(url, question)
    (plain,) = await search(url, question, rewrite=False)
    assert (len(rows(found, "search vector")), len(rows(found, "search text"))) == (3, 3)
    assert (len(rows(plain, "search vector")), len(rows(plain, "search text"))) == (1, 1)
    assert (len(rows(found, "embed")), found["degraded"]) == (1, [])
    assert {"boiler", "otto"} <= set(ids(found))


async def test_a_language_model_s_sub_query_is_searched_beside_the_question(url: str) -> None:
    (found,) = await search(url, "plan sesor", k=1)
    assert ids(found) == ["anna"]
    assert found["degraded"] == []
    assert len(rows(found, "rewrite language model")) == 1
    assert (len(rows(found, "search vector")), len(rows(found, "search text"))) == (2, 2)
    (plain,) = await search(url, "plan sesor", k=1, rewrite=False)
    assert rows(plain, "rewrite language model") == []
    assert ids(plain) != ["anna"]


async def test_a_language_model_that_writes_no_json_is_left_out_and_named(url: str) -> None:
    (found,) = await search(url, "ramble about roses", k=1)
    assert (ids(found), found["degraded"]) == (["anna"], ["rewrite"])


async def test_branches_one_after_the_other_find_what_they_find_at_once(start: Callable[..., str]) -> None:
    asked = [
        "code E4711",
        "by and by",
        "Which is older, the boiler or the orchard?",
        "plan sesor",
        "ramble about plums",
    ]
    # Many at a time, so that hops are shared; no two alike, so that no cache answers.
    queries = [query.replace(" ", f" number{number} ", 1) for number in range(8) for query in asked]
    at_once = await search(start(), *queries)
    in_a_row = await search(start(concurrent=False), *queries)
    for one, other in zip(at_once, in_a_row, strict=True):
        assert ids(one) == ids(other)
        assert scores(one) == pytest.approx(scores(other), abs=1e-6)
        assert one["degraded"] == other["degraded"]
        assert sorted(calls(one)) == sorted(calls(other))
        assert side_by_side(one)
        assert not side_by_side(other)


def scores(found: dict[str, Any]) -> list[float]:
    return [result["score"] for result in found["results"]]


def calls(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["stage"], row["branch"]) for row in found["timings"]]


def side_by_side(found: dict[str, Any]) -> bool:
    """Whether any call begins before one that began earlier has ended."""
    spans = sorted((row["start_s"], row["start_s"] + row["total_s"]) for row in found["timings"])
    rounding_s = 1e-6
    return any(start < end - rounding_s for (_, end), (start, _) in itertools.pairwise(spans))
