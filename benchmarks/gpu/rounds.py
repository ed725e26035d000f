"""Contenders measured in turns: the same work for each, in rounds, so that a drift of the machine meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timed:
    """The seconds that a contender took in each round."""

    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    num_rounds: int,
    synchronise: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """Time every contender, which is warm already, once a round; each round begins with another one.

    `synchronise` waits for the device, before and after each of them.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(num_rounds):
        for name in _rotated(list(contenders), number):
            synchronise()
            started = clock()
            contenders[name]()
            synchronise()
            times[name].append(clock() - started)
    return {name: Timed(tuple(taken)) for name, taken in times.items()}


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]
