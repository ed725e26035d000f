"""When requests are sent: seeded schedules, and the closed and open loops that follow them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.client import RequestClient
from benchmarks.experiment import ClosedLoad, OpenLoad, ReplayLoad, SingleLoad
from benchmarks.records import Sample

# A user whose connection is refused tries again at once, and would spin through `max_requests` in seconds.
CONNECTION_RETRY_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a load may go: no request starts after `horizon_s`, nor more than `max_requests` in all."""

    horizon_s: float
    max_requests: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is to be sent `at_s` seconds into the load; without a `body` it takes the next of the queries."""

    at_s: float
    body: bytes | None = None


def arrival_times(load: OpenLoad, limits: Limits, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the intended starts in seconds, ascending, all before the horizon: at most `max_requests` of them.

    Poisson arrivals have exponential gaps of mean 1 / rate; constant ones are evenly spaced from 0.
    """
    if load.arrivals == "constant":
        count = min(math.ceil(limits.horizon_s * load.rate_per_s), limits.max_requests)
        times = np.arange(count, dtype=np.float64) / load.rate_per_s
        return times[times < limits.horizon_s]
    expected = limits.horizon_s * load.rate_per_s
    # Ten standard deviations above the mean of a Poisson count: enough gaps to reach the horizon, always.
    count = min(math.ceil(expected + 10 * math.sqrt(expected) + 10), limits.max_requests)
    times = np.cumsum(rng.exponential(1.0 / load.rate_per_s, size=count))
    return times[times < limits.horizon_s]


def shuffled_cycle(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield 0 … count - 1 without end, every pass in a new order."""
    while True:
        yield from rng.permutation(count).tolist()


class LoadGenerator:
    """Runs one load against one server and keeps a sample of every request, those of the warm-up included.

    The same seed gives the same arrivals and the same sequence of queries. `client_cpu_share` is the part of one core
    that this process took from the load's start to the horizon or `stop`, or to the last answer if that came before.
    """

    def __init__(self, client: RequestClient, bodies: Sequence[bytes], limits: Limits, seed: Sequence[int]) -> None:
        arrivals_seed, order_seed = np.random.SeedSequence(list(seed)).spawn(2)
        self._client = client
        self._bodies = bodies
        self._limits = limits
        self._arrivals_rng = np.random.default_rng(arrivals_seed)
        self._order = shuffled_cycle(len(bodies), np.random.default_rng(order_seed))
        self._origin_s = 0.0
        self._num_started = 0
        self._num_in_flight = 0
        self._started_cpu_s = 0.0
        self._is_cpu_measured = False
        self.samples: list[Sample] = []
        self.stopped_at_s: float | None = None
        self.client_cpu_share = 0.0

    async def run(self, load: SingleLoad, recorded: Sequence[Arrival] = ()) -> list[Sample]:
        """Return the samples in the order in which the requests ended, once all of them have.

        `recorded` are the arrivals of a replay, ascending, its speed applied already; no other load has any.
        """
        self._origin_s, self._started_cpu_s = time.perf_counter(), time.process_time()
        horizon = asyncio.get_running_loop().call_later(self._limits.horizon_s, self._measure_cpu)
        try:
            await self._send(load, recorded)
        finally:
            horizon.cancel()
            self._measure_cpu()
        return self.samples

    async def _send(self, load: SingleLoad, recorded: Sequence[Arrival]) -> None:
        match load:
            case ClosedLoad():
                async with asyncio.TaskGroup() as users:
                    for _ in range(load.clients):
                        users.create_task(self._be_user())
            case OpenLoad():
                times = arrival_times(load, self._limits, self._arrivals_rng).tolist()
                await self._follow(map(Arrival, times), load.max_in_flight)
            case ReplayLoad():
                within = [arrival for arrival in recorded if arrival.at_s < self._limits.horizon_s]
                await self._follow(within[: self._limits.max_requests], load.max_in_flight)

    def stop(self) -> None:
        """Start no request any more; `run` returns when those in flight have ended."""
        if self.stopped_at_s is None:
            self.stopped_at_s = self._now_s()
            self._measure_cpu()

    def _measure_cpu(self) -> None:
        # Only once: the wait for the last answers takes hardly any, and would make a busy client look idle.
        if not self._is_cpu_measured:
            self._is_cpu_measured = True
            self.client_cpu_share = (time.process_time() - self._started_cpu_s) / self._now_s()

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return self._now_s()

    def _now_s(self) -> float:
        return time.perf_counter() - self._origin_s

    async def _be_user(self) -> None:
        while self._may_start() and (now_s := self._now_s()) < self._limits.horizon_s:
            self._start()
            sample = await self._finish(Arrival(now_s))
            if sample.error_kind == "connection":
                await asyncio.sleep(CONNECTION_RETRY_PAUSE_S)

    def _may_start(self) -> bool:
        return self._num_started < self._limits.max_requests and self.stopped_at_s is None

    async def _follow(self, arrivals: Iterable[Arrival], max_in_flight: int) -> None:
        """Send each request at its time or, if the client is late, at once; never wait for an answer in between."""
        async with asyncio.TaskGroup() as requests:
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, arrival.at_s - self._now_s()))
                if self.stopped_at_s is not None:
                    break
                if self._num_in_flight >= max_in_flight:
                    self._refuse(arrival.at_s)
                else:
                    self._start()
                    requests.create_task(self._finish(arrival))

    def _start(self) -> None:
        self._num_started += 1
        self._num_in_flight += 1

    async def _finish(self, arrival: Arrival) -> Sample:
        body = self._bodies[next(self._order)] if arrival.body is None else arrival.body
        try:
            sample = await self._client.send(body, arrival.at_s, self._now_s)
        finally:
            self._num_in_flight -= 1
        self.samples.append(sample)
        return sample

    def _refuse(self, intended_start_s: float) -> None:
        now_s = self._now_s()
        message = "more requests in flight than `max_in_flight` allows"
        sample = Sample(intended_start_s, now_s, now_s, error_kind="client_limit", error=message)
        self.samples.append(sample)
