"""An event loop whose clock jumps to the next timer: minutes pass at once, and how long a thing takes is exact.

And a clock for what reads one itself.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Value = TypeVar("Value")


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would sleep until its next timer, this moves the clock there."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For work that waits for timers alone; threads and sockets live in real time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def timed(work: Callable[[], Coroutine[Any, Any, Value]]) -> tuple[Value, float]:
    """The result of the work, and how many seconds of virtual time it took."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        value = runner.run(work())
        return value, runner.get_loop().time()


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that moves on by as much whenever it is read, and at no other time."""
    ticks = itertools.count()
    return lambda: next(ticks) * step_s
