"""GET /v1/stages: the latency report."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serve_app.api.services import services_of
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.stage_figures import StagesReport

MAX_WINDOW_S = 60.0

router = APIRouter(route_class=JsonRoute, tags=["operations"])


@router.get("/v1/stages", response_model=StagesReport)
async def stages(
    request: Request,
    window_s: Annotated[
        float,
        Query(
            ge=0,
            le=MAX_WINDOW_S,
            description="Watch the stages for so many seconds; 0: report on everything since the start.",
        ),
    ] = 0.0,
) -> Response:
    """Where requests spend their time, how busy each stage is, and which one to scale next."""
    return JsonResponse(await services_of(request).report_stages(window_s))
