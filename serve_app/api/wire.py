"""JSON on the wire, by orjson in both directions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute


class JsonResponse(Response):
    """Plain data as JSON: dicts, lists, dataclasses and numpy arrays, without a second validation."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class JsonRoute(APIRoute):
    """A route that reads its body strictly: no NaN, no broken UTF-8, no lone surrogate gets past it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictJsonRequest(request.scope, request.receive))

        return handle


class _StrictJsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


def to_json(content: Any) -> bytes:
    """JSON as UTF-8 bytes; non-finite numbers become null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
