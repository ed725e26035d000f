"""POST /v1/search."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deployments.contracts import SearchMode
from deployments.errors import InvalidInput
from serve_app.api.limits import deadline_of, results_wanted
from serve_app.api.schemas import Ask, Result, SearchBody, SearchResponse
from serve_app.api.services import request_id_of, services_of
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.pipeline import LaneConfig, Query

AVAILABLE_MODES: tuple[SearchMode, ...] = ("vector",)

router = APIRouter(route_class=JsonRoute, tags=["search"])


@router.post("/v1/search", response_model=SearchResponse)
async def search(body: SearchBody, request: Request) -> Response:
    """The passages that match a query best."""
    services = services_of(request)
    query = query_of(body, body.query, services.lane.config, mode=body.mode, rerank=body.rerank)
    found = await services.lane.search(query, deadline_of(body.timeout_s, services.lane.config))
    results = [Result.of(passage) for passage in found.passages]
    response = SearchResponse(results, found.degraded, found.trace.rows, request_id_of(request.scope))
    return JsonResponse(response, headers={"server-timing": found.trace.server_timing()})


def query_of(ask: Ask, text: str, config: LaneConfig, mode: SearchMode = "vector", rerank: bool = True) -> Query:
    """What the lane is to look for; raises InvalidInput for a mode that it does not have."""
    if mode not in AVAILABLE_MODES:
        raise InvalidInput(f"mode {mode!r} is not available yet; use {AVAILABLE_MODES[0]!r}")
    return Query(
        text=text,
        collection=ask.collection or config.default_collection,
        k=results_wanted(ask.k, config),
        mode=mode,
        rerank=rerank,
        filter=ask.filter,
    )
