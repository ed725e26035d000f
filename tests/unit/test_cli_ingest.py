"""Documents on their way to the server: batches, halving, and the count of what became of each."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.contracts import Document, RejectedDocument
from serve_app.cli.client import Client
from serve_app.cli.exits import ExitCode, Failure
from serve_app.cli.ingest import IngestReport, batches, ingest
from tests.stub_server import Reply, StubServer, error_reply, json_reply


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def documents(count: int, text: str = "text") -> list[Document]:
    return [Document(id=str(number), text=text) for number in range(count)]


def index_all(body: Any) -> Reply:
    ids = [document["id"] for document in body["documents"]]
    return json_reply(
        {"indexed": ids, "replaced": 1, "chunks": 2 * len(ids), "sentences": 5, "tokens": 7, "rejected": []}
    )


def test_batches_hold_every_document_once_and_in_order() -> None:
    groups = list(batches(documents(10), max_documents=4))
    assert [len(group) for group in groups] == [4, 4, 2]
    assert [body["id"] for group in groups for body in group] == [str(number) for number in range(10)]


def test_batches_stay_below_the_byte_limit_and_a_huge_document_goes_alone() -> None:
    small, huge = documents(2, "é" * 100), Document(id="huge", text="x" * 2000)
    groups = list(batches([small[0], huge, small[1]], max_documents=64, max_bytes=1000))
    assert [[body["id"] for body in group] for group in groups] == [["0"], ["huge"], ["1"]]
    assert all(len(json.dumps(group)) <= 1000 for group in groups if group[0]["id"] != "huge")


def test_a_document_carries_all_its_fields() -> None:
    document = Document(id="a", text="t", title="T", source="s", metadata={"year": 2024})
    assert list(batches([document], 1)) == [
        [{"id": "a", "text": "t", "title": "T", "source": "s", "metadata": {"year": 2024}}]
    ]


def test_everything_taken_is_counted_over_all_batches(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = index_all
    with Client(stub.url) as client:
        report = ingest(client, "docs", documents(10), batch_size=3)
    assert (report.documents, report.chunks, report.replaced, report.sentences) == (10, 20, 4, 20)
    assert report.rejected == []
    assert report.exit_code is ExitCode.OK


def test_what_the_loader_and_the_server_reject_is_reported_together(stub: StubServer) -> None:
    reply = {"indexed": ["0"], "rejected": [{"id": "1", "reason": "empty"}]}
    stub.routes["POST /v1/documents"] = lambda _: json_reply(reply)
    items: list[Document | RejectedDocument] = [RejectedDocument("broken.md", "not UTF-8"), *documents(2)]
    with Client(stub.url) as client:
        report = ingest(client, "docs", items)
    assert report.rejected == [RejectedDocument("broken.md", "not UTF-8"), RejectedDocument("1", "empty")]
    assert report.exit_code is ExitCode.PARTLY_DONE


def test_a_document_that_is_too_large_does_not_take_its_batch_with_it(stub: StubServer) -> None:
    def refuse_large(body: Any) -> Reply:
        if any(len(document["text"]) > 100 for document in body["documents"]):
            return error_reply(413, "too large")
        return index_all(body)

    stub.routes["POST /v1/documents"] = refuse_large
    items = [*documents(7), Document(id="large", text="x" * 200)]
    with Client(stub.url) as client:
        report = ingest(client, "docs", items, batch_size=8)
    assert report.documents == 7
    assert [item.id for item in report.rejected] == ["large"]


def test_a_refusal_that_names_a_document_costs_only_that_document(stub: StubServer) -> None:
    def refuse_empty(body: Any) -> Reply:
        for position, document in enumerate(body["documents"]):
            if not document["text"]:
                return error_reply(422, f"documents.{position}.text: must not be empty")
        return index_all(body)

    stub.routes["POST /v1/documents"] = refuse_empty
    with Client(stub.url) as client:
        report = ingest(client, "docs", [*documents(3), Document(id="empty", text="")])
    assert (report.documents, [item.id for item in report.rejected]) == (3, ["empty"])


def test_a_batch_of_which_every_document_was_rejected_is_reported_and_not_sent_again(stub: StubServer) -> None:
    def reject_all(body: Any) -> Reply:
        rejected = [{"id": document["id"], "reason": "no text"} for document in body["documents"]]
        report = {"indexed": [], "replaced": 0, "chunks": 0, "sentences": 0, "tokens": 0, "rejected": rejected}
        return json_reply(report, 422)

    stub.routes["POST /v1/documents"] = lambda body: (index_all if len(body["documents"]) == 4 else reject_all)(body)
    with Client(stub.url) as client:
        report = ingest(client, "docs", documents(6), batch_size=4)
    assert (report.documents, report.exit_code) == (4, ExitCode.PARTLY_DONE)
    assert report.rejected == [RejectedDocument("4", "no text"), RejectedDocument("5", "no text")]
    assert len(stub.requests) == 2


def test_a_refusal_that_is_not_about_the_documents_stops_at_once(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = lambda _: error_reply(400, "collection 'a b' is not a valid name")
    with Client(stub.url) as client, pytest.raises(Failure, match="not a valid name"):
        ingest(client, "a b", documents(50), batch_size=50)
    assert len(stub.requests) == 1


def test_a_failing_server_stops_the_ingest(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = lambda _: error_reply(500, "the disk is full")
    with Client(stub.url) as client, pytest.raises(Failure, match="the disk is full"):
        ingest(client, "docs", documents(1000), batch_size=1)
    assert len(stub.requests) < 10


@pytest.mark.parametrize("num_documents", [2, 3, 50])
def test_a_failure_waits_for_no_other_request(stub: StubServer, num_documents: int) -> None:
    goes_on = threading.Event()
    waited: list[bool] = []

    def answer(body: Any) -> Reply:
        if body["documents"][0]["id"] == "0":
            waited.append(goes_on.wait(30))
            return index_all(body)
        return error_reply(500, "the disk is full")

    stub.routes["POST /v1/documents"] = answer
    with Client(stub.url) as client, pytest.raises(Failure, match="the disk is full"):
        ingest(client, "docs", documents(num_documents), batch_size=1)
    assert waited == []
    goes_on.set()


def test_progress_ends_with_every_document_accounted_for(stub: StubServer) -> None:
    stub.routes["POST /v1/documents"] = index_all
    seen: list[int] = []
    with Client(stub.url) as client:
        ingest(client, "docs", documents(9), 2, lambda report: seen.append(report.documents + len(report.rejected)))
    assert seen == sorted(seen)
    assert seen[-1] == 9


def test_an_ingest_that_took_nothing_is_a_failure() -> None:
    assert IngestReport(rejected=[RejectedDocument("a", "empty")]).exit_code is ExitCode.FAILED
