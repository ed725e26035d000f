"""The search for the highest rate that a server sustains: doubling, then bisection. It knows rates, not requests."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment import SaturationLoad

# How far below the start the search goes where not even that is sustained.
MAX_DESCENT = 64.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried: whether it was sustained, and if not, why. `p99_s` is None where nothing succeeded."""

    rate_per_s: float
    passed: bool
    reason: str
    requests_per_s: float
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class Saturation:
    """The result of one search: the highest rate that was sustained, 0 if none was, and what kept it from the next."""

    load: SaturationLoad
    repeat: int
    max_rate_per_s: float
    limit: str
    probes: tuple[Probe, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "load": self.load.model_dump(mode="json"),
            "repeat": self.repeat,
            "max_rate_per_s": self.max_rate_per_s,
            "limit": self.limit,
            "probes": [asdict(probe) for probe in self.probes],
        }


async def search(load: SaturationLoad, repeat: int, try_rate: Callable[[float], Awaitable[Probe]]) -> Saturation:
    """Try one rate after another until the highest sustained one is known to the load's precision.

    At most `max_probes` rates are tried. The rates double from the start until one fails, or halve until one passes,
    and then close in on the border between them by the geometric mean, since the precision is relative.
    """
    probes: list[Probe] = []
    sustained, failed = 0.0, math.inf
    rate: float | None = load.start_rate_per_s
    while rate is not None and len(probes) < load.max_probes:
        probe = await try_rate(rate)
        probes.append(probe)
        if probe.passed:
            sustained = rate
        else:
            failed = rate
        rate = _next_rate(load, sustained, failed)
    return Saturation(load, repeat, sustained, _limit(probes, failed, searched_through=rate is None), tuple(probes))


def _next_rate(load: SaturationLoad, sustained: float, failed: float) -> float | None:
    """Return the rate to try next, None where the border is known well enough."""
    if math.isinf(failed):
        return min(2 * sustained, load.max_rate_per_s) if sustained < load.max_rate_per_s else None
    if sustained == 0.0:
        return failed / 2 if failed > load.start_rate_per_s / MAX_DESCENT else None
    return math.sqrt(sustained * failed) if failed > sustained * (1 + load.precision) else None


def _limit(probes: Sequence[Probe], failed: float, *, searched_through: bool) -> str:
    reasons = {probe.rate_per_s: probe.reason for probe in probes}
    if math.isinf(failed):
        limit = "the highest rate that was tried is sustained"
    else:
        limit = f"{failed:.4g} requests/s: {reasons[failed]}"
    return limit if searched_through else f"{limit} (the search ended at `max_probes`)"
