"""Ray's failures as our errors, and what a caller's side does when it gives up. No cluster is started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError

from deployments.contracts import Delta, Generated, GenerateRequest, GenerationEvent, StageTiming, Usage
from deployments.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineFailed,
    InputTooLong,
    InvalidInput,
    NotFound,
    Overloaded,
    RaglaneError,
    StageError,
    StageUnavailable,
)
from deployments.prompts import PromptsConfig, prompt_messages
from deployments.remote import Handle, RemoteGenerator, RemoteIndexer, readiness, translate
from deployments.telemetry import DROPPED
from tests.handles import LocalHandle

SECRETS = ("Traceback", "pid=", "4711", "10.20.30.40", "secret_function", "/srv/secret.py", "actor_id", "0xabc")
# As its words for a dead actor Ray gives the dead process's address, its id and its last words.
DEATH = ActorDiedErrorContext(
    error_message="ValueError: 0xabc",
    actor_id=bytes(16),
    class_name="secret_function",
    pid=4711,
    node_ip_address="10.20.30.40",
)
TRACEBACK = 'Traceback (most recent call last):\n  File "/srv/secret.py", line 7, in secret_function\nValueError: 0xabc'


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("secret_function", TRACEBACK, cause, proctitle="pid=4711", pid=4711, ip="10.20.30.40")


REMOTE = [
    (task_error(InvalidInput("Shorten it.")), InvalidInput),
    (task_error(InputTooLong("300 > 256")), InputTooLong),
    (task_error(NotFound("no such thing")), NotFound),
    (task_error(EngineDead("gone")), EngineDead),
    (task_error(BackPressureError(5, 5)), Overloaded),
    (task_error(ValueError("0xabc")), EngineFailed),
    (task_error(MemoryError("0xabc")), EngineFailed),
    (BackPressureError(5, 5), Overloaded),
    (ActorDiedError(DEATH), StageUnavailable),
    (ActorDiedError(), StageUnavailable),
    (ActorUnavailableError("10.20.30.40", b"0" * 16), StageUnavailable),
    (RayActorError("0" * 32, "pid=4711"), StageUnavailable),
    (RequestCancelledError("0xabc"), StageUnavailable),
    (TaskCancelledError(), StageUnavailable),
    (asyncio.CancelledError("0xabc"), StageUnavailable),
    (GetTimeoutError("pid=4711"), StageUnavailable),
    (ObjectLostError("0xabc", "10.20.30.40", "secret_function"), StageUnavailable),
    (RayServeException("10.20.30.40"), StageUnavailable),
    (OSError("10.20.30.40"), StageUnavailable),
]


@pytest.mark.parametrize(("error", "ours"), REMOTE, ids=[f"{type(e).__name__}-{ours.__name__}" for e, ours in REMOTE])
@pytest.mark.parametrize("raised_as_its_cause", [False, True])
def test_a_remote_failure_becomes_our_error_and_tells_no_secrets(
    error: BaseException, ours: type[RaglaneError], raised_as_its_cause: bool
) -> None:
    if raised_as_its_cause and isinstance(error, RayTaskError):
        # What a handle raises: an instance of both RayTaskError and the cause's class.
        error = error.as_instanceof_cause()
    translated = translate(error, "embed")
    assert type(translated) is ours
    assert not isinstance(translated, RayTaskError)
    assert isinstance(translated, StageError)
    for secret in SECRETS:
        assert secret not in str(translated)
        assert secret not in translated.message


def test_a_deployment_that_is_not_there_is_unavailable() -> None:
    from ray.serve._private.common import DeploymentID

    error = DeploymentUnavailableError(DeploymentID("Embedder", "app"))
    assert type(translate(error, "embed")) is StageUnavailable


def test_our_own_error_stays_itself() -> None:
    error = Overloaded("full", retry_after_s=7.5)
    assert translate(error, "embed") is error
    remote = translate(task_error(error), "embed")
    assert isinstance(remote, Overloaded)
    assert (remote.message, remote.retry_after_s) == ("full", 7.5)


def test_an_error_that_came_through_two_stages_is_still_ours_and_tells_no_secrets() -> None:
    inner = task_error(InvalidInput("Shorten it.")).as_instanceof_cause()
    translated = translate(task_error(inner), "rerank")
    assert isinstance(translated, InvalidInput)
    assert str(translated) == translated.message == "Shorten it."


def test_the_message_names_the_stage() -> None:
    for error in (task_error(ValueError("x")), BackPressureError(1, 1), TaskCancelledError(), OSError("x")):
        assert "rerank" in translate(error, "rerank").message


class Answerer:
    """A generator deployment that says two words and then does what it was told to."""

    def __init__(self, then: BaseException | None = None, pause_s: float = 0.0) -> None:
        self.then = then
        self.pause_s = pause_s

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield Delta("Two ")
        yield Delta("words.")
        await asyncio.sleep(self.pause_s)
        if self.then is not None:
            raise self.then
        yield Generated("stop", Usage(), StageTiming(), "answerer")


class RecordingHandle(LocalHandle):
    """Keeps the streams that it gave out."""

    streams: list[Any]

    def options(self, **options: Any) -> RecordingHandle:
        handle = RecordingHandle(self._stage, options.get("stream", False))
        handle.streams = self.streams = []
        return handle

    def __getattr__(self, name: str) -> Any:
        method, streams = super().__getattr__(name), self.streams

        class Recorded:
            def remote(self, *args: Any) -> Any:
                streams.append(method.remote(*args))
                return streams[-1]

        return Recorded()


def request(budget_s: float = 60) -> GenerateRequest:
    return GenerateRequest("Why?", (), prompt_messages("Why?", (), PromptsConfig()), budget_s=budget_s)


async def test_a_stream_ends_with_its_last_event() -> None:
    generator = RemoteGenerator(LocalHandle(Answerer()))
    events = [event async for event in generator.generate(request())]
    assert events[:2] == [Delta("Two "), Delta("words.")]
    assert isinstance(events[2], Generated)
    assert len(events) == 3


async def test_a_failure_half_way_through_a_stream_is_our_error() -> None:
    generator = RemoteGenerator(LocalHandle(Answerer(task_error(EngineDead("gone")).as_instanceof_cause())))
    events = generator.generate(request())
    assert [await anext(events), await anext(events)] == [Delta("Two "), Delta("words.")]
    with pytest.raises(EngineDead) as failed:
        await anext(events)
    assert str(failed.value) == "gone"
    assert list(generator.read()) == [(DROPPED, ("generate", "unavailable"), 1)]


async def test_what_a_generator_refuses_is_no_item_dropped() -> None:
    generator = RemoteGenerator(LocalHandle(Answerer(task_error(InvalidInput("too long")).as_instanceof_cause())))
    with pytest.raises(InvalidInput):
        _ = [event async for event in generator.generate(request())]
    assert list(generator.read()) == []


async def test_a_stream_cancelled_from_outside_is_a_stage_that_is_unavailable() -> None:
    generator = RemoteGenerator(LocalHandle(Answerer(asyncio.CancelledError())))
    with pytest.raises(StageUnavailable):
        _ = [event async for event in generator.generate(request())]


@pytest.mark.virtual_time
@pytest.mark.parametrize("give_up", ["close", "deadline", "cancel"])
async def test_a_stream_that_nobody_waits_for_is_cancelled_at_the_replica(give_up: str) -> None:
    handle = RecordingHandle(Answerer(pause_s=60))
    events = RemoteGenerator(handle).generate(request(0.1 if give_up == "deadline" else 60))
    assert [await anext(events), await anext(events)] == [Delta("Two "), Delta("words.")]
    (stream,) = handle.streams
    assert not stream.cancelled
    match give_up:
        case "close":
            await events.aclose()
        case "deadline":
            with pytest.raises(DeadlineExceeded):
                await anext(events)
        case _:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    assert stream.cancelled


class Writer:
    """An indexer deployment that never gets done."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def index(self, *args: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()


@pytest.mark.virtual_time
async def test_a_write_that_takes_longer_than_its_budget_is_given_up_and_cancelled() -> None:
    writer = Writer()
    with pytest.raises(DeadlineExceeded):
        await RemoteIndexer(LocalHandle(writer)).index("docs", [], 0.05)
    await asyncio.wait_for(writer.cancelled.wait(), 10)


class Describes:
    def __init__(self, error: Exception | None = None, delay_s: float = 0.0) -> None:
        self.error = error
        self.delay_s = delay_s

    async def describe(self) -> str:
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return "fine"


@pytest.mark.virtual_time
async def test_readiness_tells_for_each_stage_whether_it_answers_and_why_not() -> None:
    dead = ActorDiedError(DEATH)
    handles: dict[str, Handle] = {
        "embed": LocalHandle(Describes()),
        "search": LocalHandle(Describes(delay_s=60)),
        "rerank": LocalHandle(Describes(dead)),
        "generate": LocalHandle(Describes(task_error(EngineDead("The engine is gone.")).as_instanceof_cause())),
    }
    answers = await readiness(handles, 0.2)
    assert list(answers) == list(handles)
    assert answers["embed"] == "ready"
    assert "no answer within 0.2 s" in answers["search"]
    assert answers["generate"] == "The engine is gone."
    assert "replica" in answers["rerank"]
    for secret in SECRETS:
        assert secret not in "".join(answers.values())
