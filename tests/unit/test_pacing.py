"""How streams share the pace at which a replica speaks, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from operator import add

import pytest

from deployments.errors import ConfigError, EngineFailed, RaglaneError
from deployments.pacing import PaceConfig, Pacer
from tests.virtual_time import timed

# With n streams a piece may follow the last after n × 10 ms.
HUNDRED_A_SECOND = PaceConfig(max_messages_per_s=100, max_hold_ms=1000)


class Engine:
    """Says `texts`, one every `every_s`, and ends well or with a failure."""

    def __init__(self, texts: str, every_s: float, failure: RaglaneError | None = None) -> None:
        self.closed_at: float | None = None
        self.said = 0
        self._texts = texts
        self._every_s = every_s
        self._failure = failure

    async def generate(self) -> AsyncGenerator[str]:
        try:
            for text in self._texts:
                self.said += 1
                yield text
                await asyncio.sleep(self._every_s)
            if self._failure is not None:
                raise self._failure
        finally:
            self.closed_at = asyncio.get_running_loop().time()


Arrival = tuple[int, str]


async def read(pacer: Pacer, engine: Engine) -> list[Arrival]:
    """The pieces with the milliseconds at which they came."""
    loop = asyncio.get_running_loop()
    async with aclosing(pacer.pace(engine.generate(), add)) as texts:
        return [(round(1000 * loop.time()), text) async for text in texts]


def arrivals(config: PaceConfig, *engines: Engine) -> list[list[Arrival]]:
    async def run() -> list[list[Arrival]]:
        pacer = Pacer(config)
        return await asyncio.gather(*(read(pacer, engine) for engine in engines))

    return timed(run)[0]


def test_pieces_that_come_slower_than_the_pace_travel_one_by_one() -> None:
    [events] = arrivals(HUNDRED_A_SECOND, Engine("abc", every_s=0.020))
    assert events == [(0, "a"), (20, "b"), (40, "c")]


def test_pieces_that_come_faster_travel_together_and_the_first_and_the_end_do_not_wait() -> None:
    [events] = arrivals(HUNDRED_A_SECOND, Engine("abcdefgh", every_s=0.003))
    assert events == [(0, "a"), (10, "bcd"), (20, "efg"), (24, "h")]


def test_many_streams_share_the_pace() -> None:
    def engines(count: int) -> list[Engine]:
        return [Engine("a" * 200, every_s=0.010) for _ in range(count)]

    for count in (1, 4, 10):
        streams = arrivals(HUNDRED_A_SECOND, *engines(count))
        messages = sum(len(events) for events in streams)
        # Two seconds of speech; besides the pace, each stream has its first piece and its last.
        assert 190 <= messages <= 200 + 2 * count
        for events in streams:
            assert "".join(text for _, text in events) == "a" * 200
            assert events[0] == (0, "a")


def test_a_stream_that_is_left_alone_speaks_as_often_as_one_alone() -> None:
    short, long = arrivals(HUNDRED_A_SECOND, Engine("ab", every_s=0.010), Engine("a" * 12, every_s=0.010))
    assert [at for at, _ in short] == [0, 20]
    assert [at for at, _ in long[:4]] == [0, 20, 30, 40]


def test_text_is_held_no_longer_than_the_bound() -> None:
    config = PaceConfig(max_messages_per_s=1, max_hold_ms=30)
    [events] = arrivals(config, Engine("abcdefgh", every_s=0.007))
    assert events == [(0, "a"), (30, "bcde"), (56, "fgh")]


def test_nothing_is_held_where_the_bound_is_zero() -> None:
    config = PaceConfig(max_messages_per_s=1, max_hold_ms=0)
    [events] = arrivals(config, Engine("abc", every_s=0.001))
    assert events == [(0, "a"), (1, "b"), (2, "c")]


def test_a_failure_is_raised_at_once_and_after_the_text_before_it() -> None:
    async def run() -> tuple[list[Arrival], int]:
        loop = asyncio.get_running_loop()
        engine = Engine("abc", every_s=0.002, failure=EngineFailed("it broke"))
        events: list[Arrival] = []

        async def read_on() -> None:
            async for event in Pacer(HUNDRED_A_SECOND).pace(engine.generate(), add):
                events.append((round(1000 * loop.time()), event))

        with pytest.raises(EngineFailed, match="it broke"):
            await read_on()
        return events, round(1000 * loop.time())

    (events, failed_at), _ = timed(run)
    assert events == [(0, "a"), (6, "bc")]
    assert failed_at == 6


def test_a_failure_before_the_first_word_is_raised() -> None:
    with pytest.raises(EngineFailed):
        arrivals(HUNDRED_A_SECOND, Engine("", every_s=0.0, failure=EngineFailed("it broke")))


@pytest.mark.parametrize("pieces", [1, 2])
def test_who_stops_reading_stops_the_engine(pieces: int) -> None:
    async def run() -> tuple[float | None, float, int]:
        engine = Engine("a" * 1000, every_s=0.010)
        stream = Pacer(HUNDRED_A_SECOND).pace(engine.generate(), add)
        for _ in range(pieces):
            await anext(stream)
        await stream.aclose()
        return engine.closed_at, asyncio.get_running_loop().time(), engine.said

    (closed_at, now, said), _ = timed(run)
    assert closed_at == now
    assert said < 10


def test_who_is_cancelled_while_nothing_comes_stops_the_engine() -> None:
    async def run() -> tuple[float | None, float]:
        pacer, engine = Pacer(HUNDRED_A_SECOND), Engine("ab", every_s=3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await read(pacer, engine)
        return engine.closed_at, asyncio.get_running_loop().time()

    (closed_at, now), _ = timed(run)
    assert closed_at == now == 1


def test_a_stream_that_is_over_counts_no_more() -> None:
    async def run() -> list[Arrival]:
        pacer = Pacer(HUNDRED_A_SECOND)
        with pytest.raises(EngineFailed):
            await read(pacer, Engine("a", every_s=0, failure=EngineFailed("it broke")))
        stream = pacer.pace(Engine("ab", every_s=3600).generate(), add)
        await anext(stream)
        await stream.aclose()
        return await read(pacer, Engine("abc", every_s=0.010))

    assert [at for at, _ in timed(run)[0]] == [0, 10, 20]


def test_a_pace_of_no_messages_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="max_messages_per_s"):
        PaceConfig(max_messages_per_s=0)
