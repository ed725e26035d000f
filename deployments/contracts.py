"""What the stages say to each other: the records that cross processes and the four verbs of the lane.

Only frozen records, strings, numbers and float32 arrays travel; no framework type ever does. An answer makes hundreds
of the records, so they are msgspec's structs, made and pickled in a fraction of a dataclass' time; those that the
OpenAPI document describes are dataclasses, which Pydantic reads.
Durations are float seconds, measured with a monotonic clock where the work happens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from deployments.errors import StageError

Value = TypeVar("Value")
Request = TypeVar("Request")
Vector = NDArray[np.float32]

Stage = Literal["parse", "rewrite", "embed", "search", "rerank", "context", "generate"]
STAGES: tuple[Stage, ...] = ("parse", "rewrite", "embed", "search", "rerank", "context", "generate")

SearchMode = Literal["vector", "text", "hybrid"]
SearchKind = Literal["vector", "text"]
Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


class StageTiming(Struct, frozen=True):
    """Where a stage's time went, seen from inside the stage.

    `batch_wait_s` runs from the item's arrival in the replica until its (first) batch starts and between its batches;
    `compute_s` is the time of the batches it took part in; `batch_size` the rows of the largest of them.
    """

    batch_wait_s: float = 0.0
    compute_s: float = 0.0
    batch_size: int = 1


class Timed(Struct, Generic[Value], frozen=True):
    """A value and the time it took, made together so that they can't be told apart later."""

    value: Value
    timing: StageTiming


class Call(Struct, Generic[Request], frozen=True):
    """One item of a coalesced hop: a request and the seconds that its deadline leaves it."""

    request: Request
    budget_s: float


class Outcome(Struct, Generic[Value], frozen=True):
    """What became of one item of a coalesced hop: exactly one of `result` and `error` is set."""

    result: Timed[Value] | None = None
    error: StageError | None = None

    def unwrap(self) -> Timed[Value]:
        """Return the result or raise the item's own error."""
        if self.error is not None:
            raise self.error
        assert self.result is not None, "an Outcome holds a result or an error"
        return self.result


class EmbedRequest(Struct, frozen=True):
    """Texts to embed together. `truncate=False` refuses texts longer than the model takes instead of cutting them.

    `model` is the configured model (`embedder.model`) whose vectors are wanted; an embedder of another one answers
    StageUnavailable. With "" any will do.
    """

    texts: tuple[str, ...]
    role: Literal["query", "passage"] = "query"
    priority: Priority = "interactive"
    truncate: bool = True
    model: str = ""


class Embeddings(Struct, frozen=True):
    """`vectors` is (len(texts), dim) float32 with L2-normalised rows in the order of the texts; `num_tokens` their
    tokens together, special tokens included, padding not."""

    vectors: Vector
    num_tokens: int


class EmbeddingModel(Struct, frozen=True):
    """What callers need to know of the model that the embedder runs."""

    name: str
    dim: int
    max_length_tokens: int


class SearchRequest(Struct, frozen=True):
    """One search of one kind: `vector` needs `vector`, (dim,) float32 and L2-normalised; `text` needs `text`, for BM25.

    `filter` maps a field (`document_id`, `source`, `title` or a metadata key) to a value, a list of values, or an
    object with some of `gt`, `gte`, `lt`, `lte`, `ne`, `contains`. `embedding_model` names the model that made
    `vector`: a collection of another model is refused, even of the same dimension.
    """

    collection: str
    k: int
    kind: SearchKind = "vector"
    vector: Vector | None = None
    text: str = ""
    filter: Mapping[str, Any] | None = None
    embedding_model: str = ""


class Passage(Struct, frozen=True):
    """A retrieved chunk. `score` is what it was ordered by last: after a vector search the cosine, after a text search
    BM25, after `fuse` and `rerank` the blend.

    `position` counts the document's chunks from 0; `start` and `end` are character offsets in the document;
    `num_tokens` counts `text` with the embedder's tokenizer.
    """

    id: str
    document_id: str
    text: str
    score: float
    title: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    num_tokens: int = 0
    position: int = 0

    def scored(self, score: float) -> Passage:
        """The same passage with another score. Called for hundreds in a search: a third of the time of `replace`."""
        return Passage(
            self.id,
            self.document_id,
            self.text,
            score,
            self.title,
            self.source,
            self.metadata,
            self.start,
            self.end,
            self.num_tokens,
            self.position,
        )


class SearchResult(Struct, frozen=True):
    """Passages by descending score, ties by id, and the version of the collection that they were read from.

    A collection's versions only grow; every commit makes a new one.
    """

    passages: tuple[Passage, ...]
    version: int


class Candidate(Struct, frozen=True):
    """One text to be scored against a query; `id` names a stored passage, or is empty for an ad-hoc text."""

    text: str
    id: str = ""
    title: str = ""


class RerankRequest(Struct, frozen=True):
    """Candidates to score against one query. `query_vector` spares an embedding where the caller has it already."""

    query: str
    candidates: tuple[Candidate, ...]
    collection: str = ""
    query_vector: Vector | None = None
    priority: Priority = "interactive"


class Source(Struct, frozen=True):
    """A passage as the generator gets it, with the number under which the answer may cite it (from 1).

    Where neighbouring chunks of a document were merged, `passage` holds the text of them all and `parts` the stored
    chunks in the document's order; else `parts` is empty.
    """

    number: int
    passage: Passage
    parts: tuple[Passage, ...] = ()

    def numbered(self, number: int) -> Source:
        """The same source under a number."""
        return Source(number, self.passage, self.parts)

    def stored(self) -> tuple[Passage, ...]:
        """The passages as they are stored."""
        return self.parts or (self.passage,)


class GenerationOptions(Struct, frozen=True):
    """Sampling options; None leaves the choice to the generator's own default. What is written under `json_schema` is
    JSON that the schema allows; only a language model can do that."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    json_schema: Mapping[str, Any] | None = None


class GenerateRequest(Struct, frozen=True):
    """Everything either kind of generator needs: an LLM reads `messages`, the extractive answerer the rest.

    `messages` are OpenAI-style role and content pairs; `budget_s` is what the deadline leaves.
    """

    question: str
    sources: tuple[Source, ...]
    messages: tuple[Mapping[str, str], ...]
    options: GenerationOptions = field(default_factory=GenerationOptions)
    collection: str = ""
    question_vector: Vector | None = None
    request_id: str = ""
    budget_s: float = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by the generator, counted by its own tokenizer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Delta(Struct, frozen=True):
    """The next piece of the answer's text, in order."""

    text: str


class Generated(Struct, frozen=True):
    """The last event of every generation that did not fail.

    `confidence` is how well the sources answer the question, 0 to 1, where the generator can tell.
    """

    finish_reason: Literal["stop", "length"]
    usage: Usage
    timing: StageTiming
    generator: str
    confidence: float | None = None


GenerationEvent = Delta | Generated


class Document(Struct, frozen=True):
    """A text to be indexed. The same `id` again replaces the document; metadata values are scalars."""

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class StoredDocument(Struct, frozen=True):
    """A document as the store holds it."""

    document: Document
    num_chunks: int
    indexed_at: str


@dataclasses.dataclass(frozen=True, slots=True)
class RejectedDocument:
    """A document that was not indexed, and why."""

    id: str
    reason: str


class IndexReport(Struct, frozen=True):
    """What one indexing call did. Every document it was given is either indexed or rejected."""

    indexed: tuple[str, ...]
    replaced: int
    num_chunks: int
    num_sentences: int
    num_tokens: int
    rejected: tuple[RejectedDocument, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection and what it holds. `index_coverage` maps each index to the share of the chunks that it covers."""

    name: str
    num_documents: int
    num_chunks: int
    embedding_model: str
    dim: int
    index_coverage: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Embeds(Protocol):
    """Turns texts into vectors."""

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]: ...


class Searches(Protocol):
    """Finds the passages nearest to a query: at most k, by descending score, ties by id. `version` is what a search
    that begins now would read, or something newer."""

    async def search(self, request: SearchRequest, budget_s: float) -> Timed[SearchResult]: ...

    async def version(self, collection: str, budget_s: float) -> Timed[int]: ...


class Reranks(Protocol):
    """Scores candidates against a query: (len(candidates),) float32 in the candidates' order, higher is better.

    Scores compare within one request: a method may weigh words by how rare they are among its candidates.
    """

    async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]: ...


class Generates(Protocol):
    """Writes an answer: any number of `Delta`, then exactly one `Generated`; closing the iterator stops the work."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]: ...


class Indexes(Protocol):
    """Owns what is stored: the only writer of every collection."""

    async def index(self, collection: str, documents: Sequence[Document], budget_s: float) -> IndexReport: ...

    async def get_document(self, collection: str, document_id: str) -> StoredDocument: ...

    async def delete_document(self, collection: str, document_id: str) -> int: ...

    async def create_collection(self, name: str) -> CollectionInfo: ...

    async def list_collections(self) -> list[CollectionInfo]: ...

    async def delete_collection(self, name: str) -> None: ...

    async def coverage(self) -> dict[str, dict[str, float]]: ...
