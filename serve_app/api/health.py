"""GET /health/live and /health/ready."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from serve_app.api.services import READY, services_of
from serve_app.api.wire import JsonResponse

router = APIRouter(prefix="/health", tags=["health"])


@dataclass(frozen=True, slots=True)
class Liveness:
    """This process answers."""

    status: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`status` is "ready" or "not ready"; `stages` says of each stage "ready", or why it is not."""

    status: str
    stages: dict[str, str]


@router.get("/live", response_model=Liveness)
async def live() -> Response:
    """Whether this process answers at all."""
    return JsonResponse(Liveness("live"))


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(request: Request) -> Response:
    """Whether every stage can serve; 503 names those that can't."""
    services = services_of(request)
    try:
        async with asyncio.timeout(services.http.readiness_timeout_s):
            stages = dict(await services.readiness())
    except TimeoutError:
        stages = {"serve": f"no answer within {services.http.readiness_timeout_s:g} s"}
    if all(state == READY for state in stages.values()):
        return JsonResponse(Readiness("ready", stages))
    return JsonResponse(Readiness("not ready", stages), status_code=503)
