"""GET /health/live and /health/ready."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from deployments.errors import StageError
from serve_app.api.services import READY, Services, services_of
from serve_app.api.wire import JsonResponse

# Nice to know, but no reason to keep a probe waiting.
_COVERAGE_TIMEOUT_S = 1.0

router = APIRouter(prefix="/health", tags=["health"])


@dataclass(frozen=True, slots=True)
class Liveness:
    """This process answers."""

    status: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`status` is "ready" or "not ready"; `stages` says of each stage "ready", or why it is not.

    `index_coverage` has for each collection the share of its chunks that each index covers; what is not covered yet is
    found all the same, by comparing. It is empty where the indexer does not answer.
    """

    status: str
    stages: dict[str, str]
    index_coverage: dict[str, dict[str, float]]


@router.get("/live", response_model=Liveness)
async def live() -> Response:
    """Whether this process answers at all."""
    return JsonResponse(Liveness("live"))


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(request: Request) -> Response:
    """Whether every stage can serve; 503 names those that can't."""
    services = services_of(request)
    stages, coverage = await asyncio.gather(_stages(services), _coverage(services))
    if all(state == READY for state in stages.values()):
        return JsonResponse(Readiness("ready", stages, coverage))
    return JsonResponse(Readiness("not ready", stages, coverage), status_code=503)


async def _stages(services: Services) -> dict[str, str]:
    try:
        async with asyncio.timeout(services.http.readiness_timeout_s):
            return dict(await services.readiness())
    except TimeoutError:
        return {"serve": f"no answer within {services.http.readiness_timeout_s:g} s"}


async def _coverage(services: Services) -> dict[str, dict[str, float]]:
    try:
        async with asyncio.timeout(min(services.http.readiness_timeout_s, _COVERAGE_TIMEOUT_S)):
            return await services.indexer.coverage()
    except (TimeoutError, StageError):
        return {}
