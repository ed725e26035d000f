"""What the native endpoints take and give. Bodies are validated; what we made ourselves is a plain dataclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from deployments.contracts import (
    CollectionInfo,
    GenerationOptions,
    Passage,
    RejectedDocument,
    SearchMode,
    Source,
    Stage,
    Usage,
)
from deployments.section import Section
from serve_app.pipeline import Answered
from serve_app.trace import StageRow


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


STRING_OR_STRINGS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Strings = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), WithJsonSchema(STRING_OR_STRINGS)]

# As many as OpenAI takes. They travel with the answers of others.
MAX_STOP_TEXTS = 4
MAX_STOP_CHARS = 256


def _few_and_short(stop: tuple[str, ...]) -> tuple[str, ...]:
    if len(stop) > MAX_STOP_TEXTS or any(len(text) > MAX_STOP_CHARS for text in stop):
        raise ValueError(f"send at most {MAX_STOP_TEXTS} texts of {MAX_STOP_CHARS} characters")
    return stop


StopTexts = Annotated[Strings, AfterValidator(_few_and_short)]
Scalar = str | int | float | bool | None


def _scalars(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(item, Scalar):
                raise ValueError(f"{key!r} must be a string, a number, a boolean or null")
    return value


Metadata = Annotated[dict[str, Any], BeforeValidator(_scalars)]


class Ask(Section):
    """What both kinds of question share."""

    collection: str | None = Field(None, description="Where to look; the server's default collection if left out.")
    k: int | None = Field(None, ge=1, description="How many passages to find.")
    filter: dict[str, Any] | None = Field(
        None,
        description="Field (document_id, source, title or a metadata key) to a value, a list of values, or an object "
        "with some of gt, gte, lt, lte, ne, contains.",
    )
    mode: SearchMode | None = Field(
        None, description="How to look: by meaning, by words (BM25), or both; the server's default if left out."
    )
    rerank: bool = Field(True, description="Whether to order what was found a second time, more carefully.")
    rewrite: bool = Field(True, description="Whether to search sub-queries beside the question itself.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which the answer is of no use any more.")


class SearchBody(Ask):
    """A search."""

    query: str = Field(description="What to look for; field:value filters may stand in it.")


class AnswerBody(Ask):
    """A question to be answered from the documents."""

    question: str = Field(description="What to answer.")
    stream: bool = Field(False, description="Send the answer as server-sent events while it is being written.")
    cache: bool = Field(True, description="Whether an answer that was given before will do, if nothing has changed.")
    max_tokens: int | None = Field(None, ge=1, description="The longest answer, in the generator's tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from the likeliest tokens up to this mass.")
    stop: StopTexts = Field((), description="Texts that end the answer, at most 4; they are not part of it.")
    seed: int | None = Field(None, description="Makes sampling repeatable.")

    def options(self) -> GenerationOptions:
        """The sampling options among the fields."""
        return GenerationOptions(self.max_tokens, self.temperature, self.top_p, self.stop, self.seed)


class DocumentBody(Section):
    """A text to be indexed."""

    id: str | None = Field(
        None,
        description="At most 512 characters. The same id again replaces the document; made from the text if left out.",
    )
    text: str = Field(description="The document's text.")
    title: str = Field("", description="Shown with its passages; at most 2048 characters.")
    source: str = Field("", description="Where the text comes from, such as a URL or a path; at most 4096 characters.")
    metadata: Metadata = Field(default_factory=dict, description="Scalars to filter by; at most 32 KiB of ASCII JSON.")


class DocumentsBody(Section):
    """Documents to be indexed together."""

    collection: str | None = Field(None, description="Where to; the server's default collection if left out.")
    documents: list[DocumentBody] = Field(min_length=1, description="The documents.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds the indexing may take.")


class CollectionBody(Section):
    """A collection to be created."""

    name: str = Field(description="Its name.")


class CollectionParam(Section):
    """The query string of endpoints that need nothing but a collection."""

    collection: str | None = Field(None, description="The server's default collection if left out.")


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """`type` is for programs and `message` for people; it says what to change."""

    type: str
    message: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The body of every error of the native endpoints."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Result:
    """A passage that was found."""

    id: str
    document_id: str
    text: str
    title: str
    score: float
    source: str
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, passage: Passage) -> Result:
        """The passage as a search shows it."""
        found = passage
        return cls(found.id, found.document_id, found.text, found.title, found.score, found.source, found.metadata)


@dataclass(frozen=True, slots=True)
class SearchResponse:
    """Results by descending score; `degraded` names stages that had to be left out."""

    results: Sequence[Result]
    degraded: tuple[Stage, ...]
    timings: Sequence[StageRow]
    request_id: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A source under the number by which the answer cites it."""

    number: int
    document_id: str
    passage_id: str
    text: str
    title: str
    source: str
    score: float

    @classmethod
    def of(cls, source: Source) -> Citation:
        """The source as an answer shows it."""
        found = source.passage
        return cls(source.number, found.document_id, found.id, found.text, found.title, found.source, found.score)


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """Everything about an answer but its text; the data of the `done` event.

    `found` is false where the documents hold no answer; `confidence`, 0 to 1, is how well the sources answer, where
    the generator can tell; `removed_citations` are numbers that it cited without having been given such a source;
    `cached` marks an answer that was given before.
    """

    citations: Sequence[Citation]
    removed_citations: tuple[int, ...]
    found: bool
    confidence: float | None
    generator: str
    finish_reason: str
    usage: Usage
    degraded: tuple[Stage, ...]
    cached: bool
    timings: Sequence[StageRow]
    request_id: str

    @classmethod
    def of(cls, answered: Answered, request_id: str) -> AnswerEnd:
        """The lane's last event as a client gets it."""
        return cls(
            citations=[Citation.of(source) for source in answered.citations],
            removed_citations=answered.removed_citations,
            found=answered.found,
            confidence=answered.confidence,
            generator=answered.generator,
            finish_reason=answered.finish_reason,
            usage=answered.usage,
            degraded=answered.degraded,
            cached=answered.cached,
            timings=answered.trace.rows,
            request_id=request_id,
        )


@dataclass(frozen=True, slots=True)
class AnswerResponse(AnswerEnd):
    """An answer, the sources that it cites, and where its time went."""

    answer: str


@dataclass(frozen=True, slots=True)
class IndexResponse:
    """What became of the documents: each is either indexed or rejected."""

    indexed: tuple[str, ...]
    replaced: int
    chunks: int
    sentences: int
    tokens: int
    rejected: tuple[RejectedDocument, ...]
    elapsed_s: float
    request_id: str


@dataclass(frozen=True, slots=True)
class DocumentResponse:
    """A document as it is stored."""

    id: str
    collection: str
    text: str
    title: str
    source: str
    metadata: Mapping[str, Any]
    num_chunks: int
    indexed_at: str
    request_id: str


@dataclass(frozen=True, slots=True)
class DocumentDeleted:
    """A document that is gone, and how many chunks went with it."""

    id: str
    collection: str
    deleted_chunks: int
    request_id: str


@dataclass(frozen=True, slots=True)
class CollectionsResponse:
    """All collections by name."""

    collections: Sequence[CollectionInfo]
    request_id: str


@dataclass(frozen=True, slots=True)
class CollectionDeleted:
    """A collection that is gone."""

    name: str
    request_id: str
