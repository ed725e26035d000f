"""POST /v1/search."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.api.limits import deadline_of, results_wanted
from serve_app.api.observation import begin_trace
from serve_app.api.schemas import Ask, Result, SearchBody, SearchResponse
from serve_app.api.services import request_id_of, services_of
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.lane_config import LaneConfig
from serve_app.retrieval import Query

router = APIRouter(route_class=JsonRoute, tags=["search"])


@router.post("/v1/search", response_model=SearchResponse)
async def search(body: SearchBody, request: Request) -> Response:
    """The passages that match a query best."""
    services = services_of(request)
    query = query_of(body, body.query, services.lane.config, request_id_of(request.scope))
    deadline = deadline_of(body.timeout_s, services.lane.config)
    found = await services.lane.search(query, deadline, begin_trace(request))
    results = [Result.of(passage) for passage in found.passages]
    response = SearchResponse(results, found.degraded, found.trace.rows, request_id_of(request.scope))
    return JsonResponse(response, headers={"server-timing": found.trace.server_timing()})


def query_of(ask: Ask, text: str, config: LaneConfig, request_id: str) -> Query:
    """What the lane is to look for."""
    return Query(
        text=text,
        collection=ask.collection or config.default_collection,
        k=results_wanted(ask.k, config),
        mode=ask.mode or config.default_mode,
        rerank=ask.rerank,
        rewrite=ask.rewrite,
        filter=ask.filter,
        request_id=request_id,
    )
