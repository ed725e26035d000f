"""Documents written while something else is measured."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.connections import Connections
from benchmarks.experiment import ExperimentError, Ingest
from benchmarks.ingest_load import IngestLoad, IngestSummary, read_documents
from benchmarks.measure import Window
from tests.http_server import listening

DOCUMENTS = [{"id": str(number), "title": "", "text": f"text {number}"} for number in range(5)]


class Server:
    """Takes documents, refuses every batch from the `full_after`th on, and tells when it has had `expected` of them."""

    def __init__(self, expected: int, full_after: int = 10**6, answer_s: float = 0.0) -> None:
        self.batches: list[dict[str, Any]] = []
        self.had_expected = asyncio.Event()
        self.at_a_time = self.most_at_a_time = 0
        self._expected, self._full_after, self._answer_s = expected, full_after, answer_s
        self.app = Starlette(routes=[Route("/v1/documents", self.index, methods=["POST"])])

    async def index(self, request: Request) -> Response:
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        self.batches.append(await request.json())
        await asyncio.sleep(self._answer_s)
        self.at_a_time -= 1
        if len(self.batches) >= self._expected:
            self.had_expected.set()
        if len(self.batches) > self._full_after:
            return JSONResponse({"error": {"message": "full"}}, 429)
        return JSONResponse({"indexed": []})


async def write(server: Server, **changes: Any) -> IngestSummary:
    """Write until the server has had what it expects, and return what was written."""
    settings = {"documents": "unused", "rate_documents_per_s": 1000, "batch_size": 2, **changes}
    async with listening(server.app) as url, Connections(url) as connections:
        load = IngestLoad(connections, Ingest.model_validate(settings), DOCUMENTS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await asyncio.wait_for(server.had_expected.wait(), timeout=30)
            load.stop()
        return load.summarise(Window(0.0, 60.0))


async def test_documents_go_round_in_batches_to_a_collection_of_their_own() -> None:
    server = Server(expected=4)
    written = await write(server)
    ids = [[document["id"] for document in batch["documents"]] for batch in server.batches[:4]]
    assert ids == [["0", "1"], ["2", "3"], ["4", "0"], ["1", "2"]]
    assert {batch["collection"] for batch in server.batches} == {"benchmark_ingest"}
    assert written.batches == len(server.batches)
    assert written.documents == 2 * written.batches
    assert written.documents_per_s == pytest.approx(written.documents / 60)
    assert written.errors == {}
    assert written.latency is not None


async def test_documents_go_to_the_collection_that_is_named() -> None:
    server = Server(expected=1)
    await write(server, collection="docs")
    assert server.batches[0]["collection"] == "docs"


async def test_no_batch_holds_a_document_twice() -> None:
    server = Server(expected=1)
    await write(server, batch_size=100)
    assert [document["id"] for document in server.batches[0]["documents"]] == ["0", "1", "2", "3", "4"]


async def test_batches_that_fail_are_counted_apart_by_kind() -> None:
    server = Server(expected=5, full_after=3)
    written = await write(server)
    assert written.batches == 3
    assert written.errors == {"shed": len(server.batches) - 3}


async def test_a_server_that_is_slower_than_the_rate_has_one_batch_at_a_time() -> None:
    server = Server(expected=5, answer_s=0.02)
    await write(server, rate_documents_per_s=100_000)
    assert server.most_at_a_time == 1


async def test_the_rate_is_kept_however_fast_the_server_is() -> None:
    server = Server(expected=1)
    async with listening(server.app) as url, Connections(url) as connections:
        settings = Ingest(documents="unused", rate_documents_per_s=0.001, batch_size=2)
        load = IngestLoad(connections, settings, DOCUMENTS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await asyncio.wait_for(server.had_expected.wait(), timeout=30)
            await asyncio.sleep(0.2)
            load.stop()
    assert len(server.batches) == 1


def test_what_was_written_outside_of_the_window_does_not_count() -> None:
    load = IngestLoad(Connections("http://127.0.0.1:1"), Ingest(documents="x", rate_documents_per_s=1), DOCUMENTS)
    assert load.summarise(Window(5.0, 5.0)) == IngestSummary(0, 0, 0.0, {}, None)


def test_documents_are_read_from_a_beir_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [
        {"_id": 7, "title": "T", "text": "x", "metadata": {}},
        {"_id": "8", "text": " "},
        {"_id": "9", "title": None, "text": "y"},
    ]
    corpus.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_documents(corpus) == [
        {"id": "7", "title": "T", "text": "x"},
        {"id": "9", "title": "", "text": "y"},
    ]


def test_the_paragraphs_of_a_folders_markdown_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Title\n\nLast one.\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("First one.\n\n\n\nSecond one,\nof two lines.", encoding="utf-8")
    (tmp_path / "c.txt").write_text("not this", encoding="utf-8")
    documents = read_documents(tmp_path)
    assert [document["text"].strip() for document in documents] == [
        "First one.",
        "Second one,\nof two lines.",
        "# Title",
        "Last one.",
    ]
    assert len({document["id"] for document in documents}) == 4


@pytest.mark.parametrize("line", ["not json", '{"_id": "1"}', '["1", "text"]'])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(f'{{"_id": "1", "text": "fine"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="line 3"):
        read_documents(corpus)


def test_documents_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"absent\.jsonl"):
        read_documents(tmp_path / "absent.jsonl")
    with pytest.raises(ExperimentError, match="holds no documents"):
        read_documents(tmp_path)
