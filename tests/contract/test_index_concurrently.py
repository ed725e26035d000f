"""What every indexer promises to those who write and read one collection at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deployments.contracts import Document, SearchRequest
from deployments.embedder import Embedder, EmbedderConfig
from deployments.indexer import Indexer, IndexerConfig
from deployments.remote import RemoteIndexer
from deployments.store import StoreConfig
from tests.contract.backends import BUDGET_S, Backend
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
