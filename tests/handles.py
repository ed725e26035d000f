"""A deployment object called the way a Ray Serve handle is, in this process: for tests of the adapters without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class LocalResponse:
    """Awaitable and cancellable, like a DeploymentResponse."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self._task.cancel()


class LocalStream:
    """An async iterator that can be cancelled, like a DeploymentResponseGenerator."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self.cancelled = False

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._events)

    def cancel(self) -> None:
        self.cancelled = True


class _Method:
    """A method by its name: what it is, the deployment knows when it is called."""

    def __init__(self, deployment: Any, name: str, stream: bool) -> None:
        self._deployment = deployment
        self._name = name
        self._stream = stream

    def remote(self, *args: Any, **kwargs: Any) -> LocalResponse | LocalStream:
        method = getattr(self._deployment, self._name)
        if self._stream:
            return LocalStream(method(*args, **kwargs))
        return LocalResponse(asyncio.ensure_future(method(*args, **kwargs)))


class LocalHandle:
    """`handle.method.remote(...)` on a plain object."""

    def __init__(self, deployment: Any, stream: bool = False) -> None:
        self._deployment = deployment
        self._stream = stream

    def options(self, **options: Any) -> LocalHandle:
        return LocalHandle(self._deployment, options.get("stream", False))

    def __getattr__(self, name: str) -> _Method:
        return _Method(self._deployment, name, self._stream)
