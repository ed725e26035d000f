"""Sentence evidence: each sentence of a passage has a vector of its own, and the best one speaks for the passage.

The vectors are made at ingest and kept as int8 beside the passage. A sentence's score is the cosine between the
question's vector and the int8 vector itself: the cosine does not depend on a vector's length, so no scale is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.contracts import Candidate, EmbedRequest, Embeds, Priority, Vector
from deployments.ingestion.sentences import split_sentences
from deployments.store import StoreConfig, Tables, where_ids

Spans = NDArray[np.int32]
Int8Vectors = NDArray[np.int8]

TEXTS_PER_REQUEST = 128
# Collection, passage id and hash of the passage's text.
Stored = tuple[str, str, int]


def quantise(vectors: Vector) -> Int8Vectors:
    """(n, dim) float32 → (n, dim) int8, each row scaled so that its largest component becomes ±127."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    quantised: Int8Vectors = np.rint(vectors * (127.0 / np.maximum(largest, 1e-12))).astype(np.int8)
    return quantised


@dataclass(frozen=True, slots=True)
class Sentences:
    """A passage's sentences: `spans` (n, 2) int32 character offsets, `vectors` (n, dim) int8, `inverse_norms` (n,)."""

    spans: Spans
    vectors: Int8Vectors
    inverse_norms: Vector

    @classmethod
    def of(cls, spans: Spans, vectors: Int8Vectors) -> Sentences:
        """With the norms computed once, here."""
        norms = np.sqrt(np.square(vectors.astype(np.float32)).sum(axis=1))
        return cls(spans, vectors, (1.0 / np.maximum(norms, 1e-12)).astype(np.float32))

    @property
    def num_bytes(self) -> int:
        """Memory held by the arrays."""
        return self.spans.nbytes + self.vectors.nbytes + self.inverse_norms.nbytes

    def scores(self, query_vector: Vector) -> Vector:
        """Cosine of every sentence with the query: (n,) float32."""
        scores: Vector = (self.vectors.astype(np.float32) @ query_vector) * self.inverse_norms
        return scores


class SentenceStore:
    """Looks up the stored sentences of passages; keeps the most recently used ones up to `max_bytes`."""

    def __init__(self, store: StoreConfig, max_bytes: int) -> None:
        self._tables = Tables(store)
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._cache: OrderedDict[Stored, Sentences] = OrderedDict()

    async def lookup(self, collection: str, passages: Mapping[str, str]) -> dict[str, Sentences]:
        """Sentences by passage id, of those of `passages` (id to text) that are stored with this very text.

        A passage whose document was replaced since it was found is not among them: its sentences are no longer stored.
        Raises NotFound for an unknown collection.
        """
        found: dict[str, Sentences] = {}
        missing: list[str] = []
        for passage_id, text in passages.items():
            # The text is part of the key: another text may stand under the same id by now, even in a new collection.
            key = (collection, passage_id, hash(text))
            if key in self._cache:
                self._cache.move_to_end(key)
                found[passage_id] = self._cache[key]
            else:
                missing.append(passage_id)
        if missing:
            for row in await self._rows(collection, missing):
                if row["text"] == passages[row["id"]]:
                    found[row["id"]] = _sentences(row["sentence_spans"], row["sentence_vectors"])
                    self._remember((collection, row["id"], hash(row["text"])), found[row["id"]])
        return found

    async def _rows(self, collection: str, ids: list[str]) -> list[dict[str, Any]]:
        columns = ["id", "text", "sentence_spans", "sentence_vectors"]

        async def read(table: Any) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = (
                await table.query().where(where_ids("id", ids)).select(columns).to_arrow()
            ).to_pylist()
            return rows

        return await self._tables.use(collection, read)

    def _remember(self, key: Stored, sentences: Sentences) -> None:
        if key in self._cache:
            # Another lookup was after the same passage.
            return
        self._cache[key] = sentences
        self._num_bytes += sentences.num_bytes
        while self._num_bytes > self._max_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._num_bytes -= dropped.num_bytes


def _sentences(spans: list[int] | None, vectors: bytes | None) -> Sentences:
    pairs = np.array(spans or [], dtype=np.int32).reshape(-1, 2)
    matrix = np.frombuffer(vectors or b"", dtype=np.int8)
    return Sentences.of(pairs, matrix.reshape(len(pairs), -1) if len(pairs) else matrix.reshape(0, 0))


@dataclass(frozen=True, slots=True)
class Scored:
    """One candidate's sentences, scored against the question."""

    spans: Spans
    scores: Vector

    @property
    def best(self) -> float:
        """The best sentence's score; 0 where there is no sentence."""
        return float(self.scores.max(initial=0.0)) if len(self.scores) else 0.0


class SentenceEvidence:
    """Scores the sentences of candidates: looked up where they are stored, embedded on the fly where they are not."""

    def __init__(self, store: StoreConfig, embedder: Embeds, cache_bytes: int) -> None:
        self._store = SentenceStore(store, cache_bytes)
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evidence")

    async def score(
        self, query_vector: Vector | None, query: str, candidates: Sequence[Candidate], collection: str, budget_s: float
    ) -> list[Scored]:
        """One `Scored` per candidate, in order. `query` is embedded when its vector is not at hand."""
        if query_vector is None:
            embedded = await self._embedder.embed(EmbedRequest((query,)), budget_s)
            query_vector = embedded.value.vectors[0]
        passages = {candidate.id: candidate.text for candidate in candidates if candidate.id}
        found = await self._store.lookup(collection, passages) if passages and collection else {}
        # Of two candidates under one id, the lookup saw the text of the last.
        stored = [found.get(c.id) if passages.get(c.id) == c.text else None for c in candidates]
        adhoc = [candidate for candidate, known in zip(candidates, stored, strict=True) if known is None]
        fresh = iter(await self._embed(adhoc, budget_s) if adhoc else [])
        sentences = [next(fresh) if known is None else known for known in stored]
        return await asyncio.get_running_loop().run_in_executor(self._thread, _score_all, sentences, query_vector)

    async def _embed(self, candidates: Sequence[Candidate], budget_s: float) -> list[Sentences]:
        spans = [split_sentences(candidate.text) for candidate in candidates]
        texts = [c.text[start:end] for c, pairs in zip(candidates, spans, strict=True) for start, end in pairs]
        vectors = await self._quantised(texts, budget_s)
        ends = np.cumsum([len(pairs) for pairs in spans])
        return [
            Sentences.of(np.array(pairs, dtype=np.int32).reshape(-1, 2), vectors[end - len(pairs) : end])
            for pairs, end in zip(spans, ends, strict=True)
        ]

    async def _quantised(self, texts: Sequence[str], budget_s: float) -> Int8Vectors:
        """The texts' vectors, fetched in slices: many texts must fill neither a message nor the embedder's queue."""
        expires_at = time.monotonic() + budget_s
        priority: Priority = "bulk" if len(texts) > TEXTS_PER_REQUEST else "interactive"
        slices: list[Int8Vectors] = []
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            request = EmbedRequest(tuple(texts[start : start + TEXTS_PER_REQUEST]), "passage", priority)
            embedded = await self._embedder.embed(request, expires_at - time.monotonic())
            slices.append(quantise(embedded.value.vectors))
        return np.concatenate(slices) if slices else np.zeros((0, 0), np.int8)


def _score_all(sentences: Sequence[Sentences], query_vector: Vector) -> list[Scored]:
    return [Scored(s.spans, s.scores(query_vector) if len(s.spans) else np.zeros(0, np.float32)) for s in sentences]
