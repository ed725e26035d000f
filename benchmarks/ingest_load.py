"""Documents that are written to the server, at a bounded rate, while something else puts it under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import RequestClient
from benchmarks.connections import Connections
from benchmarks.experiment import ExperimentError, Ingest, Target
from benchmarks.measure import Distribution, Window, distribution
from benchmarks.records import Sample

TARGET = Target(path="/v1/documents")


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What was written within the window: batches that succeeded and ended in it, and the documents in them.

    A batch counts with all of its documents once the server has accepted it. `errors` counts failed batches by kind
    and `latency` is that of the batches that succeeded.
    """

    documents: int
    batches: int
    documents_per_s: float
    errors: dict[str, int]
    latency: Distribution | None


class IngestLoad:
    """Writes batch after batch, never two at a time, and keeps a sample of each.

    The next batch starts when its time has come and the last one is done: a server that is slower than the rate is
    written to at its own pace, and never faster than the rate to make up for it.
    """

    def __init__(self, connections: Connections, ingest: Ingest, documents: Sequence[dict[str, str]]) -> None:
        self._client = RequestClient(connections, TARGET, timeout_s=ingest.timeout_s)
        self._ingest = ingest
        self._documents = documents
        # No batch shall hold a document twice.
        self._batch_size = min(ingest.batch_size, len(documents))
        self._stopping = asyncio.Event()
        self._samples: list[Sample] = []

    async def run(self) -> None:
        """Write until `stop` is called, and wait for the last batch."""
        origin_s = time.perf_counter()
        interval_s = self._batch_size / self._ingest.rate_documents_per_s
        batches = _batches(self._documents, self._batch_size)
        due_s = 0.0
        while not self._stopping.is_set():
            body = {"collection": self._ingest.collection, "documents": next(batches)}
            sample = await self._client.send(
                json.dumps(body, ensure_ascii=False).encode(), due_s, lambda: time.perf_counter() - origin_s
            )
            self._samples.append(sample)
            due_s = max(due_s + interval_s, sample.end_s)
            await self._pause(due_s - (time.perf_counter() - origin_s))

    def stop(self) -> None:
        """Start no batch any more."""
        self._stopping.set()

    def summarise(self, window: Window) -> IngestSummary:
        """Reduce the batches to what was written within the window, in seconds since `run` began."""
        ended = [sample for sample in self._samples if window.start_s <= sample.end_s <= window.end_s]
        succeeded = [sample for sample in ended if sample.error_kind is None]
        documents = len(succeeded) * self._batch_size
        return IngestSummary(
            documents=documents,
            batches=len(succeeded),
            documents_per_s=documents / window.length_s if window.length_s > 0 else 0.0,
            errors=dict(Counter(str(sample.error_kind) for sample in ended if sample.error_kind is not None)),
            latency=distribution(sample.latency_s for sample in succeeded),
        )

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout=max(0.0, seconds))
        except TimeoutError:
            pass


def read_documents(path: Path) -> list[dict[str, str]]:
    """Read documents as POST /v1/documents takes them, with `id`, `title` and `text`.

    A folder gives the paragraphs of its Markdown files, in the order of their names. A file is JSONL in BEIR's corpus
    layout; ExperimentError names a line that is wrong. Documents without a text are left out.
    """
    documents = list(_paragraphs(path) if path.is_dir() else _corpus(path))
    documents = [document for document in documents if document["text"].strip()]
    if not documents:
        raise ExperimentError(f"{path} holds no documents")
    return documents


def _corpus(path: Path) -> Iterator[dict[str, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 (named in the error)
                if line.strip():
                    record: dict[str, Any] = json.loads(line)
                    text = str(record["text"])
                    yield {"id": str(record["_id"]), "title": str(record.get("title") or ""), "text": text}
    except OSError as error:
        raise ExperimentError(f"can't read the documents {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{path}, line {number}: not a JSON object with `_id` and `text`") from error


def _paragraphs(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*.md")):
        for number, paragraph in enumerate(file.read_text(encoding="utf-8").split("\n\n")):
            yield {"id": f"{file.name}#{number}", "title": file.stem, "text": paragraph}


def _batches(documents: Sequence[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    endless = itertools.cycle(documents)
    while True:
        yield list(itertools.islice(endless, size))
