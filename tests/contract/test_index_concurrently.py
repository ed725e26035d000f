"""What every indexer promises to those who write and read one collection at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deployments.contracts import Call, Document, Embeddings, EmbedRequest, Outcome, SearchRequest
from deployments.embedder import Embedder, EmbedderConfig
from deployments.errors import Overloaded
from deployments.indexer import INDEXED_AT_ONCE, MAX_INDEXINGS, Indexer, IndexerConfig
from deployments.ingestion.preparation import Preparer
from deployments.remote import RemoteIndexer
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, NEVER_S, Backend
from tests.contract.documents import LONG, PARAGRAPHS, folded, texts_in
from tests.handles import LocalHandle


async def test_documents_indexed_at_the_same_time_are_all_kept(stages: Backend) -> None:
    """Five writers of twenty documents each, half of them the same ones again and again."""

    async def write(writer: int) -> None:
        for start in range(0, 20, 5):
            shared = [Document(f"shared{n}", f"Writer {writer} wrote {n}.") for n in range(start, start + 3)]
            own = [Document(f"w{writer}-{n}", f"Text {n} of {writer}.") for n in range(start, start + 5)]
            report = await stages.indexer.index("docs", shared + own, BUDGET_S)
            assert len(report.indexed) == 8

    await asyncio.gather(*(write(writer) for writer in range(5)))
    texts = await texts_in(stages)
    expected = {f"w{writer}-{n}" for writer in range(5) for n in range(20)}
    expected |= {f"shared{start + n}" for start in range(0, 20, 5) for n in range(3)}
    assert set(texts) == expected
    for name, passages in texts.items():
        assert len(passages) == 1, name
    (info,) = await stages.indexer.list_collections()
    assert (info.num_documents, info.num_chunks) == (len(expected), len(expected))


async def test_no_reader_sees_a_document_half_replaced(stages: Backend) -> None:
    """The versions differ in length and text; every search must see exactly one of them, and all of it."""
    versions = [f"{LONG}\n\n{LONG}".replace("sea", "lake"), PARAGRAPHS[2], LONG]
    whole = {folded(version) for version in versions}
    await stages.fill("docs", Document("other", "Some text."), Document("a", versions[-1]))
    vector = (await stages.embed("anything"))[0]
    writing = asyncio.ensure_future(_replace_again_and_again(stages, versions))
    seen: set[str] = set()
    while not writing.done():
        found = await stages.search(SearchRequest("docs", 1000, vector=vector, filter={"document_id": "a"}))
        seen.add(folded(" ".join(p.text for p in sorted(found, key=lambda p: p.start))))
        await asyncio.sleep(0)
    await writing
    assert seen <= whole
    assert len(seen) > 1


async def _replace_again_and_again(backend: Backend, versions: list[str]) -> None:
    for _ in range(4):
        for version in versions:
            await backend.fill("docs", Document("a", version))
            await asyncio.sleep(0)


class Gated:
    """An embedder that answers when its gate is opened."""

    def __init__(self, inner: Embedder) -> None:
        self.describe = inner.describe
        self.gate = asyncio.Event()
        self._inner = inner

    async def embed(self, calls: Sequence[Call[EmbedRequest]]) -> list[Outcome[Embeddings]]:
        await self.gate.wait()
        return await self._inner.embed(calls)


@pytest.fixture
def gated(tiny: Embedder) -> Gated:
    return Gated(tiny)


@pytest.fixture
def waiting(gated: Gated, tiny_config: EmbedderConfig, tmp_path: Path) -> RemoteIndexer:
    """An indexer on the gated embedder."""
    config, store = IndexerConfig(maintain_after_s=NEVER_S), StoreConfig(uri=str(tmp_path))
    return RemoteIndexer(LocalHandle(Indexer(config, store, tiny_config.model, LocalHandle(gated))))


def begin_indexing(indexer: RemoteIndexer, count: int) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(indexer.index("docs", [Document(f"d{n}", f"Text {n}.")], BUDGET_S)) for n in range(count)
    ]


async def test_more_requests_than_may_wait_for_the_embedder_are_refused_and_those_who_leave_make_room(
    waiting: RemoteIndexer, gated: Gated
) -> None:
    writing = begin_indexing(waiting, MAX_INDEXINGS + 5)
    for refused in await asyncio.gather(*writing[MAX_INDEXINGS:], return_exceptions=True):
        assert isinstance(refused, Overloaded)
    assert await waiting.list_collections() == []
    assert not any(task.done() for task in writing[:MAX_INDEXINGS])
    for task in writing[3:MAX_INDEXINGS]:
        task.cancel()
    await asyncio.wait(writing[3:])
    gated.gate.set()
    await asyncio.gather(*writing[:3], waiting.index("docs", [Document("later", "Text.")], BUDGET_S))
    (info,) = await waiting.list_collections()
    assert info.num_documents == 4


async def test_documents_are_prepared_for_some_requests_at_a_time(
    waiting: RemoteIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_prepared = 0
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()
    prepare = Preparer.prepare

    def counted(preparer: Preparer, documents: Sequence[Document]) -> Any:
        nonlocal num_prepared
        num_prepared += 1
        if num_prepared == INDEXED_AT_ONCE:
            loop.call_soon_threadsafe(enough.set)
        return prepare(preparer, documents)

    monkeypatch.setattr(Preparer, "prepare", counted)
    writing = begin_indexing(waiting, MAX_INDEXINGS)
    await enough.wait()
    # Meanwhile the others might have been prepared.
    assert await waiting.list_collections() == []
    assert num_prepared == INDEXED_AT_ONCE
    for task in writing:
        task.cancel()
    await asyncio.wait(writing)


async def test_compaction_loses_nothing(
    tiny: Embedder, tiny_config: EmbedderConfig, real: Backend, tmp_path: Path
) -> None:
    config = IndexerConfig(commits_per_optimize=2)
    store = StoreConfig(uri=str(tmp_path))
    indexer = RemoteIndexer(LocalHandle(Indexer(config, store, tiny_config.model, LocalHandle(tiny))))
    await asyncio.gather(
        *(
            indexer.index("docs", [Document(f"d{n % 7}", f"Text {n}."), Document(f"e{n}", "x")], BUDGET_S)
            for n in range(12)
        )
    )
    assert set(await texts_in(real)) == {f"d{n}" for n in range(7)} | {f"e{n}" for n in range(12)}
