"""Sentence evidence: each sentence of a passage has a vector of its own, and the best one speaks for the passage.

The vectors are made at ingest and kept as int8 beside the passage. A sentence's score is the cosine between the
question's vector and the int8 vector itself: the cosine does not depend on a vector's length, so no scale is stored.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.contracts import Candidate, EmbedRequest, Embeds, Vector
from deployments.ingestion.sentences import split_sentences
from deployments.store import StoreConfig, Tables, where_ids

Spans = NDArray[np.int32]
Int8Vectors = NDArray[np.int8]


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
        self._cache: OrderedDict[tuple[str, int, str], Sentences] = OrderedDict()

    async def lookup(self, collection: str, ids: Sequence[str]) -> dict[str, Sentences]:
        """The sentences of every passage stored under one of `ids`. Raises NotFound for an unknown collection."""
        table = await self._tables.table(collection)
        # A new version of the table may hold other text under the same passage id.
        version = await table.version()
        found: dict[str, Sentences] = {}
        missing: list[str] = []
        for passage_id in dict.fromkeys(ids):
            cached = self._cache.get((collection, version, passage_id))
            if cached is None:
                missing.append(passage_id)
            else:
                self._cache.move_to_end((collection, version, passage_id))
                found[passage_id] = cached
        if missing:
            query = table.query().where(where_ids("id", missing)).select(["id", "sentence_spans", "sentence_vectors"])
            for row in (await query.to_arrow()).to_pylist():
                found[row["id"]] = _sentences(row["sentence_spans"], row["sentence_vectors"])
                self._remember((collection, version, row["id"]), found[row["id"]])
        return found

    def _remember(self, key: tuple[str, int, str], sentences: Sentences) -> None:
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
        ids = [candidate.id for candidate in candidates if candidate.id]
        stored = await self._store.lookup(collection, ids) if ids and collection else {}
        adhoc = [candidate for candidate in candidates if candidate.id not in stored]
        fresh = await self._embed(adhoc, budget_s) if adhoc else []
        fresh_in_order = iter(fresh)
        sentences = [stored[c.id] if c.id in stored else next(fresh_in_order) for c in candidates]
        return await asyncio.get_running_loop().run_in_executor(self._thread, _score_all, sentences, query_vector)

    async def _embed(self, candidates: Sequence[Candidate], budget_s: float) -> list[Sentences]:
        spans = [split_sentences(candidate.text) for candidate in candidates]
        texts = tuple(c.text[start:end] for c, pairs in zip(candidates, spans, strict=True) for start, end in pairs)
        embedded = await self._embedder.embed(EmbedRequest(texts, "passage"), budget_s)
        vectors = quantise(embedded.value.vectors)
        ends = np.cumsum([len(pairs) for pairs in spans])
        return [
            Sentences.of(np.array(pairs, dtype=np.int32).reshape(-1, 2), vectors[end - len(pairs) : end])
            for pairs, end in zip(spans, ends, strict=True)
        ]


def _score_all(sentences: Sequence[Sentences], query_vector: Vector) -> list[Scored]:
    return [Scored(s.spans, s.scores(query_vector) if len(s.spans) else np.zeros(0, np.float32)) for s in sentences]
