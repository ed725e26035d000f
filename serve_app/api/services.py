"""What the HTTP room is given to serve with, and how much one request may carry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import Request
from pydantic import Field
from starlette.types import Scope

from deployments.contracts import Embeds, Indexes, Reranks
from deployments.section import Section
from deployments.tally import LaneTally
from serve_app.pipeline import Lane
from serve_app.stage_figures import StagesReport

ReportStages = Callable[[float], Awaitable[StagesReport]]
Readiness = Callable[[], Awaitable[Mapping[str, str]]]

READY = "ready"


class HttpConfig(Section):
    """What the HTTP door lets in. One ingress replica counts for itself."""

    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Larger request bodies are refused with 413.")
    body_timeout_s: float = Field(60.0, gt=0, description="A body that takes longer to arrive is answered 408.")
    max_concurrent_requests: int = Field(
        256, ge=1, description="Requests one ingress replica works on at a time; more are refused with 429."
    )
    retry_after_s: float = Field(1.0, ge=0, description="When a client that was refused for now is told to come back.")
    max_inputs: int = Field(1024, ge=1, description="Texts in one request for embeddings or reranking.")
    max_text_bytes: int = Field(2**20, ge=1024, description="Longer texts to embed or rerank are refused.")
    chunk_texts: int = Field(
        256,
        ge=1,
        description="More texts than this are embedded, or reranked by a cross-encoder, in several messages at the "
        "same time.",
    )
    chunk_bytes: int = Field(
        2**20,
        ge=1024,
        description="Texts that fill one message to a stage; Ray Serve's messages end at 4 MB by default. Sentence "
        "evidence compares all texts of a request, so they stay in one.",
    )
    max_documents_per_request: int = Field(1000, ge=1, description="Documents in one request for indexing.")
    index_timeout_s: float = Field(300.0, gt=0, description="The deadline of an indexing request that sets none.")
    stages_patience_s: float = Field(
        3.0, ge=0, description="How long GET /v1/stages waits for metrics that include all that happened before it."
    )
    readiness_timeout_s: float = Field(5.0, gt=0, description="How long /health/ready waits for the stages' answers.")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything behind the routes. `readiness` maps each stage to "ready" or to why it is not,
    within `readiness_timeout_s`.

    `report_stages` watches the stages for some seconds, or reports on all since the start where they are 0.
    `rerank_in_parts` says that the reranker's scores compare across requests, as those of a cross-encoder do. `tally`
    counts what the stages do for requests.
    """

    lane: Lane
    indexer: Indexes
    embedder: Embeds
    reranker: Reranks
    readiness: Readiness
    report_stages: ReportStages
    embedding_model: str
    reranker_model: str
    generator_model: str
    embedding_max_tokens: int
    http: HttpConfig
    rerank_in_parts: bool = False
    tally: LaneTally = field(default_factory=LaneTally)


def services_of(request: Request) -> Services:
    """The services that `create_api` was called with."""
    services: Services = request.app.state.services
    return services


def request_id_of(scope: Scope) -> str:
    """The request's id: the client's own where it sent a usable one."""
    request_id: str = scope.get("state", {}).get("request_id", "")
    return request_id
