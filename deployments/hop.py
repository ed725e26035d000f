"""A hop between two stages: what waits for the same stage travels in one call, each item still on its own.

A Ray call costs about the same whatever it carries, so the caller's side (`Hop`) sends everything that waits in one
call, with a bounded number of calls in flight; the stage's side (`serve_each`) answers each item with its own outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from deployments import telemetry
from deployments.contracts import Call, Outcome, Timed
from deployments.errors import DeadlineExceeded, EngineFailed, Overloaded, StageError, StageUnavailable
from deployments.section import Section
from deployments.tally import DropTally
from deployments.telemetry import Reading

Request = TypeVar("Request")
Value = TypeVar("Value")
Response_co = TypeVar("Response_co", covariant=True)

logger = logging.getLogger(__name__)


class HopConfig(Section):
    """How calls to one stage are coalesced."""

    max_calls_in_flight: int = Field(4, ge=1, description="Calls to the stage that may be under way at once.")
    max_call_bytes: int = Field(
        2 * 2**20,
        ge=1,
        description="What the requests and answers of one call may come to, by estimate; Ray Serve's messages end at "
        "4 MB by default.",
    )
    max_waiting: int = Field(2048, ge=1, description="Requests that may wait for a call; more are refused as overload.")


class Response(Protocol[Response_co]):
    """An awaitable answer whose work can be stopped: what a Ray Serve handle returns."""

    def __await__(self) -> Any: ...

    def cancel(self) -> None: ...


async def serve_each(
    calls: Sequence[Call[Request]], handler: Callable[[Request, float], Awaitable[Timed[Value]]]
) -> list[Outcome[Value]]:
    """Serve the items of one hop side by side, each within its own budget, and return an outcome for each, in order."""
    if len(calls) == 1:
        return [await _serve_one(calls[0], handler)]
    return list(await asyncio.gather(*(_serve_one(call, handler) for call in calls)))


async def _serve_one(
    call: Call[Request], handler: Callable[[Request, float], Awaitable[Timed[Value]]]
) -> Outcome[Value]:
    try:
        async with asyncio.timeout(call.budget_s):
            return Outcome(result=await handler(call.request, call.budget_s))
    except TimeoutError:
        return Outcome(error=DeadlineExceeded("no time was left before the work was done"))
    except StageError as error:
        return Outcome(error=error)
    except Exception:
        logger.exception("an item of a hop failed")
        return Outcome(error=EngineFailed("the stage failed on this request; its log has the details"))


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Request, Value]):
    request: Request
    size_bytes: int
    expires_at: float
    future: asyncio.Future[Timed[Value]]
    sent: bool = False


class Hop(Generic[Request, Value]):
    """The caller's side. A request leaves at once while a call may be made; otherwise it joins the next one.

    Each request keeps its own deadline, result and error. A call whose every caller has gone is cancelled. A call
    that finds its replica dead is made once more, which is right only for stages without side effects.
    """

    def __init__(
        self, name: str, call: Callable[[list[Call[Request]]], Response[list[Outcome[Value]]]], config: HopConfig
    ) -> None:
        self._name = name
        self._dropped = DropTally(name)
        self._call = call
        self._config = config
        self._waiting: deque[_Waiting[Request, Value]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False

    async def __call__(self, request: Request, budget_s: float, size_bytes: int = 0) -> Timed[Value]:
        """Send one request; `size_bytes` estimates what it and its answer take of a call.

        Raises the request's own error, Overloaded when too many wait, DeadlineExceeded after `budget_s` seconds.
        """
        if len(self._waiting) >= self._config.max_waiting:
            self._dropped.add("overloaded")
            raise Overloaded(f"{len(self._waiting)} requests wait for the {self._name} stage; try again later")
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Request, Value](request, size_bytes, time.monotonic() + budget_s, loop.create_future())
        self._waiting.append(waiting)
        self._schedule_pump(loop)
        try:
            async with asyncio.timeout(budget_s):
                return await waiting.future
        except TimeoutError:
            raise DeadlineExceeded(f"the {self._name} stage did not answer in time") from None
        finally:
            waiting.future.cancel()
            if not waiting.sent:
                self._waiting.remove(waiting)
                self._dropped.add("expired" if time.monotonic() >= waiting.expires_at else "cancelled")

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of this hop."""
        yield from self._dropped.read()
        yield telemetry.WAITING, (self._name,), len(self._waiting)

    def _schedule_pump(self, loop: asyncio.AbstractEventLoop) -> None:
        # One turn of the loop later, so that requests which arrive together leave together.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            # A context of its own: a call that many share must not be one caller's child. Serve finds a request's calls
            # by its context and cancels them when its client leaves.
            loop.call_soon(self._pump, context=contextvars.Context())

    def _pump(self) -> None:
        self._pump_scheduled = False
        while self._waiting and len(self._in_flight) < self._config.max_calls_in_flight:
            task = asyncio.create_task(self._send(self._next_call()))
            self._in_flight.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._pump()

    def _next_call(self) -> list[_Waiting[Request, Value]]:
        batch: list[_Waiting[Request, Value]] = []
        size_bytes = 0
        while self._waiting:
            head = self._waiting[0]
            if batch and size_bytes + head.size_bytes > self._config.max_call_bytes:
                break
            size_bytes += head.size_bytes
            head.sent = True
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, batch: list[_Waiting[Request, Value]]) -> None:
        flight = _Flight(asyncio.current_task(), len(batch))
        for waiting in batch:
            waiting.future.add_done_callback(flight.caller_left)
        try:
            try:
                outcomes = await self._attempt(batch, flight)
            except StageUnavailable:
                outcomes = await self._attempt(batch, flight)
        except StageError as error:
            outcomes = [Outcome(error=error)] * len(batch)
        except Exception:
            logger.exception("a call to the %s stage failed", self._name)
            outcomes = [Outcome(error=StageUnavailable(f"the {self._name} stage failed"))] * len(batch)
        flight.land()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.future.done():
                continue
            self._dropped.add_failure(outcome.error)
            if outcome.error is not None:
                # One object raised in several tasks would gather the tracebacks of all of them.
                waiting.future.set_exception(type(outcome.error)(*outcome.error.args))
            else:
                waiting.future.set_result(outcome.unwrap())

    async def _attempt(self, batch: list[_Waiting[Request, Value]], flight: _Flight) -> list[Outcome[Value]]:
        now = time.monotonic()
        response = self._call([Call(waiting.request, max(0.0, waiting.expires_at - now)) for waiting in batch])
        try:
            return _unless_all_unavailable(await response)
        except asyncio.CancelledError:
            if not flight.is_cancelled():
                raise StageUnavailable(f"a call to the {self._name} stage was cancelled from outside") from None
            # Giving up the await stops nothing by itself: the stage keeps working until it is told to stop.
            response.cancel()
            raise


class _Flight:
    """A call under way in a task of its own, which is cancelled when the last of its callers has gone."""

    def __init__(self, task: asyncio.Task[None] | None, num_callers: int) -> None:
        self._task = task
        self._num_callers = num_callers

    def caller_left(self, future: asyncio.Future[Any]) -> None:
        """One of the callers waits no more."""
        self._num_callers -= 1
        if self._num_callers == 0 and self._task is not None:
            self._task.cancel()

    def land(self) -> None:
        """The call is over: its callers leave with their answers."""
        self._task = None

    def is_cancelled(self) -> bool:
        """Whether it was this side that gave the call up; a call cancelled elsewhere ends in the same bare error."""
        return self._task is not None and self._task.cancelling() > 0


def _unless_all_unavailable(outcomes: list[Outcome[Value]]) -> list[Outcome[Value]]:
    # A replica whose engine has died answers at once, and so looks like the idlest one until it is replaced.
    errors = [outcome.error for outcome in outcomes]
    if errors and all(isinstance(error, StageUnavailable) for error in errors):
        assert errors[0] is not None
        raise errors[0]
    return outcomes
