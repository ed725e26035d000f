"""From the rates of a server and of its bottleneck's engine to the efficiency. Pure: no clock, no input, no output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.experiment import ExperimentError
from benchmarks.ratios import Ratio, ratio

# One value for each round, by the number of clients or the batch size that it was measured with.
Rates = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Items a second of the server ÷ those of the engine alone, each at its best: by the median over the rounds.

    `least` and `greatest` of `ratio` are of the single rounds, with the same clients and the same batch size. A best at
    the edge is the least or the greatest setting that was tried, so that one beyond it may be better.
    """

    best_clients: int
    best_clients_at_edge: bool
    best_max_batch_tokens: int
    best_max_batch_tokens_at_edge: bool
    server_items_per_s: float
    engine_items_per_s: float
    ratio: Ratio


def efficiency(requests_per_s: Rates, engine_items_per_s: Rates, items_per_request: float) -> Efficiency:
    """Raises ExperimentError where one of the two did nothing."""
    clients, budget = best(requests_per_s), best(engine_items_per_s)
    server = [items_per_request * rate for rate in requests_per_s[clients]]
    engine = engine_items_per_s[budget]
    compared = ratio(server, engine)
    if compared is None:
        raise ExperimentError("the engine alone answered nothing: there is nothing to compare with")
    return Efficiency(
        best_clients=clients,
        best_clients_at_edge=_is_at_edge(clients, requests_per_s),
        best_max_batch_tokens=budget,
        best_max_batch_tokens_at_edge=_is_at_edge(budget, engine_items_per_s),
        server_items_per_s=median(server),
        engine_items_per_s=median(engine),
        ratio=compared,
    )


def best(rates: Rates) -> int:
    """The key with the greatest median."""
    return max(rates, key=lambda key: median(rates[key]))


def _is_at_edge(setting: int, rates: Rates) -> bool:
    return setting in (min(rates), max(rates))
