"""One deterministic fake per verb, small and honest: they pass the contract suites that the real stages pass.

Each may be told to take `delay_s` or to raise `error`; as the real stages do, none works on past its budget.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import operator
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace

from deployments.context import NOT_FOUND
from deployments.contracts import (
    CollectionInfo,
    Delta,
    Document,
    Embeddings,
    EmbedRequest,
    Generated,
    GenerateRequest,
    GenerationEvent,
    IndexReport,
    Passage,
    RejectedDocument,
    RerankRequest,
    SearchRequest,
    SearchResult,
    StageTiming,
    StoredDocument,
    Timed,
    Usage,
    Vector,
)
from deployments.errors import AlreadyExists, DeadlineExceeded, IndexMismatch, InputTooLong, InvalidInput, NotFound

Stored = tuple[Document, list[tuple[Passage, Vector]]]

DIM = 64
MAX_TOKENS = 128
EMBEDDING_MODEL = "fakes/bag-of-words"
INDEXED_AT = "2024-01-01T00:00:00+00:00"


def _contains(value: Any, needle: Any) -> bool:
    if not isinstance(needle, str):
        raise InvalidInput("contains looks for text; give it a string")
    return isinstance(value, str) and needle.lower() in value.lower()


COLUMNS = ("id", "document_id", "source", "title")
_COMPARISONS = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "ne": operator.ne,
    "contains": _contains,
}


def words_of(text: str) -> list[str]:
    """The text's words in lower case, in order."""
    return re.findall(r"\w+", text.lower())


def count_tokens(text: str) -> int:
    """A token is a word, and two more frame every text."""
    return len(words_of(text)) + 2


@dataclass
class Faults:
    """What goes wrong with a fake, settable at any time."""

    delay_s: float = 0.0
    error: Exception | None = None

    async def strike(self, budget_s: float) -> None:
        if self.delay_s:
            await asyncio.sleep(min(self.delay_s, budget_s))
        if self.delay_s >= budget_s:
            raise DeadlineExceeded("the fake was too slow; raise timeout_s")
        if self.error is not None:
            raise self.error


@dataclass
class FakeEmbedder:
    """Embeds a text as the normalised sum of its words' pseudo-random directions: shared words make texts similar."""

    dim: int = DIM
    faults: Faults = field(default_factory=Faults)
    requests: list[EmbedRequest] = field(default_factory=list)

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        self.requests.append(request)
        await self.faults.strike(budget_s)
        counts = [count_tokens(text) for text in request.texts]
        if not request.truncate and max(counts, default=0) > MAX_TOKENS:
            raise InputTooLong(f"the text has {max(counts)} tokens, but the model takes {MAX_TOKENS}; shorten it")
        vectors = np.array([self._vector(text) for text in request.texts], np.float32).reshape(-1, self.dim)
        num_tokens = sum(min(count, MAX_TOKENS) for count in counts)
        return Timed(Embeddings(vectors, num_tokens), StageTiming(batch_size=max(1, len(request.texts))))

    def _vector(self, text: str) -> Vector:
        words = words_of(text)[: MAX_TOKENS - 2] or [""]
        total = np.sum([self._direction(word) for word in words], axis=0)
        unit: Vector = (total / np.linalg.norm(total)).astype(np.float32)
        return unit

    def _direction(self, word: str) -> Any:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.dim)


@dataclass
class FakeStore:
    """Collections in memory: by document id, the document and its passages, each with its vector.

    Commits are counted together for all collections, so that one which is made anew has no version again.
    """

    collections: dict[str, dict[str, Stored]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    num_commits: int = 0

    def collection(self, name: str) -> dict[str, Stored]:
        if name not in self.collections:
            raise NotFound(f"there is no collection {name!r}; create it or ingest documents into it")
        return self.collections[name]

    def version(self, name: str) -> int:
        self.collection(name)
        return self.versions.get(name, 0)

    def commit(self, name: str) -> None:
        self.num_commits += 1
        self.versions[name] = self.num_commits


@dataclass
class FakeRetriever:
    """Compares the query's vector, or its words, with every stored passage."""

    store: FakeStore
    faults: Faults = field(default_factory=Faults)
    requests: list[SearchRequest] = field(default_factory=list)

    async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]:
        self.requests.append(request)
        await self.faults.strike(budget_s)
        rows = [row for _, rows in self.store.collection(request.collection).values() for row in rows]
        _check_fields(request, [passage for passage, _ in rows])
        rows = [row for row in rows if all(_holds(row[0], *wanted) for wanted in (request.filter or {}).items())]
        found = _by_words(request, rows) if request.kind == "text" else _by_vector(request, rows)
        found.sort(key=lambda passage: (-passage.score, passage.id))
        result = SearchResult(tuple(found[: request.k]), self.store.version(request.collection))
        return Timed(result, StageTiming())

    async def version(self, collection: str, budget_s: float) -> Timed[int]:
        await self.faults.strike(budget_s)
        return Timed(self.store.version(collection), StageTiming())


def _by_vector(request: SearchRequest, rows: list[tuple[Passage, Vector]]) -> list[Passage]:
    if request.vector is None:
        raise InvalidInput("a vector search needs a vector")
    other_model = request.embedding_model not in ("", EMBEDDING_MODEL)
    if other_model or (rows and rows[0][1].shape != request.vector.shape):
        raise IndexMismatch("the collection was indexed with another model; ingest it again")
    return [replace(passage, score=float(vector @ request.vector)) for passage, vector in rows]


def _by_words(request: SearchRequest, rows: list[tuple[Passage, Vector]]) -> list[Passage]:
    """BM25 over title and text, without stemming or stop words."""
    if not request.text:
        raise InvalidInput("a text search needs a text")
    counts = [Counter(words_of(f"{passage.title} {passage.text}")) for passage, _ in rows]
    holding = Counter(word for count in counts for word in count)
    mean_length = max(1.0, sum(map(Counter.total, counts)) / max(1, len(counts)))
    wanted = words_of(request.text)

    def score(count: Counter[str]) -> float:
        damping = 1.2 * (0.25 + 0.75 * count.total() / mean_length)
        return sum(
            math.log(1 + (len(rows) - holding[word] + 0.5) / (holding[word] + 0.5))
            * (count[word] * 2.2 / (count[word] + damping))
            for word in wanted
        )

    scored = [replace(passage, score=score(count)) for (passage, _), count in zip(rows, counts, strict=True)]
    return [passage for passage in scored if passage.score > 0]


def _check_fields(request: SearchRequest, passages: list[Passage]) -> None:
    known = {*COLUMNS, *(key for passage in passages for key in passage.metadata)}
    for name in request.filter or {}:
        if passages and name.removeprefix("metadata.") not in known:
            raise InvalidInput(f"filter field {name!r}: no document has it; known fields: {', '.join(sorted(known))}")


def _holds(passage: Passage, name: str, wanted: Any) -> bool:
    value = getattr(passage, name) if name in COLUMNS else passage.metadata.get(name.removeprefix("metadata."))
    if isinstance(wanted, Mapping):
        if not wanted or not set(wanted) <= set(_COMPARISONS):
            raise InvalidInput(f"filter field {name!r}: use {', '.join(_COMPARISONS)}")
        return value is not None and all(_COMPARISONS[op](value, limit) for op, limit in wanted.items())
    return value in wanted if isinstance(wanted, list | tuple) else bool(value == wanted)


@dataclass
class FakeReranker:
    """Scores a candidate by the share of the query's words that it holds."""

    faults: Faults = field(default_factory=Faults)
    requests: list[RerankRequest] = field(default_factory=list)

    async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        self.requests.append(request)
        await self.faults.strike(budget_s)
        wanted = set(words_of(request.query))
        shares = [len(wanted & set(words_of(c.text))) / max(1, len(wanted)) for c in request.candidates]
        return Timed(np.array(shares, np.float32), StageTiming(batch_size=max(1, len(shares))))


@dataclass
class FakeGenerator:
    """Quotes the first source word by word and cites it; its faults strike after `fail_after` words, if set.

    `num_running` counts generations that have begun and were neither finished nor closed.
    """

    name: str = "fake-generator"
    faults: Faults = field(default_factory=Faults)
    fail_after: int | None = None
    num_running: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        self.requests.append(request)
        self.num_running += 1
        self.begun.set()
        try:
            if self.fail_after is None:
                await self.faults.strike(request.budget_s)
            text, finish_reason = self._answer(request)
            pieces = re.findall(r"\S+\s*", text)
            for number, piece in enumerate(pieces):
                if number == self.fail_after:
                    await self.faults.strike(request.budget_s)
                yield Delta(piece)
            usage = Usage(sum(count_tokens(message["content"]) for message in request.messages), len(pieces))
            yield Generated(finish_reason, usage, StageTiming(), self.name)
        finally:
            self.num_running -= 1

    def _answer(self, request: GenerateRequest) -> tuple[str, Any]:
        text = f"{' '.join(request.sources[0].passage.text.split())} [1]" if request.sources else NOT_FOUND
        for stop in request.options.stop:
            text = text.partition(stop)[0]
        pieces = re.findall(r"\S+\s*", text)
        limit = request.options.max_tokens
        if limit is None or len(pieces) <= limit:
            return text, "stop"
        return "".join(pieces[:limit]).rstrip(), "length"


@dataclass
class FakeIndexer:
    """Writes to the store; a chunk is a paragraph."""

    store: FakeStore
    embedder: FakeEmbedder
    faults: Faults = field(default_factory=Faults)

    async def index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport:
        await self.faults.strike(budget_s)
        report = IndexReport((), 0, 0, 0, 0)
        for document in documents:
            if document.id in report.indexed:
                report = _rejecting(report, document, "the same id stands twice in one request")
            elif not document.text.strip():
                report = _rejecting(report, document, "the document has no text")
            else:
                report = await self._write(report, collection, document, budget_s)
        if report.indexed:
            self.store.commit(collection)
        return report

    async def _write(self, so_far: IndexReport, collection: str, document: Document, budget_s: float) -> IndexReport:
        chunks = list(re.finditer(r"\S(?:.*?\S)?(?=\s*(?:\n\s*\n|\Z))", document.text, re.DOTALL))
        texts = tuple(chunk.group() for chunk in chunks)
        embedded = (await self.embedder.embed(EmbedRequest(texts, "passage", "bulk"), budget_s)).value
        passages = [self._passage(document, position, chunk) for position, chunk in enumerate(chunks)]
        stored = self.store.collections.setdefault(collection, {})
        report = IndexReport(
            indexed=(*so_far.indexed, document.id),
            replaced=so_far.replaced + (document.id in stored),
            num_chunks=so_far.num_chunks + len(chunks),
            num_sentences=so_far.num_sentences + sum(len(re.findall(r"[.!?]+", text)) or 1 for text in texts),
            num_tokens=so_far.num_tokens + embedded.num_tokens,
            rejected=so_far.rejected,
        )
        stored[document.id] = (document, list(zip(passages, embedded.vectors, strict=True)))
        return report

    def _passage(self, document: Document, position: int, chunk: re.Match[str]) -> Passage:
        return Passage(
            id=f"{document.id}:{position}",
            document_id=document.id,
            text=chunk.group(),
            score=0.0,
            title=document.title,
            source=document.source,
            metadata=document.metadata,
            start=chunk.start(),
            end=chunk.end(),
            num_tokens=count_tokens(chunk.group()),
            position=position,
        )

    async def get_document(self, collection: str, document_id: str) -> StoredDocument:
        document, rows = self._stored(collection, document_id)
        return StoredDocument(document, len(rows), INDEXED_AT)

    async def delete_document(self, collection: str, document_id: str) -> int:
        _, rows = self._stored(collection, document_id)
        del self.store.collections[collection][document_id]
        self.store.commit(collection)
        return len(rows)

    async def create_collection(self, name: str) -> CollectionInfo:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise InvalidInput(f"{name!r} can't name a collection; use letters, digits, '_' and '-'")
        if name in self.store.collections:
            raise AlreadyExists(f"collection {name!r} is there already")
        self.store.collections[name] = {}
        self.store.commit(name)
        return self._describe(name)

    async def list_collections(self) -> list[CollectionInfo]:
        return [self._describe(name) for name in sorted(self.store.collections)]

    async def delete_collection(self, name: str) -> None:
        self.store.collection(name)
        del self.store.collections[name]

    async def coverage(self) -> dict[str, dict[str, float]]:
        await self.faults.strike(1.0)
        return {info.name: dict(info.index_coverage) for info in await self.list_collections()}

    def _stored(self, collection: str, document_id: str) -> Stored:
        stored = self.store.collection(collection)
        if document_id not in stored:
            raise NotFound(f"there is no document {document_id!r} in collection {collection!r}")
        return stored[document_id]

    def _describe(self, name: str) -> CollectionInfo:
        stored = self.store.collections[name]
        num_chunks = sum(len(rows) for _, rows in stored.values())
        return CollectionInfo(name, len(stored), num_chunks, EMBEDDING_MODEL, self.embedder.dim, {"text": 1.0})


def _rejecting(report: IndexReport, document: Document, reason: str) -> IndexReport:
    return replace(report, rejected=(*report.rejected, RejectedDocument(document.id, reason)))
