"""POST /v1/rerank, in the shape that Cohere's and Jina's clients speak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from deployments.contracts import Candidate, RerankRequest, Timed, Vector
from deployments.parsing import clean_question
from deployments.together import all_together
from serve_app.api.fanout import chunks, slowest
from serve_app.api.limits import check_model, check_texts, deadline_of
from serve_app.api.observation import begin_trace
from serve_app.api.services import Services, request_id_of, services_of
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.trace import Deadline, StageRow, Trace

router = APIRouter(route_class=JsonRoute, tags=["rerank"])


def _texts(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"document {position} must be a string or an object with a string 'text'")
    return texts


_DOCUMENTS_SCHEMA = {
    "type": "array",
    "items": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"text": {"type": "string"}}}]},
}


class RerankBody(BaseModel):
    """Documents to order by their relevance to a query. Fields that only other servers know are ignored."""

    model_config = ConfigDict(frozen=True)

    query: str = Field(description="What the documents should be relevant to.")
    documents: Annotated[tuple[str, ...], BeforeValidator(_texts), WithJsonSchema(_DOCUMENTS_SCHEMA)] = Field(
        description="The documents: strings, or objects with a text."
    )
    model: str | None = Field(None, description="The served reranker, if named at all.")
    top_n: int | None = Field(None, ge=1, description="How many to return; all if left out.")
    return_documents: bool | None = Field(False, description="Whether to return the texts as well.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which the result is of no use any more.")


@dataclass(frozen=True, slots=True)
class RerankedText:
    """The text of a document."""

    text: str


@dataclass(frozen=True, slots=True)
class Relevance:
    """One document by its place in the request; higher scores are more relevant."""

    index: int
    relevance_score: float
    document: RerankedText | None = None


@dataclass(frozen=True, slots=True)
class RerankUsage:
    """What the request made the reranker read."""

    documents: int


@dataclass(frozen=True, slots=True)
class RerankResponse:
    """Documents by descending relevance, ties in the order of the request."""

    id: str
    model: str
    results: Sequence[Relevance]
    usage: RerankUsage
    timings: Sequence[StageRow]
    request_id: str


@router.post("/v1/rerank", response_model=RerankResponse, response_model_exclude_none=True)
async def rerank(body: RerankBody, request: Request) -> Response:
    """Order documents by their relevance to a query."""
    services = services_of(request)
    config = services.lane.config
    model = check_model(body.model, services.reranker_model)
    query = clean_question(body.query, config.parsing.question_max_chars)
    check_texts(body.documents, "documents", services.http)
    trace = begin_trace(request)
    scores = await _score(query, body.documents, services, deadline_of(body.timeout_s, config), trace)

    best_first = np.argsort(-scores, kind="stable")[: body.top_n]
    results = [_result(int(index), float(scores[index]), body) for index in best_first]
    request_id = request_id_of(request.scope)
    response = {
        "id": f"rerank-{request_id}",
        "model": model,
        "results": results,
        "usage": RerankUsage(len(body.documents)),
        "timings": trace.rows,
        "request_id": request_id,
    }
    return JsonResponse(response, headers={"server-timing": trace.server_timing()})


async def _score(query: str, texts: Sequence[str], services: Services, deadline: Deadline, trace: Trace) -> Vector:
    async def score(part: tuple[str, ...]) -> Timed[Vector]:
        request = RerankRequest(query, tuple(Candidate(text) for text in part), priority="bulk")
        return await services.reranker.rerank(request, deadline.remaining_s())

    started = time.perf_counter()
    parts = chunks(texts, services.http) if services.rerank_in_parts else [tuple(texts)]
    scored = await all_together([score(part) for part in parts])
    trace.add("rerank", time.perf_counter() - started, slowest([part.timing for part in scored]))
    return np.concatenate([part.value for part in scored])


def _result(index: int, score: float, body: RerankBody) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if body.return_documents:
        result["document"] = RerankedText(body.documents[index])
    return result
