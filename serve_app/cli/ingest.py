"""Sends documents to a server: in batches, a few requests in flight, counting what becomes of each document."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from deployments.contracts import Document, RejectedDocument
from serve_app.cli.client import Client, Json, RequestRefused, RequestTooLarge
from serve_app.cli.exits import ExitCode

MAX_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
DEFAULT_BATCH_SIZE = 64
REQUESTS_IN_FLIGHT = 2


@dataclass(slots=True)
class IngestReport:
    """What became of the documents so far. Every document is counted in `documents` or named in `rejected`."""

    documents: int = 0
    replaced: int = 0
    chunks: int = 0
    sentences: int = 0
    tokens: int = 0
    rejected: list[RejectedDocument] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def documents_per_s(self) -> float:
        return self.documents / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def exit_code(self) -> ExitCode:
        if not self.documents:
            return ExitCode.FAILED
        return ExitCode.PARTLY_DONE if self.rejected else ExitCode.OK

    def add(self, response: Json) -> None:
        self.documents += len(response.get("indexed") or [])
        for name in ("replaced", "chunks", "sentences", "tokens"):
            setattr(self, name, getattr(self, name) + int(response.get(name) or 0))
        for item in response.get("rejected") or []:
            self.rejected.append(RejectedDocument(str(item["id"]), str(item["reason"])))

    def as_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "replaced": self.replaced,
            "chunks": self.chunks,
            "sentences": self.sentences,
            "tokens": self.tokens,
            "rejected": [{"id": item.id, "reason": item.reason} for item in self.rejected],
            "elapsed_s": round(self.elapsed_s, 3),
            "documents_per_s": round(self.documents_per_s, 1),
        }


def ingest(
    client: Client,
    collection: str,
    items: Iterable[Document | RejectedDocument],
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: Callable[[IngestReport], None] = lambda _: None,
) -> IngestReport:
    """Index every document that can be; raises Failure if the server can't be worked with at all.

    Whatever ends it early does so at once: requests in flight are left to themselves.
    """
    report = IngestReport()
    started = time.monotonic()
    pending: set[Future[list[Json]]] = set()

    def collect(done: set[Future[list[Json]]]) -> None:
        for future in done:
            for response in future.result():
                report.add(response)
        report.elapsed_s = time.monotonic() - started
        on_progress(report)

    for batch in batches(_accepted(items, report), batch_size):
        if len(pending) == REQUESTS_IN_FLIGHT:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            collect(done)
        pending.add(_in_background(client, collection, batch))
    collect(wait(pending, return_when=FIRST_EXCEPTION).done)
    return report


def _accepted(items: Iterable[Document | RejectedDocument], report: IngestReport) -> Iterator[Document]:
    for item in items:
        if isinstance(item, RejectedDocument):
            report.rejected.append(item)
        else:
            yield item


def batches(
    documents: Iterable[Document], max_documents: int, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[list[Json]]:
    """Groups of request documents within both limits, in order. A document larger than the limit goes alone."""
    batch: list[Json] = []
    num_bytes = 0
    for document in documents:
        body = _body(document)
        size = len(json.dumps(body, ensure_ascii=False).encode(errors="replace"))
        if batch and (len(batch) == max_documents or num_bytes + size > max_bytes):
            yield batch
            batch, num_bytes = [], 0
        batch.append(body)
        num_bytes += size
    if batch:
        yield batch


def _body(document: Document) -> Json:
    return {
        "id": document.id,
        "text": document.text,
        "title": document.title,
        "source": document.source,
        "metadata": dict(document.metadata),
    }


def _in_background(client: Client, collection: str, batch: list[Json]) -> Future[list[Json]]:
    """Send the batch from a daemon thread: those of an executor are joined before the command can end."""
    future: Future[list[Json]] = Future()

    def send() -> None:
        try:
            future.set_result(_send(client, collection, batch))
        except BaseException as error:  # noqa: BLE001 (whoever asks for the result gets it)
            future.set_exception(error)

    Thread(target=send, daemon=True).start()
    return future


def _send(client: Client, collection: str, batch: list[Json]) -> list[Json]:
    """Index a batch; what is refused as a whole is halved until the documents at fault stand alone."""
    try:
        return [client.index(collection, batch)]
    except (RequestTooLarge, RequestRefused) as error:
        # A refusal that is not about the documents (the collection's name, say) would be the same for each of them.
        if isinstance(error, RequestRefused) and "documents" not in error.message:
            raise
        if len(batch) == 1:
            return [{"rejected": [{"id": batch[0]["id"], "reason": error.message}]}]
        middle = len(batch) // 2
        return _send(client, collection, batch[:middle]) + _send(client, collection, batch[middle:])
