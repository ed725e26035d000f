"""POST /v1/answers: one stream of events, sent as such or folded into one JSON body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import fields
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.contracts import Delta
from serve_app.api.events import begun, whole_answer
from serve_app.api.limits import deadline_of
from serve_app.api.observation import begin_trace
from serve_app.api.schemas import AnswerBody, AnswerEnd, AnswerResponse, Citation
from serve_app.api.search import query_of
from serve_app.api.services import request_id_of, services_of
from serve_app.api.sse import EventStream, event_frame
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.pipeline import Answered, AnswerEvent, Question, SourcesChosen

router = APIRouter(route_class=JsonRoute, tags=["answers"])

_STREAM_DOC: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {"schema": {"type": "string"}},
        },
        "description": "The answer; with `stream: true` the events `sources`, `token`…, and `done` or `error`.",
    }
}


@router.post("/v1/answers", response_model=AnswerResponse, responses=_STREAM_DOC)
async def answer(body: AnswerBody, request: Request) -> Response:
    """Answer a question from the documents, with citations."""
    services = services_of(request)
    config = services.lane.config
    request_id = request_id_of(request.scope)
    query = query_of(body, body.question, config, request_id)
    question = Question(query, body.options(), request_id, stream=body.stream, cache=body.cache)
    deadline = deadline_of(body.timeout_s, config)
    events = services.lane.answer(question, deadline, begin_trace(request))
    if body.stream:
        first = await begun(events)
        return EventStream(_frames(first, events, request_id), events, _error_frame, deadline)
    whole = await whole_answer(events)
    headers = {"server-timing": whole.end.trace.server_timing()}
    return JsonResponse(_response(whole.text, AnswerEnd.of(whole.end, request_id)), headers=headers)


def _response(text: str, end: AnswerEnd) -> dict[str, Any]:
    return {"answer": text} | {field.name: getattr(end, field.name) for field in fields(end)}


async def _frames(first: SourcesChosen, events: AsyncGenerator[AnswerEvent], request_id: str) -> AsyncGenerator[bytes]:
    sources = [Citation.of(source) for source in first.sources]
    yield event_frame("sources", {"sources": sources, "request_id": request_id})
    async for event in events:
        if isinstance(event, Delta):
            yield event_frame("token", {"text": event.text})
        elif isinstance(event, Answered):
            yield event_frame("done", AnswerEnd.of(event, request_id))


def _error_frame(body: dict[str, Any]) -> bytes:
    return event_frame("error", body)
