"""Asking a server for answers one by one, rather than as a load: what it sheds is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.experiment import ExperimentError

MAX_ATTEMPTS = 10
RETRY_AFTER_S = "1"


async def post(http: httpx.AsyncClient, path: str, body: Mapping[str, Any], what: str) -> httpx.Response:
    """The server's answer to `body`, which has status 200. Raises ExperimentError that names `what` was asked."""
    for _ in range(MAX_ATTEMPTS):
        try:
            response = await http.post(path, json=body)
        except httpx.HTTPError as error:
            raise ExperimentError(f"{what} got no answer ({error!r}); is the server up?") from error
        if response.status_code != 429:
            break
        await asyncio.sleep(float(response.headers.get("Retry-After", RETRY_AFTER_S)))
    if response.status_code != 200:
        raise ExperimentError(f"{what} was answered {response.status_code}: {response.text[:300]}")
    return response
