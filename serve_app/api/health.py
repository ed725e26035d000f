"""GET /health/live and /health/ready."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from deployments.errors import StageError
from serve_app.api.services import READY, Services
from serve_app.api.shared_answer import SharedAnswer
from serve_app.api.wire import JsonResponse

# Nice to know, but no reason to keep a probe waiting.
_COVERAGE_TIMEOUT_S = 1.0

# Nobody has to be let in to probe, and each probe asks every stage.
_KEPT_S = 1.0

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


class Probes:
    """What is asked of the stages for all probes of about the same time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.readiness = SharedAnswer(services.readiness, _KEPT_S)
        self.coverage = SharedAnswer(self._coverage, _KEPT_S)

    async def _coverage(self) -> dict[str, dict[str, float]]:
        try:
            async with asyncio.timeout(min(self._services.http.readiness_timeout_s, _COVERAGE_TIMEOUT_S)):
                return await self._services.indexer.coverage()
        except (TimeoutError, StageError):
            return {}


@router.get("/live", response_model=Liveness)
async def live() -> Response:
    """Whether this process answers at all."""
    return JsonResponse(Liveness("live"))


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(request: Request) -> Response:
    """Whether every stage can serve; 503 names those that can't."""
    probes: Probes = request.app.state.probes
    stages, coverage = await asyncio.gather(probes.readiness(), probes.coverage())
    if all(state == READY for state in stages.values()):
        return JsonResponse(Readiness("ready", dict(stages), coverage))
    return JsonResponse(Readiness("not ready", dict(stages), coverage), status_code=503)
