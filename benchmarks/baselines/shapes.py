"""What the baselines' HTTP endpoints take and give: as raglane's, without timings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.contracts import Generated, Passage, Source


class Ask(BaseModel):
    """A baseline knows one way: hybrid search with reranking, and no cache. A request for another way is refused."""

    model_config = ConfigDict(extra="forbid")

    collection: str | None = None
    k: int | None = Field(None, ge=1)
    mode: Literal["hybrid"] = "hybrid"
    rerank: Literal[True] = True
    rewrite: Literal[True] = True


class SearchBody(Ask):
    """A search."""

    query: str


class AnswerBody(Ask):
    """A question to be answered from the documents."""

    question: str
    cache: Literal[False] = False
    stream: Literal[False] = False


class Result(BaseModel):
    """A passage that was found."""

    id: str
    document_id: str
    text: str
    title: str
    score: float
    source: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, passage: Passage) -> Result:
        """The passage as a search shows it."""
        return cls(
            id=passage.id,
            document_id=passage.document_id,
            text=passage.text,
            title=passage.title,
            score=passage.score,
            source=passage.source,
            metadata=dict(passage.metadata),
        )


class SearchResponse(BaseModel):
    """Results by descending score."""

    results: list[Result]


class Citation(BaseModel):
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
        passage = source.passage
        return cls(
            number=source.number,
            document_id=passage.document_id,
            passage_id=passage.id,
            text=passage.text,
            title=passage.title,
            source=passage.source,
            score=passage.score,
        )


class AnswerResponse(BaseModel):
    """An answer and the sources that it cites."""

    answer: str
    citations: list[Citation]
    removed_citations: tuple[int, ...]
    found: bool
    confidence: float | None
    generator: str
    finish_reason: str
    usage: dict[str, int]

    @classmethod
    def of(
        cls, text: str, cited: tuple[Source, ...], removed: tuple[int, ...], found: bool, end: Generated
    ) -> AnswerResponse:
        """The generator's words as an answer shows them."""
        usage = {"prompt_tokens": end.usage.prompt_tokens, "completion_tokens": end.usage.completion_tokens}
        return cls(
            answer=text,
            citations=[Citation.of(source) for source in cited],
            removed_citations=removed,
            found=found,
            confidence=end.confidence,
            generator=end.generator,
            finish_reason=end.finish_reason,
            usage=usage,
        )
