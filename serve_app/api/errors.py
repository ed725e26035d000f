"""The status table: what a client is told about each error, in our shape or in OpenAI's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from deployments.errors import (
    AlreadyExists,
    BodyTimeout,
    ConfigError,
    DeadlineExceeded,
    EngineFailed,
    IndexMismatch,
    InputTooLong,
    InvalidInput,
    NotFound,
    Overloaded,
    RaglaneError,
    StageError,
    StageUnavailable,
    TooLarge,
)
from serve_app.api.services import request_id_of
from serve_app.api.wire import JsonResponse

logger = logging.getLogger(__name__)

STATUS_TABLE: Mapping[type[RaglaneError], tuple[int, str]] = {
    InvalidInput: (400, "invalid_input"),
    InputTooLong: (400, "input_too_long"),
    NotFound: (404, "not_found"),
    BodyTimeout: (408, "body_timeout"),
    AlreadyExists: (409, "already_exists"),
    IndexMismatch: (409, "index_mismatch"),
    TooLarge: (413, "too_large"),
    Overloaded: (429, "overloaded"),
    StageUnavailable: (503, "stage_unavailable"),
    DeadlineExceeded: (504, "deadline_exceeded"),
    EngineFailed: (500, "engine_failed"),
    StageError: (500, "stage_failed"),
    ConfigError: (500, "misconfigured"),
    RaglaneError: (500, "failed"),
}

OPENAI_PATHS = ("/v1/chat/", "/v1/models", "/v1/embeddings")

_HTTP_TYPES = {404: "not_found", 405: "method_not_allowed"}
_MAX_PROBLEMS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client may know of an error. `param` is the request field at fault, where there is one."""

    status: int
    type: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def speaks_openai(scope: Scope) -> bool:
    """Whether the path is one that OpenAI's clients call."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).startswith(OPENAI_PATHS)


def failure_of(error: Exception, scope: Scope) -> Failure:
    """Find what to tell about an error. An error that we did not raise on purpose is told nothing about."""
    if isinstance(error, RaglaneError):
        status, name = next(STATUS_TABLE[cls] for cls in type(error).__mro__ if cls in STATUS_TABLE)
        return Failure(status, name, error.message, headers=_retry_after(error, scope))
    if isinstance(error, RequestValidationError):
        return _invalid_request(error, scope)
    if isinstance(error, HTTPException):
        # FastAPI wraps whatever fails while the body is read; what failed is ours where the body was too large.
        if isinstance(error.__cause__, RaglaneError):
            return failure_of(error.__cause__, scope)
        message = f"there is no {scope['method']} {scope['path']}" if error.status_code in (404, 405) else error.detail
        name = _HTTP_TYPES.get(error.status_code, "bad_request")
        return Failure(error.status_code, name, message, headers=error.headers or {})
    return Failure(500, "internal_error", "internal error; its details are in the server's log under the request id")


def error_body(failure: Failure, scope: Scope) -> dict[str, Any]:
    """The failure as the JSON that clients of this path expect."""
    request_id = request_id_of(scope)
    if not speaks_openai(scope):
        return {"error": {"type": failure.type, "message": failure.message, "request_id": request_id}}
    kind = "server_error" if failure.status >= 500 else "invalid_request_error"
    if failure.status == 429:
        kind = "rate_limit_error"
    shape = {"message": failure.message, "type": kind, "param": failure.param, "code": failure.type}
    return {"error": shape, "request_id": request_id}


def error_response(error: Exception, scope: Scope) -> Response:
    """The response that answers a request with this error; what is our fault is logged as well."""
    failure = failure_of(error, scope)
    log_failure(error, failure, scope)
    return JsonResponse(error_body(failure, scope), status_code=failure.status, headers=dict(failure.headers))


async def handle_error(request: Request, error: Exception) -> Response:
    """`error_response` as an exception handler."""
    return error_response(error, request.scope)


def log_failure(error: Exception, failure: Failure, scope: Scope) -> None:
    """Log what went wrong on our side, with a traceback where nobody foresaw it."""
    if failure.status < 500:
        return
    where = f"{scope['method']} {scope['path']} [{request_id_of(scope)}]"
    if isinstance(error, RaglaneError):
        logger.warning("%s failed: %s: %s", where, failure.type, failure.message)
    else:
        logger.error("%s failed", where, exc_info=error)


def _retry_after(error: RaglaneError, scope: Scope) -> dict[str, str]:
    if not isinstance(error, Overloaded | StageUnavailable):
        return {}
    known = error.retry_after_s if isinstance(error, Overloaded) else None
    retry_after_s = scope["app"].state.services.http.retry_after_s if known is None else known
    return {"retry-after": str(max(1, math.ceil(retry_after_s)))}


def _invalid_request(error: RequestValidationError, scope: Scope) -> Failure:
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        return Failure(400, "invalid_json", f"the body is not valid JSON: {first['ctx']['error']}")
    status = 400 if speaks_openai(scope) else 422
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        message = "the body must be a JSON object, sent with content-type: application/json"
        return Failure(status, "invalid_request", message)
    message = "; ".join(_problem(problem) for problem in problems[:_MAX_PROBLEMS_NAMED])
    if len(problems) > _MAX_PROBLEMS_NAMED:
        message += f"; and {len(problems) - _MAX_PROBLEMS_NAMED} more"
    return Failure(status, "invalid_request", message, param=_field(first) or None)


def _problem(problem: Mapping[str, Any]) -> str:
    message = "this field is required" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
    name = _field(problem)
    return f"{name}: {message}" if name else message


def _field(problem: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in problem["loc"][1:])
