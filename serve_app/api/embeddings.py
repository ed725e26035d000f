"""POST /v1/embeddings in OpenAI's shape."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from deployments.contracts import Embeddings, EmbedRequest, Priority, Timed, Vector
from deployments.errors import InvalidInput
from deployments.together import all_together
from serve_app.api.fanout import chunks, slowest
from serve_app.api.limits import check_model, check_texts, deadline_of
from serve_app.api.observation import begin_trace
from serve_app.api.openai_shapes import EmbeddingsBody, EmbeddingsResponse, EmbeddingUsage
from serve_app.api.services import Services, services_of
from serve_app.api.wire import JsonResponse, JsonRoute
from serve_app.trace import Deadline, Trace

router = APIRouter(route_class=JsonRoute, tags=["openai"])


@router.post("/v1/embeddings", response_model=EmbeddingsResponse)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """Embed texts. A text that is longer than the model takes is refused, not cut."""
    services = services_of(request)
    model = check_model(body.model, services.embedding_model)
    check_texts(body.input, "input", services.http)
    trace = begin_trace(request)
    embedded = await _embed(body, services, deadline_of(body.timeout_s, services.lane.config), trace)
    dim = embedded.vectors.shape[1]
    if body.dimensions not in (None, dim):
        raise InvalidInput(f"dimensions is {body.dimensions}, but {model!r} has {dim}; leave dimensions out")
    response = {
        "object": "list",
        "data": _items(embedded.vectors, body.encoding_format == "base64"),
        "model": model,
        "usage": EmbeddingUsage(embedded.num_tokens, embedded.num_tokens),
    }
    return JsonResponse(response, headers={"server-timing": trace.server_timing()})


async def _embed(body: EmbeddingsBody, services: Services, deadline: Deadline, trace: Trace) -> Embeddings:
    # A long list must not keep the questions waiting that are being asked meanwhile.
    priority: Priority = "interactive" if len(body.input) == 1 else "bulk"

    async def embed(chunk: tuple[str, ...]) -> Timed[Embeddings]:
        request = EmbedRequest(chunk, body.input_type, priority, truncate=False)
        return await services.embedder.embed(request, deadline.remaining_s())

    started = time.perf_counter()
    embedded = await all_together([embed(chunk) for chunk in chunks(body.input, services.http)])
    trace.add("embed", time.perf_counter() - started, slowest([part.timing for part in embedded]))
    vectors = np.concatenate([part.value.vectors for part in embedded])
    return Embeddings(vectors, sum(part.value.num_tokens for part in embedded))


def _items(vectors: Vector, as_base64: bool) -> Sequence[dict[str, Any]]:
    rows: Sequence[Any] = [_base64(row) for row in vectors] if as_base64 else list(vectors)
    return [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]


def _base64(row: Vector) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
