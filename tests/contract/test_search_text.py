"""What every retriever promises of text search. What a word is, the index says; here that of the default options."""

from __future__ import annotations

import asyncio
from pathlib import Path

import lancedb
import pytest

from deployments.contracts import Document, Searches, SearchRequest
from deployments.embedder import Embedder, EmbedderConfig
from deployments.errors import DeadlineExceeded, IndexMismatch, InvalidInput, NotFound
from deployments.hop import HopConfig
from deployments.indexer import Indexer, IndexerConfig
from deployments.remote import RemoteRetriever
from deployments.retriever import Retriever, RetrieverConfig
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, Backend
from tests.handles import LocalHandle

TEXTS = {
    "moon": "The moon pulls the tides of the sea.",
    "day": "The tides turn twice a day, and twice a day the sea is still.",
    "bees": "Bees make honey from nectar.",
    "iron": "Iron rusts in moist air.",
}


@pytest.fixture
async def filled(stages: Backend) -> Backend:
    await stages.fill("docs", *(Document(name, text) for name, text in TEXTS.items()))
    return stages


def asked(text: str, k: int = 100) -> SearchRequest:
    return SearchRequest("docs", k, "text", text=text)


async def ids_of(backend: Backend, text: str) -> list[str]:
    return [passage.document_id for passage in await backend.search(asked(text))]


async def test_only_passages_that_share_a_word_are_found(filled: Backend) -> None:
    assert set(await ids_of(filled, "sea honey")) == {"moon", "day", "bees"}
    assert await ids_of(filled, "submarine") == []
    assert await ids_of(filled, "submarine honey") == ["bees"]


async def test_passages_come_by_descending_score(filled: Backend) -> None:
    found = await filled.search(asked("sea moon tides honey day twice"))
    scores = [passage.score for passage in found]
    assert len(found) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


async def test_a_rare_word_weighs_more_than_a_common_one(stages: Backend) -> None:
    common = [Document(f"c{number}", "a common text") for number in range(20)]
    await stages.fill("docs", *common, Document("rare", "a rare text"))
    assert (await ids_of(stages, "rare common"))[0] == "rare"


async def test_the_title_counts_as_well_as_the_text(stages: Backend) -> None:
    await stages.fill(
        "docs",
        Document("text", "The otter swims in the brook.", "Water"),
        Document("title", "It swims in the brook.", "The otter"),
        Document("both", "The otter swims in the brook.", "The otter"),
        Document("neither", "The brook runs into the sea.", "Water"),
    )
    assert await ids_of(stages, "otter") in (["both", "text", "title"], ["both", "title", "text"])
    assert (await ids_of(stages, "otter sea"))[-1] in ("text", "title")


@pytest.mark.parametrize("k", [1, 2, 3])
async def test_at_most_k_passages_come_and_they_are_the_best(filled: Backend, k: int) -> None:
    everything = await filled.search(asked("sea moon tides honey day"))
    assert await filled.search(asked("sea moon tides honey day", k)) == everything[:k]


async def test_ties_are_ordered_by_id(stages: Backend) -> None:
    await stages.fill("docs", *(Document(name, "One and the same text.") for name in ("c", "e", "a", "d", "b")))
    found = await stages.search(asked("text"))
    assert len({passage.score for passage in found}) == 1
    assert [passage.document_id for passage in found] == ["a", "b", "c", "d", "e"]


ODD_QUERIES = (
    *("   ", "\n\t", "\x00", "\u200b", "\ufeff", "😀", "日本語", "?", "...", "''", '"', "(", "[", "{", "\\", "*", "%"),
    *("OR", "OR NOT", "NOT honey", "+honey -honey", '"honey from', "honey*", "honey~2", "honey^5", "text:honey"),
    *(
        "(honey OR",
        "[b TO z]",
        "/honey/",
        "honey !brook",
        "\x00honey\x00",
        "honey'; DROP TABLE docs; --",
        "${honey}",
    ),
    *("HONEY!!!", "what about honey?", "<b>honey</b>", '{"match": {"query": "honey"}}', "h\udfffoney honey"),
    *("x" * 8000, "honey " * 1333, "".join(f"w{number} " for number in range(1300)) + "honey"),
    *("\\" * 4000, '"' * 4001, "😀" * 2000),
)


@pytest.mark.parametrize("text", ODD_QUERIES, ids=lambda text: ascii(text[:16]))
async def test_a_query_is_words_whatever_it_looks_like(filled: Backend, text: str) -> None:
    found = await ids_of(filled, text)
    assert found == (["bees"] if "honey" in text.lower() else [])


async def test_a_search_without_what_it_needs_is_refused(filled: Backend) -> None:
    vector = (await filled.embed("tides"))[0]
    with pytest.raises(InvalidInput, match="text"):
        await filled.search(SearchRequest("docs", 3, "text", vector=vector))
    with pytest.raises(InvalidInput, match="vector"):
        await filled.search(SearchRequest("docs", 3, "vector", text="tides"))


async def test_an_unknown_collection_is_not_found(filled: Backend) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await filled.search(SearchRequest("nowhere", 3, "text", text="tides"))


async def test_an_empty_collection_has_no_passages(stages: Backend) -> None:
    await stages.indexer.create_collection("docs")
    assert await ids_of(stages, "tides") == []


async def test_without_time_left_nothing_is_searched(filled: Backend) -> None:
    with pytest.raises(DeadlineExceeded):
        await filled.retriever.search(asked("tides"), 0.0)


async def test_searches_of_both_kinds_that_arrive_together_each_get_their_own_result(filled: Backend) -> None:
    vectors = await filled.embed("What moves the sea?", "Who makes honey?")
    requests = [
        *(SearchRequest("docs", k, vector=vector) for vector in vectors for k in (1, 3)),
        *(asked(text, k) for text in ("sea", "honey", "sea", "tides twice", "submarine") for k in (1, 3)),
        *(SearchRequest("docs", 3, "text", text="sea", filter={"document_id": name}) for name in TEXTS),
    ]
    alone = [await filled.search(request) for request in requests]
    bad = [asked(""), SearchRequest("nowhere", 1, "text", text="sea"), SearchRequest("docs", 1)]
    together = await asyncio.gather(*(filled.search(r) for r in [*bad, *requests]), return_exceptions=True)
    assert [type(error) for error in together[:3]] == [InvalidInput, NotFound, InvalidInput]
    assert together[3:] == alone


async def test_what_is_written_deleted_or_replaced_shows_at_once(filled: Backend) -> None:
    assert await ids_of(filled, "submarine") == []
    await filled.fill("docs", Document("late", "A submarine dives."))
    assert await ids_of(filled, "submarine") == ["late"]
    await filled.fill("docs", Document("late", "A whale dives."))
    assert await ids_of(filled, "submarine") == []
    assert await ids_of(filled, "whale") == ["late"]
    await filled.indexer.delete_document("docs", "late")
    assert await ids_of(filled, "whale dives") == []
    assert set(await ids_of(filled, "tides")) == {"moon", "day"}


async def test_a_collection_that_was_made_anew_shows_only_what_is_in_it_now(filled: Backend) -> None:
    for generation in range(3):
        await ids_of(filled, "tides")
        await filled.indexer.delete_collection("docs")
        with pytest.raises(NotFound):
            await ids_of(filled, "tides")
        await filled.fill("docs", Document(f"new{generation}", "A new text."))
        assert await ids_of(filled, "tides") == []
        assert await ids_of(filled, "new") == [f"new{generation}"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("She was running home", "run"),
        ("The regulation of genes", "regulated gene"),
        ("A café in Ærø", "CAFE"),
        ("IRON", "iron"),
        ("the", "the brook"),
    ],
    ids=["stem", "stem", "accents", "case", "stop words"],
)
async def test_forms_of_a_word_are_the_same_and_stop_words_are_none(real: Backend, text: str, query: str) -> None:
    await real.fill("docs", Document("a", text), Document("other", "Nothing of the sort."))
    assert await ids_of(real, query) == ([] if text == "the" else ["a"])


def one_word_each(count: int, start: int = 0) -> list[Document]:
    return [Document(f"d{n:04d}", f"word{n} stands here among some others") for n in range(start, start + count)]


@pytest.fixture
def indexing(tiny: Embedder, tiny_config: EmbedderConfig, tmp_path: Path) -> Indexer:
    """An indexer that never finds the time for maintenance: what comes after the first documents is in no index."""
    config = IndexerConfig(maintain_after_s=1e6, min_unindexed_rows=10**9, commits_per_optimize=10**9)
    return Indexer(config, StoreConfig(uri=str(tmp_path)), tiny_config.model, LocalHandle(tiny))


@pytest.fixture
def retriever(tmp_path: Path) -> Searches:
    return RemoteRetriever(LocalHandle(Retriever(RetrieverConfig(), StoreConfig(uri=str(tmp_path)))), HopConfig())


async def search(retriever: Searches, text: str, k: int = 100) -> dict[str, float]:
    """Scores by document id, the best first."""
    found = (await retriever.search(asked(text, k), BUDGET_S)).value
    return {passage.document_id: passage.score for passage in found.passages}


async def test_passages_in_no_index_are_found_and_scored_like_the_others(
    indexing: Indexer, retriever: Searches, tmp_path: Path
) -> None:
    await indexing.index("docs", [*one_word_each(100), Document("a", "The submarine dives")], BUDGET_S)
    table = await (await lancedb.connect_async(tmp_path)).open_table("docs")
    await table.optimize()
    await indexing.index("docs", [Document("b", "The submarine dives")], BUDGET_S)
    (coverage,) = {info.index_coverage["text"] for info in await indexing.list_collections()}
    assert 0 < coverage < 1
    scores = await search(retriever, "submarines")
    assert set(scores) == {"a", "b"}
    assert scores["a"] == pytest.approx(scores["b"], rel=0.2)
    assert set(await search(retriever, "word7 submarine")) == {"d0007", "a", "b"}


async def test_a_replaced_passage_leaves_the_index_with_its_words(
    indexing: Indexer, retriever: Searches, tmp_path: Path
) -> None:
    await indexing.index("docs", one_word_each(20), BUDGET_S)
    table = await (await lancedb.connect_async(tmp_path)).open_table("docs")
    await table.optimize()
    await indexing.index("docs", [Document("d0003", "replaced")], BUDGET_S)
    await indexing.delete_document("docs", "d0004")
    assert await search(retriever, "word3 word4") == {}
    assert set(await search(retriever, "word5 replaced")) == {"d0005", "d0003"}
    assert len(await search(retriever, "stands")) == 18


async def test_a_collection_from_before_text_search_says_what_to_do_and_gets_it_with_the_next_document(
    indexing: Indexer, retriever: Searches, tmp_path: Path
) -> None:
    await indexing.index("docs", one_word_each(3), BUDGET_S)
    table = await (await lancedb.connect_async(tmp_path)).open_table("docs")
    for index in await table.list_indices():
        await table.drop_index(index.name)
    await table.drop_columns(["search_text"])
    with pytest.raises(IndexMismatch, match="docs"):
        await search(retriever, "word1")
    await indexing.index("docs", [Document("d0001", "A submarine dives", "New")], BUDGET_S)
    assert set(await search(retriever, "word2 submarine")) == {"d0001", "d0002"}


async def test_without_an_index_text_search_still_finds_words(
    indexing: Indexer, retriever: Searches, tmp_path: Path
) -> None:
    await indexing.index("docs", one_word_each(3), BUDGET_S)
    table = await (await lancedb.connect_async(tmp_path)).open_table("docs")
    for index in await table.list_indices():
        await table.drop_index(index.name)
    assert set(await search(retriever, "word1")) == {"d0001"}
