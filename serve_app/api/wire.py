"""JSON on the wire, by orjson in both directions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from deployments.errors import TooLarge
from serve_app.api.services import HttpConfig

# Of a list whose length nothing else bounds, such as the turns of a chat.
_MOST_ITEMS = 1024


class JsonResponse(Response):
    """Plain data as JSON: dicts, lists, dataclasses and numpy arrays, without a second validation."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class JsonRoute(APIRoute):
    """A route that reads its body strictly: no NaN, no broken UTF-8, no lone surrogate gets past it, and no list that
    is longer than any may be."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictJsonRequest(request.scope, request.receive))

        return handle


class _StrictJsonRequest(Request):
    async def json(self) -> Any:
        body = orjson.loads(await self.body())
        if isinstance(body, dict):
            # Before they are validated, which takes a thousand bytes and more for each item.
            http: HttpConfig = self.app.state.services.http
            most = max(_MOST_ITEMS, http.max_inputs, http.max_documents_per_request)
            for name, value in body.items():
                if isinstance(value, list) and len(value) > most:
                    raise TooLarge(f"{name} has {len(value)} items; send at most {most} at a time")
        return body


def to_json(content: Any) -> bytes:
    """JSON as UTF-8 bytes; non-finite numbers become null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
