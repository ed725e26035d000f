"""vLLM's OpenAI wire format: server-sent events in, our events and errors out. Knows neither Ray nor vLLM's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from deployments.contracts import GenerateRequest, Usage
from deployments.errors import EngineFailed, InputTooLong, InvalidInput, Overloaded, StageError

_DATA = "data:"
_DONE = "[DONE]"
# vLLM names the offending parameter; the words are for versions that do not.
_LENGTH_PARAMETERS = frozenset({"input_tokens", "input_text"})
_LENGTH_WORDS = re.compile(r"maximum context length|longer than the maximum model length", re.IGNORECASE)
# Each of vLLM's grammar backends words its refusal of a schema in its own way, and none names a parameter.
_SCHEMA_WORDS = re.compile(r"json schema|grammar", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One server-sent event of a chat completion, reduced to what a generation needs."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    queue_s: float = 0.0
    error: Mapping[str, Any] | None = None


def to_chat_fields(request: GenerateRequest, model_id: str) -> dict[str, Any]:
    """The fields of a streaming chat completion; what the caller left open keeps the model's default."""
    options = request.options
    optional = {
        "request_id": request.request_id or None,
        "max_completion_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "stop": list(options.stop) or None,
        "seed": options.seed,
        "response_format": _response_format(options.json_schema),
    }
    return {
        "model": model_id,
        "messages": [dict(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def fold_system(messages: tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    """The messages for a chat template without a system role: a system message's words begin the one after it."""
    first, *others = messages
    if first["role"] != "system" or not others:
        return messages
    second, *rest = others
    return ({**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest)


def _response_format(json_schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if json_schema is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(json_schema)}}


def parse_events(text: str) -> list[Chunk]:
    """Read the server-sent events in `text`, which holds whole events only; comments and `[DONE]` are dropped."""
    payloads = (line[len(_DATA) :].strip() for line in text.split("\n") if line.startswith(_DATA))
    return [_to_chunk(orjson.loads(payload)) for payload in payloads if payload and payload != _DONE]


def _to_chunk(data: Mapping[str, Any]) -> Chunk:
    if data.get("error"):
        return Chunk(error=data["error"])
    choice = data["choices"][0] if data.get("choices") else {}
    usage, metrics = data.get("usage"), data.get("metrics") or {}
    return Chunk(
        text=(choice.get("delta") or {}).get("content") or "",
        finish_reason=choice.get("finish_reason"),
        usage=Usage(usage["prompt_tokens"], usage.get("completion_tokens") or 0) if usage else None,
        queue_s=(metrics.get("queue_time_ms") or 0.0) / 1000,
    )


def is_too_long(error: Mapping[str, Any]) -> bool:
    """Whether vLLM refused the request because prompt and output together exceed the model's context."""
    return error.get("param") in _LENGTH_PARAMETERS or bool(_LENGTH_WORDS.search(_message(error)))


def to_stage_error(error: Mapping[str, Any]) -> StageError:
    """Translate the `error` object of an OpenAI error response by its HTTP status, kept in `code`."""
    code, message = int(error.get("code") or 500), _message(error)
    if is_too_long(error):
        return InputTooLong(message)
    if code in (429, 503):
        return Overloaded(message)
    if 400 <= code < 500 and _SCHEMA_WORDS.search(message):
        return InvalidInput(f"the generator can't write by json_schema; correct or simplify it: {message}")
    if 400 <= code < 500 or code == 501:
        return InvalidInput(f"the generator refused the request: {message}")
    return EngineFailed(f"the generator failed on this request: {message}")


def too_long(model_id: str, prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> InputTooLong:
    """The refusal of a prompt that does not fit, with all lengths in tokens and what to change."""
    wanted = f" and max_tokens asks for {max_tokens} more" if max_tokens is not None else ""
    remedy = "shorten the messages or use fewer sources"
    if max_tokens is not None:
        remedy += ", or lower max_tokens"
    return InputTooLong(
        f"the prompt has {prompt_tokens} tokens{wanted}, but {model_id} takes {context_tokens} in all: {remedy}"
    )


def to_finish_reason(reason: str) -> Literal["stop", "length"]:
    """Narrow vLLM's finish reason. Raises EngineFailed for a generation that was cut off by the engine."""
    if reason in ("abort", "error"):
        raise EngineFailed(f"the generator gave up in the middle of the answer ({reason})")
    return "length" if reason == "length" else "stop"


def _message(error: Mapping[str, Any]) -> str:
    return str(error.get("message") or "no reason given")


def as_error(item: object) -> Mapping[str, Any] | None:
    """The `error` object of an ErrorResponse that ray.serve.llm yields in place of an event, None for anything else."""
    error = getattr(item, "error", None)
    if error is None:
        return None
    dumped: Mapping[str, Any] = error.model_dump()
    return dumped
