"""What every indexer promises: replacing, rejecting, and what readers see meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest
from msgspec.structs import replace

from deployments.contracts import (
    Call,
    Document,
    EmbeddingModel,
    Embeddings,
    EmbedRequest,
    Outcome,
    SearchRequest,
)
from deployments.embedder import Embedder, EmbedderConfig
from deployments.errors import AlreadyExists, IndexMismatch, InvalidInput, NotFound, StageUnavailable
from deployments.indexer import Indexer, IndexerConfig
from deployments.remote import RemoteIndexer
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, Backend
from tests.contract.documents import LONG, PARAGRAPHS, folded, texts_in
from tests.handles import LocalHandle

ODD_IDS = ("it's", 'say "hi"', "folder/file.md", "größe 😀", "a:0", "100%_*", "x' OR '1'='1", " padded ", "\\")


async def test_a_document_is_cut_into_passages_that_together_hold_its_text(stages: Backend) -> None:
    report = await stages.indexer.index("docs", [Document("long", LONG)], BUDGET_S)
    texts = (await texts_in(stages))["long"]
    assert report.indexed == ("long",)
    assert report.num_chunks == len(texts) > 1
    assert report.num_sentences >= len(texts)
    assert report.num_tokens > 0
    assert folded(" ".join(texts)) == folded(LONG)


async def test_the_same_id_replaces_the_document(stages: Backend) -> None:
    await stages.fill("docs", Document("a", LONG), Document("b", PARAGRAPHS[1]))
    for text in (PARAGRAPHS[0], f"{LONG}\n\n{LONG}", PARAGRAPHS[2]):
        report = await stages.indexer.index("docs", [Document("a", text)], BUDGET_S)
        assert report.replaced == 1
        texts = await texts_in(stages)
        assert folded(" ".join(texts["a"])) == folded(text)
        assert folded(" ".join(texts["b"])) == folded(PARAGRAPHS[1])
    (info,) = await stages.indexer.list_collections()
    assert info.num_documents == 2
    assert info.num_chunks == sum(len(chunks) for chunks in texts.values())


async def test_new_and_replaced_documents_may_come_together(stages: Backend) -> None:
    await stages.fill("docs", Document("a", LONG))
    report = await stages.indexer.index("docs", [Document("a", PARAGRAPHS[0]), Document("b", PARAGRAPHS[1])], BUDGET_S)
    assert (set(report.indexed), report.replaced) == ({"a", "b"}, 1)
    assert set(await texts_in(stages)) == {"a", "b"}


async def test_of_one_id_twice_in_a_request_the_first_is_taken_and_the_second_rejected(stages: Backend) -> None:
    report = await stages.indexer.index("docs", [Document("a", "First text."), Document("a", "Second text.")], BUDGET_S)
    assert report.indexed == ("a",)
    assert [rejected.id for rejected in report.rejected] == ["a"]
    assert await texts_in(stages) == {"a": ["First text."]}


@pytest.mark.parametrize("text", ["", " \n\t "])
async def test_a_document_without_text_is_rejected_with_a_reason_and_the_others_are_written(
    stages: Backend, text: str
) -> None:
    report = await stages.indexer.index("docs", [Document("empty", text), Document("a", "Some text.")], BUDGET_S)
    assert report.indexed == ("a",)
    (rejected,) = report.rejected
    assert rejected.id == "empty"
    assert "text" in rejected.reason
    assert await texts_in(stages) == {"a": ["Some text."]}


@pytest.mark.parametrize(
    "document",
    [
        Document("", "Some text."),
        Document("x" * 513, "Some text."),
        Document("half", "half of a pair: \ud800"),
        Document("half", "Some text.", title="\udfff"),
        Document("half", "Some text.", source="\udfff"),
        Document("half \ud800", "Some text."),
        Document("nan", "Some text.", metadata={"x": float("nan")}),
        Document("nested", "Some text.", metadata={"x": {"y": 1}}),
        Document("nested", "Some text.", metadata={"x": [1]}),
        Document("object", "Some text.", metadata={"x": object()}),
        Document("half", "Some text.", metadata={"x": "\ud800"}),
    ],
    ids=[
        "no id",
        "long id",
        "surrogate in text",
        "surrogate in title",
        "surrogate in source",
        "surrogate in id",
        "not a number",
        "nested object",
        "nested list",
        "no JSON",
        "surrogate in metadata",
    ],
)
async def test_a_document_that_can_not_be_stored_is_rejected_and_the_others_are_written(
    real: Backend, document: Document
) -> None:
    report = await real.indexer.index("docs", [document, Document("a", "Some text.")], BUDGET_S)
    assert report.indexed == ("a",)
    (rejected,) = report.rejected
    assert rejected.id == document.id
    assert rejected.reason
    assert await texts_in(real) == {"a": ["Some text."]}


@pytest.mark.parametrize("text", ["---", "#", "```\ncode\n```", "\u200b", "\x00", "x" * 5000, "😀", "|a|b|\n|-|-|"])
@pytest.mark.parametrize("source", ["", "page.md"])
async def test_odd_texts_are_indexed_whole(real: Backend, text: str, source: str) -> None:
    await real.fill("docs", Document("odd", text, source=source))
    assert re.sub(r"\s", "", "".join((await texts_in(real))["odd"])) == re.sub(r"\s", "", text)


async def test_a_request_of_rejected_documents_alone_writes_nothing(stages: Backend) -> None:
    report = await stages.indexer.index("docs", [Document("a", "")], BUDGET_S)
    assert (report.indexed, report.num_chunks, len(report.rejected)) == ((), 0, 1)


async def test_a_document_comes_back_as_it_was_given_up_to_white_space(stages: Backend) -> None:
    metadata = {"year": 2001, "price": 9.5, "lent": True, "author": "O'Brien 😀", "nothing": None}
    document = Document("a/b", LONG, 'The "title"', "sea.md", metadata)
    await stages.fill("docs", document)
    stored = await stages.indexer.get_document("docs", "a/b")
    assert folded(stored.document.text) == folded(LONG)
    assert replace(stored.document, text=LONG) == document
    assert stored.num_chunks == len((await texts_in(stages))["a/b"])
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stored.indexed_at)


async def test_overlapping_passages_do_not_repeat_text_in_the_document(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    config = IndexerConfig.model_validate({"chunking": {"chunk_tokens": 48, "overlap_tokens": 24}})
    indexer = Indexer(config, StoreConfig(uri=str(tmp_path)), tiny_config.model, LocalHandle(tiny))
    text = " ".join(f"word{number}" for number in range(200))
    report = await indexer.index("overlapping", [Document("a", text)], BUDGET_S)
    assert report.num_chunks > 2
    assert (await indexer.get_document("overlapping", "a")).document.text == text
    assert sum(len(chunk) for chunk in (await texts_in(real, "overlapping"))["a"]) > len(text)


async def test_a_deleted_document_is_gone_and_the_others_are_not(stages: Backend) -> None:
    await stages.fill("docs", Document("a", LONG), Document("b", "Some text."))
    num_chunks = len((await texts_in(stages))["a"])
    assert await stages.indexer.delete_document("docs", "a") == num_chunks
    assert set(await texts_in(stages)) == {"b"}
    with pytest.raises(NotFound):
        await stages.indexer.get_document("docs", "a")
    with pytest.raises(NotFound):
        await stages.indexer.delete_document("docs", "a")


async def test_document_ids_are_taken_as_they_are(stages: Backend) -> None:
    await stages.fill("docs", *(Document(name, f"Text of {number}.") for number, name in enumerate(ODD_IDS)))
    for number, name in enumerate(ODD_IDS):
        stored = await stages.indexer.get_document("docs", name)
        assert (stored.document.id, stored.document.text) == (name, f"Text of {number}.")
    await stages.fill("docs", Document(ODD_IDS[0], "Another text."))
    for remaining, name in reversed(list(enumerate(ODD_IDS))):
        assert await stages.indexer.delete_document("docs", name) == 1
        assert len(await texts_in(stages)) == remaining


async def test_collections_are_made_listed_and_deleted(stages: Backend) -> None:
    made = await stages.indexer.create_collection("b-2")
    assert (made.name, made.num_documents, made.num_chunks) == ("b-2", 0, 0)
    await stages.fill("a_1", Document("a", LONG), Document("b", "Some text."))
    first, second = await stages.indexer.list_collections()
    assert second == made
    assert (first.name, first.num_documents, first.embedding_model) == ("a_1", 2, made.embedding_model)
    assert (first.num_chunks, first.dim) == (len((await texts_in(stages, "a_1"))["a"]) + 1, made.dim)
    await stages.indexer.delete_collection("a_1")
    assert await stages.indexer.list_collections() == [made]


async def test_a_collection_is_made_once_and_deleted_once(stages: Backend) -> None:
    await stages.indexer.create_collection("docs")
    with pytest.raises(AlreadyExists):
        await stages.indexer.create_collection("docs")
    await stages.indexer.delete_collection("docs")
    with pytest.raises(NotFound):
        await stages.indexer.delete_collection("docs")


async def test_of_many_who_make_one_collection_at_once_one_does(stages: Backend) -> None:
    results = await asyncio.gather(
        *(stages.indexer.create_collection("docs") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, AlreadyExists) for result in results) == 4
    assert len(await stages.indexer.list_collections()) == 1


async def test_what_is_asked_of_an_unknown_collection_is_not_found(stages: Backend) -> None:
    with pytest.raises(NotFound):
        await stages.indexer.get_document("nowhere", "a")
    with pytest.raises(NotFound):
        await stages.indexer.delete_document("nowhere", "a")


@pytest.mark.parametrize("name", ["", "../docs", "a/b", "-a", "a b", "größe", "x" * 64])
async def test_a_collection_can_not_have_any_name(stages: Backend, name: str) -> None:
    with pytest.raises(InvalidInput):
        await stages.indexer.create_collection(name)


async def test_more_collections_than_one_page_of_the_store_are_listed(real: Backend) -> None:
    names = [f"c{number:02d}" for number in range(25)]
    for name in names:
        await real.indexer.create_collection(name)
    assert [info.name for info in await real.indexer.list_collections()] == names


async def test_a_collection_made_with_another_model_takes_no_documents(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    class Renamed:
        """The same vectors under another model's name."""

        embed = tiny.embed

        async def describe(self, model: str) -> EmbeddingModel:
            return replace(await tiny.describe(model), name="another-model")

    store, folder = StoreConfig(uri=str(tmp_path)), tiny_config.model
    await real.fill("docs", Document("a", "Some text."))
    other = RemoteIndexer(LocalHandle(Indexer(IndexerConfig(), store, folder, LocalHandle(Renamed()))))
    with pytest.raises(IndexMismatch, match="another-model"):
        await other.index("docs", [Document("b", "Other text.")], BUDGET_S)
    assert set(await texts_in(real)) == {"a"}


async def test_documents_are_embedded_by_the_configured_model_alone_while_the_embedder_changes(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    other = EmbedderConfig(engine="tests.engines:WordHashEncoder", model="other")
    rolling = LocalHandle(Rolling(Embedder(other), tiny))
    store, config = StoreConfig(uri=str(tmp_path)), IndexerConfig()
    indexer = RemoteIndexer(LocalHandle(Indexer(config, store, tiny_config.model, rolling)))
    with pytest.raises(StageUnavailable):
        await indexer.create_collection("docs")
    made = await indexer.create_collection("docs")
    assert made.embedding_model == (await tiny.describe()).name
    assert (await indexer.index("docs", [Document("a", "Some text.")], BUDGET_S)).indexed == ("a",)
    vector = (await real.embed("Some text."))[0]
    (passage,) = await real.search(SearchRequest("docs", 1, vector=vector))
    assert passage.score == pytest.approx(1.0, abs=1e-4)


async def test_an_indexer_whose_model_has_gone_writes_nothing(tiny: Embedder, real: Backend, tmp_path: Path) -> None:
    other = EmbedderConfig(engine="tests.engines:WordHashEncoder")
    replicas = Rolling(Embedder(other), tiny, tiny)
    store = StoreConfig(uri=str(tmp_path))
    indexer = RemoteIndexer(LocalHandle(Indexer(IndexerConfig(), store, other.model, LocalHandle(replicas))))
    with pytest.raises(StageUnavailable):
        await indexer.index("docs", [Document("a", "Some text.")], BUDGET_S)
    assert await real.indexer.list_collections() == []


class Rolling:
    """Replicas of an embedder in the middle of an update; each call goes to the next one in turn."""

    def __init__(self, *replicas: Embedder) -> None:
        self._replicas = cycle(replicas)

    async def describe(self, model: str) -> EmbeddingModel:
        return await next(self._replicas).describe(model)

    async def embed(self, calls: Sequence[Call[EmbedRequest]]) -> list[Outcome[Embeddings]]:
        return await next(self._replicas).embed(calls)


async def test_a_short_document_is_embedded_in_one_request(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    class Counting:
        """The embedder, which remembers the texts of each request."""

        def __init__(self) -> None:
            self.describe = tiny.describe
            self.requests: list[tuple[str, ...]] = []

        async def embed(self, calls: Sequence[Call[EmbedRequest]]) -> list[Outcome[Embeddings]]:
            self.requests += [call.request.texts for call in calls]
            return await tiny.embed(calls)

    first, second = "The moon pulls the tides of the sea.", "It does so twice on each and every day."
    counting = Counting()
    indexer = Indexer(IndexerConfig(), StoreConfig(uri=str(tmp_path)), tiny_config.model, LocalHandle(counting))
    report = await indexer.index("docs", [Document("a", f"{first} {second}", "The sea")], BUDGET_S)
    (texts,) = counting.requests
    assert (report.num_chunks, report.num_sentences) == (1, 2)
    assert texts[1:] == (first, second, "The sea")
    alone = [await real.embedder.embed(EmbedRequest((text,), "passage"), BUDGET_S) for text in texts]
    assert report.num_tokens == sum(embedded.value.num_tokens for embedded in alone)
    vector = (await real.embed(texts[0]))[0]
    (passage,) = await real.search(SearchRequest("docs", 1, vector=vector))
    assert passage.score == pytest.approx(1.0, abs=1e-4)


async def test_a_store_outlives_its_stages(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    await real.fill("docs", Document("a", LONG, "Title", "a.md", {"year": 2001}))
    store, folder = StoreConfig(uri=str(tmp_path)), tiny_config.model
    later = RemoteIndexer(LocalHandle(Indexer(IndexerConfig(), store, folder, LocalHandle(tiny))))
    stored = await later.get_document("docs", "a")
    assert json.loads(json.dumps(dict(stored.document.metadata))) == {"year": 2001}
    assert (await later.index("docs", [Document("a", "New text.")], BUDGET_S)).replaced == 1
    assert await texts_in(real) == {"a": ["New text."]}
