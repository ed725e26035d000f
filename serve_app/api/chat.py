"""POST /v1/chat/completions: OpenAI's chat with the lane behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.contracts import Delta
from serve_app.api.events import begun, whole_answer
from serve_app.api.limits import deadline_of, results_wanted
from serve_app.api.models import collection_of
from serve_app.api.observation import begin_trace
from serve_app.api.openai_shapes import AssistantMessage, ChatBody, ChatCompletion, Choice, TokenUsage
from serve_app.api.schemas import AnswerEnd
from serve_app.api.services import request_id_of, services_of
from serve_app.api.sse import EventStream, data_frame
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.lane_config import LaneConfig
from serve_app.pipeline import Answered, AnswerEvent, Question
from serve_app.retrieval import Query

router = APIRouter(route_class=JsonRoute, tags=["openai"])

_DONE = b"data: [DONE]\n\n"
_STREAM_DOC: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAM_DOC)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer the last user message from the documents of the model's collection."""
    services = services_of(request)
    config = services.lane.config
    body.refuse_unsupported()
    request_id = request_id_of(request.scope)
    query = _query(body, config, request_id)
    question = Question(query, body.options(), request_id, stream=bool(body.stream), cache=body.cache)
    deadline = deadline_of(body.timeout_s, config)
    events = services.lane.answer(question, deadline, begin_trace(request))
    if body.stream:
        await begun(events)
        chunks = _Chunks(request_id, body.model, bool(body.stream_options and body.stream_options.include_usage))
        return EventStream(chunks.frames(events), events, _error_frames, deadline)
    whole = await whole_answer(events)
    completion = ChatCompletion(
        id=f"chatcmpl-{request_id}",
        object="chat.completion",
        created=int(time.time()),
        model=body.model,
        choices=[Choice(0, AssistantMessage("assistant", whole.text), whole.end.finish_reason)],
        usage=TokenUsage.of(whole.end.usage),
        raglane=AnswerEnd.of(whole.end, request_id),
    )
    return JsonResponse(completion, headers={"server-timing": whole.end.trace.server_timing()})


def _query(body: ChatBody, config: LaneConfig, request_id: str) -> Query:
    return Query(
        text=body.question(config.parsing),
        collection=collection_of(body.model, body.collection, config.default_collection),
        k=results_wanted(None, config),
        mode=config.default_mode,
        history=body.history(),
        request_id=request_id,
    )


@dataclass(frozen=True, slots=True)
class _Chunks:
    """The chunks of one streamed completion."""

    request_id: str
    model: str
    include_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))

    async def frames(self, events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[bytes]:
        yield self._frame([_choice({"role": "assistant", "content": ""})])
        async for event in events:
            if isinstance(event, Delta):
                yield self._frame([_choice({"content": event.text})])
            elif isinstance(event, Answered):
                end = AnswerEnd.of(event, self.request_id)
                yield self._frame([_choice({}, event.finish_reason)], raglane=end)
                if self.include_usage:
                    yield self._frame([], usage=TokenUsage.of(event.usage))
        yield _DONE

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = None
        return data_frame(chunk | more)


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


def _error_frames(body: dict[str, Any]) -> bytes:
    return data_frame(body) + _DONE
