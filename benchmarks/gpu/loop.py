"""A closed loop over a list of jobs, the same one for the server and for the engine alone, and its steady part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.records import Sample

Job = TypeVar("Job")
Result = TypeVar("Result")
# Seconds since the load began.
Clock = Callable[[], float]


async def closed_loop(
    jobs: Sequence[Job], num_clients: int, send: Callable[[Job, Clock], Awaitable[Result]]
) -> list[Result]:
    """Do every job, `num_clients` at a time, in their order; returns the results in the order of the jobs."""
    results: dict[int, Result] = {}
    waiting = iter(enumerate(jobs))
    origin_s = time.perf_counter()

    def now_s() -> float:
        return time.perf_counter() - origin_s

    async def be_client() -> None:
        for index, job in waiting:
            results[index] = await send(job, now_s)

    async with asyncio.TaskGroup() as clients:
        for _ in range(num_clients):
            clients.create_task(be_client())
    return [results[index] for index in range(len(jobs))]


@dataclass(frozen=True, slots=True)
class SteadyWindow:
    """The part of a closed loop in which every client was busy and none was served first, in seconds since its start.

    It begins when as many requests have ended as there are clients, and ends when the last one begins.
    """

    start_s: float
    end_s: float

    @classmethod
    def of(cls, samples: Sequence[Sample], num_clients: int) -> SteadyWindow:
        """Raises ValueError where there are not more requests than clients."""
        if len(samples) <= num_clients:
            raise ValueError(f"{len(samples)} requests of {num_clients} clients have no steady part")
        ends = sorted(sample.end_s for sample in samples)
        return cls(ends[num_clients - 1], max(sample.start_s for sample in samples))

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    def ended_within(self, samples: Sequence[Sample]) -> list[int]:
        """The indices of those that ended in the window: after its start, and no later than its end."""
        return [index for index, sample in enumerate(samples) if self.start_s < sample.end_s <= self.end_s]

    def started_within(self, samples: Sequence[Sample]) -> list[int]:
        """The indices of those that began in the window, both of its ends included.

        None of the first requests is among them: these were sent all at once, which no client does ever again.
        """
        return [index for index, sample in enumerate(samples) if self.start_s <= sample.start_s <= self.end_s]
