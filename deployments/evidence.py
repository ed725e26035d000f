"""Sentence evidence: each sentence of a passage has a vector of its own, and the best one speaks for the passage.

The vectors are made at ingest and kept as int8 beside the passage. A sentence's similarity is the cosine between the
question's vector and the int8 vector itself: the cosine does not depend on a vector's length, so no scale is stored.
What a vector blurs, names and numbers above all, its words keep apart: a sentence's score is the mean of its
similarity and its coverage, the share of the question's stems that it holds. The title counts as one more sentence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deployments.byte_lru import ByteLru
from deployments.contracts import Candidate, EmbedRequest, Embeds, Priority, Vector
from deployments.errors import DeadlineExceeded, InvalidInput, StageError
from deployments.ingestion.sentences import split_sentences
from deployments.lexical import Stemmer, Terms, coverages
from deployments.section import Section
from deployments.store import StoreConfig, Tables, where_ids
from deployments.together import all_together

Value = TypeVar("Value")

Spans = NDArray[np.int32]
Int8Vectors = NDArray[np.int8]

TEXTS_PER_REQUEST = 128
# Of one call's texts: the next are there when the embedder is done with these, and its queue is left to others.
_REQUESTS_IN_FLIGHT = 2
_QUERY_SHARE = 0.25
# Texts of a client's own are worked on in slices of so many characters; what needs more than one slice is bulk.
_SLICE_CHARS = 2**17
_COLUMNS = ("id", "text", "title", "sentence_spans", "sentence_vectors", "title_vector")

# Collection, passage id and hash of the passage's title and text.
Stored = tuple[str, str, int]


def quantise(vectors: Vector) -> Int8Vectors:
    """(n, dim) float32 → (n, dim) int8, each row scaled so that its largest component becomes ±127."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    quantised: Int8Vectors = np.rint(vectors * (127.0 / np.maximum(largest, 1e-12))).astype(np.int8)
    return quantised


class EvidenceConfig(Section):
    """How sentences are compared with a question."""

    coverage_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of shared words, against 1 less it for similar vectors; 0: vectors alone."
    )
    language: str = Field("english", description="The language whose Snowball stemmer makes words comparable.")
    cache_bytes: int = Field(
        256 * 2**20, ge=0, description="Sentence vectors and stems kept in memory by each replica, in bytes."
    )


@dataclass(frozen=True, slots=True)
class Sentences:
    """A passage's sentences and, where it has one, its title as a last sentence without a span.

    `spans` (n, 2) int32 character offsets; of n sentences or n + 1 with the title: `vectors` int8, `inverse_norms`
    (n or n + 1,), `stems` one after the other and `num_stems` of each.
    """

    spans: Spans
    vectors: Int8Vectors
    inverse_norms: Vector
    stems: Terms
    num_stems: NDArray[np.int64]

    @classmethod
    def of(cls, spans: Spans, vectors: Int8Vectors, stems: Sequence[Terms]) -> Sentences:
        """With the norms computed once, here."""
        norms = np.sqrt(np.square(vectors.astype(np.float32)).sum(axis=1))
        inverse = (1.0 / np.maximum(norms, 1e-12)).astype(np.float32)
        together = np.concatenate(stems) if stems else np.zeros(0, np.uint32)
        return cls(spans, vectors, inverse, together, np.array([len(one) for one in stems], dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Memory held by the arrays."""
        arrays = (self.spans, self.vectors, self.inverse_norms, self.stems, self.num_stems)
        return sum(array.nbytes for array in arrays)

    def similarities(self, query_vector: Vector) -> Vector:
        """Cosine of every sentence with the query: (n,) float32."""
        scores: Vector = (self.vectors.astype(np.float32) @ query_vector) * self.inverse_norms
        return scores


@dataclass(frozen=True, slots=True)
class StoredSentences:
    """A passage's sentences as the table has them; where its title has a vector, it is the last one."""

    text: str
    title: str
    spans: Spans
    vectors: Int8Vectors

    def texts(self) -> list[str]:
        """What the vectors stand for, in their order."""
        texts = [self.text[start:end] for start, end in self.spans.tolist()]
        # A title without a vector is none: it would be a sentence too many.
        return [*texts, self.title] if len(self.vectors) > len(texts) else texts


class SentenceStore:
    """Looks up the stored sentences of passages."""

    def __init__(self, store: StoreConfig) -> None:
        self._tables = Tables(store)

    async def lookup(self, collection: str, ids: Sequence[str]) -> dict[str, StoredSentences]:
        """What is stored under the ids. Raises NotFound for an unknown collection."""

        async def read(table: Any) -> list[dict[str, Any]]:
            # Collections that were made before titles had vectors lack the column.
            present = (await table.schema()).names
            columns = [column for column in _COLUMNS if column in present]
            rows: list[dict[str, Any]] = (
                await table.query().where(where_ids("id", list(ids))).select(columns).to_arrow()
            ).to_pylist()
            return rows

        return {row["id"]: _stored(row) for row in await self._tables.use(collection, read)}


def _stored(row: dict[str, Any]) -> StoredSentences:
    spans = np.array(row["sentence_spans"] or [], dtype=np.int32).reshape(-1, 2)
    vectors = (row["sentence_vectors"] or b"") + (row.get("title_vector") or b"")
    matrix = np.frombuffer(vectors, dtype=np.int8)
    count = len(spans) + bool(row.get("title_vector"))
    return StoredSentences(
        row["text"], row["title"] or "", spans, matrix.reshape(count, -1) if count else matrix.reshape(0, 0)
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """One candidate's sentences, scored against the question: `scores` (n,) float32, at most 1; `title_score` is None
    where there is no title."""

    spans: Spans
    scores: Vector
    title_score: float | None = None

    @property
    def best(self) -> float:
        """The score of the best sentence or of the title; 0 where there is neither."""
        best = float(self.scores.max(initial=0.0))
        return best if self.title_score is None else max(best, self.title_score)


class _Worker:
    """A thread and its stemmer, which is not for several."""

    def __init__(self, language: str) -> None:
        self.stemmer = Stemmer(language)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evidence")

    async def run(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """What `work` returns of the arguments, computed in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class SentenceEvidence:
    """Scores the sentences of candidates: looked up where they are stored, embedded on the fly where they are not.

    Many texts of a client's own are bulk work, which has a thread apart: what they take, nobody else waits for.
    """

    def __init__(self, store: StoreConfig, embedder: Embeds, config: EvidenceConfig) -> None:
        self._store = SentenceStore(store)
        self._embedder = embedder
        self._coverage_weight = config.coverage_weight
        self._cache: ByteLru[Stored, Sentences] = ByteLru(config.cache_bytes)
        self._interactive, self._bulk = _Worker(config.language), _Worker(config.language)

    async def score(
        self, query_vector: Vector | None, query: str, candidates: Sequence[Candidate], collection: str, budget_s: float
    ) -> list[Scored]:
        """One `Scored` per candidate, in order. `query` is embedded when its vector is not at hand.

        A passage whose document was replaced since it was found is taken as it was found. Where nothing can be
        embedded, stored passages are scored by the words that they share with the query, and others by nothing.
        """
        expires_at = time.monotonic() + budget_s
        if query_vector is None:
            # Whoever asks without a vector may have failed to embed the query himself: words alone will do as well.
            query_vector = await self._query_vector(query, budget_s * _QUERY_SHARE)
        own_chars = sum(_num_chars(candidate) for candidate in candidates if not candidate.id)
        worker = self._bulk if own_chars > _SLICE_CHARS else self._interactive
        sentences = await self._sentences(worker, candidates, collection, expires_at)
        return await worker.run(self._score_all, worker.stemmer, sentences, query, query_vector)

    async def _query_vector(self, query: str, budget_s: float) -> Vector | None:
        try:
            embedded = await self._embedder.embed(EmbedRequest((query,)), budget_s)
        except InvalidInput:
            raise
        except StageError:
            return None
        vector: Vector = embedded.value.vectors[0]
        return vector

    async def _sentences(
        self, worker: _Worker, candidates: Sequence[Candidate], collection: str, expires_at: float
    ) -> list[Sentences | None]:
        # What it says is part of the key: another text may stand under the same id by now, even in a new collection.
        keys = [(collection, c.id, hash((c.title, c.text))) if c.id and collection else None for c in candidates]
        known = [self._cache.get(key) if key is not None else None for key in keys]
        missing = [index for index, key in enumerate(keys) if key is not None and known[index] is None]
        if missing:
            stored = await self._store.lookup(collection, list({candidates[index].id for index in missing}))
            current = {
                index: stored[candidates[index].id] for index in missing if _is_stored(candidates[index], stored)
            }
            made = await worker.run(_with_stems, worker.stemmer, list(current.values()))
            for index, sentences in zip(current, made, strict=True):
                known[index] = sentences
                key = keys[index]
                assert key is not None
                self._cache.put(key, sentences, sentences.num_bytes)
        adhoc = [index for index, sentences in enumerate(known) if sentences is None]
        if adhoc:
            fresh = await self._embed(worker, [candidates[index] for index in adhoc], expires_at)
            for index, made_now in zip(adhoc, fresh, strict=True):
                known[index] = made_now
        return known

    async def _embed(
        self, worker: _Worker, candidates: Sequence[Candidate], expires_at: float
    ) -> Sequence[Sentences | None]:
        """The candidates' sentences, embedded now; None for each where the embedder fails."""
        try:
            return await self._made(worker, candidates, expires_at)
        except InvalidInput:
            raise
        except StageError:
            if all(candidate.id for candidate in candidates):
                return [None] * len(candidates)
            raise

    async def _made(self, worker: _Worker, candidates: Sequence[Candidate], expires_at: float) -> list[Sentences]:
        split: list[tuple[Spans, list[str]]] = []
        for part in _slices(candidates):
            _check_time(expires_at)
            split.extend(await worker.run(_split, part))
        vectors = await self._quantised([text for _, texts in split for text in texts], expires_at)
        ends = np.cumsum([len(texts) for _, texts in split]).tolist()
        made: list[Sentences] = []
        for part in _slices(candidates):
            _check_time(expires_at)
            at = slice(len(made), len(made) + len(part))
            stored = [
                StoredSentences(c.text, c.title, spans, vectors[end - len(texts) : end])
                for c, (spans, texts), end in zip(part, split[at], ends[at], strict=True)
            ]
            made.extend(await worker.run(_with_stems, worker.stemmer, stored))
        return made

    async def _quantised(self, texts: Sequence[str], expires_at: float) -> Int8Vectors:
        """The texts' vectors, fetched in slices: many texts must fill neither a message nor the embedder's queue."""
        priority: Priority = "bulk" if len(texts) > TEXTS_PER_REQUEST else "interactive"
        slots = asyncio.Semaphore(_REQUESTS_IN_FLIGHT)

        async def embed(part: tuple[str, ...]) -> Int8Vectors:
            async with slots:
                request = EmbedRequest(part, "passage", priority)
                embedded = await self._embedder.embed(request, expires_at - time.monotonic())
            return quantise(embedded.value.vectors)

        parts = [tuple(texts[at : at + TEXTS_PER_REQUEST]) for at in range(0, len(texts), TEXTS_PER_REQUEST)]
        slices = await all_together([embed(part) for part in parts])
        return np.concatenate(slices) if slices else np.zeros((0, 0), np.int8)

    def _score_all(
        self, stemmer: Stemmer, candidates: Sequence[Sentences | None], query: str, query_vector: Vector | None
    ) -> list[Scored]:
        known = [sentences for sentences in candidates if sentences is not None]
        scores = iter(self._scores(stemmer, known, query, query_vector))
        return [_nothing() if sentences is None else _scored(sentences, next(scores)) for sentences in candidates]

    def _scores(
        self, stemmer: Stemmer, candidates: Sequence[Sentences], query: str, query_vector: Vector | None
    ) -> list[Vector]:
        """For each candidate the scores of its sentences, the title's last."""
        if not candidates:
            return []
        num_sentences = [len(sentences.num_stems) for sentences in candidates]
        weight = 1.0 if query_vector is None else self._coverage_weight
        scores = np.zeros(sum(num_sentences), dtype=np.float32)
        if weight:
            scores += weight * coverages(
                stemmer.question_terms(query),
                np.concatenate([sentences.stems for sentences in candidates]),
                np.concatenate([sentences.num_stems for sentences in candidates]),
                np.repeat(np.arange(len(candidates)), num_sentences),
            )
        if query_vector is not None and len(scores):
            similar = [s.similarities(query_vector) for s in candidates if len(s.num_stems)]
            scores += (1.0 - weight) * np.concatenate(similar)
        return np.split(scores, np.cumsum(num_sentences)[:-1])


def _num_chars(candidate: Candidate) -> int:
    return len(candidate.title) + len(candidate.text)


def _slices(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """The candidates in slices, each of which ends with the one that fills it."""
    start = num_chars = 0
    for index, candidate in enumerate(candidates, start=1):
        num_chars += _num_chars(candidate)
        if num_chars >= _SLICE_CHARS:
            yield candidates[start:index]
            start, num_chars = index, 0
    if start < len(candidates):
        yield candidates[start:]


def _check_time(expires_at: float) -> None:
    if time.monotonic() >= expires_at:
        raise DeadlineExceeded("no time was left to score the sentences")


def _split(candidates: Sequence[Candidate]) -> list[tuple[Spans, list[str]]]:
    """For each candidate the spans of its sentences and what is embedded: its sentences and its title if it has one."""
    split: list[tuple[Spans, list[str]]] = []
    for candidate in candidates:
        spans = split_sentences(candidate.text)
        texts = [candidate.text[start:end] for start, end in spans]
        title = [candidate.title] if candidate.title.strip() else []
        split.append((np.array(spans, dtype=np.int32).reshape(-1, 2), texts + title))
    return split


def _with_stems(stemmer: Stemmer, stored: Sequence[StoredSentences]) -> list[Sentences]:
    return [Sentences.of(one.spans, one.vectors, [stemmer.terms(text) for text in one.texts()]) for one in stored]


def _is_stored(candidate: Candidate, stored: Mapping[str, StoredSentences]) -> bool:
    found = stored.get(candidate.id)
    return found is not None and (found.title, found.text) == (candidate.title, candidate.text)


def _scored(sentences: Sentences, scores: Vector) -> Scored:
    num_spans = len(sentences.spans)
    title_score = float(scores[num_spans]) if len(scores) > num_spans else None
    return Scored(sentences.spans, scores[:num_spans], title_score)


def _nothing() -> Scored:
    return Scored(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
