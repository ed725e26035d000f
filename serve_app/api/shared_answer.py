"""An answer that many ask for and that costs the same for all of them."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedAnswer(Generic[Value]):
    """What `ask` answers, asked once for all who want it meanwhile and for the next `keep_s` seconds.

    An error is kept and raised as an answer is. Who leaves stops nothing.
    """

    def __init__(self, ask: Callable[[], Awaitable[Value]], keep_s: float) -> None:
        self._ask = ask
        self._keep_s = keep_s
        self._asking: asyncio.Future[Value] | None = None
        self._kept_until = -math.inf

    async def __call__(self) -> Value:
        if self._asking is None or (self._asking.done() and _now_s() >= self._kept_until):
            # A context of its own: by its context Serve finds the calls of a request whose client has left, and cancels
            # them.
            work, loop = self._answer(), asyncio.get_running_loop()
            self._asking = loop.create_task(work, context=contextvars.Context())
        return await asyncio.shield(self._asking)

    async def _answer(self) -> Value:
        try:
            return await self._ask()
        finally:
            self._kept_until = _now_s() + self._keep_s


def _now_s() -> float:
    return asyncio.get_running_loop().time()
