"""create_api: the FastAPI app over the lane and the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deployments.errors import RaglaneError
from serve_app.api import answers, chat, documents, embeddings, health, models, rerank, search, stages
from serve_app.api.admission import UNGUARDED_PATHS, Admission, BodyLimit, CancelOnDisconnect, ErrorBoundary, RequestId
from serve_app.api.errors import handle_error
from serve_app.api.observation import Observation, Observer
from serve_app.api.openai_shapes import OpenAIErrorResponse
from serve_app.api.schemas import ErrorResponse
from serve_app.api.services import Services

API_VERSION = "1.0"


def create_api(services: Services, *, observers: Sequence[Observer] = (), echo_request_id: bool = True) -> FastAPI:
    """The whole HTTP room. The observers are told of every request that is over.

    `echo_request_id=False` where the server in front returns x-request-id by itself.
    """
    api = routes_only()
    api.state.services = services
    api.state.probes = health.Probes(services)
    paths = frozenset(getattr(route, "path", "") for route in api.routes)
    # The last one added is the outermost.
    api.add_middleware(ErrorBoundary)
    api.add_middleware(CancelOnDisconnect)
    api.add_middleware(BodyLimit, config=services.http)
    api.add_middleware(Admission, config=services.http)
    if observers:
        api.add_middleware(Observation, observers=tuple(observers), unobserved=UNGUARDED_PATHS, paths=paths)
    api.add_middleware(RequestId, echo=echo_request_id)
    return api


def routes_only() -> FastAPI:
    """The routes without anything behind them, which is all that the OpenAPI document needs."""
    api = FastAPI(
        title="raglane",
        version=API_VERSION,
        description="Retrieval-augmented generation on Ray: answers from your documents, with citations and timings.",
        redirect_slashes=False,
        redoc_url=None,
    )
    for router in (answers.router, search.router, rerank.router, documents.router):
        api.include_router(router, responses=_errors(ErrorResponse))
    for router in (chat.router, models.router, embeddings.router):
        api.include_router(router, responses=_errors(OpenAIErrorResponse))
    api.include_router(stages.router, responses=_errors(ErrorResponse))
    api.include_router(health.router)
    for error in (RaglaneError, RequestValidationError, HTTPException):
        api.add_exception_handler(error, handle_error)
    return api


def _errors(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    return {"default": {"model": model, "description": "What went wrong, and what to change."}}
