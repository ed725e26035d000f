"""Both sides in turn, round after round, and from their answers to how they compare. The figures are pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal

from benchmarks.experiment import ExperimentError, Slo
from benchmarks.gpu.exchange import Exchange
from benchmarks.gpu.lane_analysis import begun_steadily, share_of_same_prompts, summarise
from benchmarks.gpu.lane_plan import GenerationPlan, PlannedLoad
from benchmarks.gpu.loop import SteadyWindow
from benchmarks.ratios import median_of, ratio
from benchmarks.streaming.contenders import Contender, Turn

# Where the figures of a load have each measure; times are in seconds.
MEASURES: Mapping[str, tuple[str, ...]] = {
    "tokens_per_s": ("tokens_per_s",),
    "ttft_p50_s": ("ttft", "p50_s"),
    "ttft_p99_s": ("ttft", "p99_s"),
    "itl_mean_s": ("inter_token", "mean_s"),
    "itl_p50_s": ("inter_token", "p50_s"),
    "itl_p99_s": ("inter_token", "p99_s"),
}

MIN_TOKENS_RATIO = 0.95
MAX_TTFT_ADDED_S = 0.005
MAX_TTFT_RATIO = 1.1


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that was hoped for, of one load: `value` is to be at least or at most the `bound`, as `kind` says."""

    what: str
    clients: int
    kind: Literal["at least", "at most"]
    bound: float
    value: float

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.kind == "at least" else self.value <= self.bound

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def take_turns(
    contenders: Mapping[str, Contender],
    plan: GenerationPlan,
    num_rounds: int,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Turn]]:
    """Every contender once a round, every other round in the opposite order (A B B A); the turns of each, in order.

    Raises ExperimentError as soon as one has not written what it was asked for.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(num_rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            note(f"round {number + 1} of {num_rounds}: {name}")
            turn = contenders[name]()
            _check(name, turn, plan)
            turns[name].append(turn)
    return turns


def _check(name: str, turn: Turn, plan: GenerationPlan) -> None:
    """Raise where an answer failed or is too short: less work would look like speed."""
    for load, exchanges in zip(plan.loads, turn, strict=True):
        for exchange in exchanges:
            if exchange.sample.error_kind is not None:
                raise ExperimentError(f"{name}, {load.clients} clients: a request failed: {exchange.sample.error}")
            if exchange.completion_tokens != plan.max_tokens:
                raise ExperimentError(
                    f"{name}, {load.clients} clients: an answer has {exchange.completion_tokens} tokens, "
                    f"{plan.max_tokens} were asked for"
                )


def compare(turns: Mapping[str, Sequence[Turn]], plan: GenerationPlan) -> list[dict[str, Any]]:
    """For each load but the warm-up: both sides' measures, the median and every round's, and the first by the other.

    `turns` holds two contenders. `first_to_other` has ratios, `ttft_p50_added_s` the difference of the medians in
    seconds. `same_prompts` is the share of requests whose prompt both sides count as equally long.
    """
    return [
        _compared(load, {name: [turn[index] for turn in own] for name, own in turns.items()})
        for index, load in enumerate(plan.loads)
        if not load.is_warmup
    ]


def _compared(load: PlannedLoad, runs: Mapping[str, Sequence[Sequence[Exchange]]]) -> dict[str, Any]:
    figures = {name: [_figures(run, load.clients) for run in own] for name, own in runs.items()}
    values = {
        name: {measure: [_at(one, path) for one in own] for measure, path in MEASURES.items()}
        for name, own in figures.items()
    }
    first, other = values.values()
    medians = [median_of(side["ttft_p50_s"]) for side in (first, other)]
    ratios = {measure: ratio(first[measure], other[measure]) for measure in MEASURES}
    return {
        "clients": load.clients,
        "num_requests": load.num_requests,
        "same_prompts": share_of_same_prompts(*(own[0] for own in runs.values())),
        "systems": {
            name: {measure: {"median": median_of(rounds), "rounds": rounds} for measure, rounds in side.items()}
            for name, side in values.items()
        },
        "first_to_other": {name: None if one is None else asdict(one) for name, one in ratios.items()},
        "ttft_p50_added_s": None if medians[0] is None or medians[1] is None else medians[0] - medians[1],
        "figures": figures,
    }


def targets(loads: Sequence[Mapping[str, Any]]) -> list[Target]:
    """What was hoped for of the loads that were measured, as `compare` returns them."""
    found = []
    for load in loads:
        clients, ratios, added_s = load["clients"], load["first_to_other"], load["ttft_p50_added_s"]
        if ratios["tokens_per_s"] is not None:
            tokens = ratios["tokens_per_s"]["of_medians"]
            found.append(Target("tokens/s, ratio", clients, "at least", MIN_TOKENS_RATIO, tokens))
        if clients == 1 and added_s is not None:
            found.append(Target("TTFT p50, seconds added", clients, "at most", MAX_TTFT_ADDED_S, added_s))
        if clients == 32 and ratios["ttft_p50_s"] is not None:
            ttft = ratios["ttft_p50_s"]["of_medians"]
            found.append(Target("TTFT p50, ratio", clients, "at most", MAX_TTFT_RATIO, ttft))
    return found


def _figures(exchanges: Sequence[Exchange], clients: int) -> dict[str, Any]:
    """What `summarise` says, without goodput: nothing is promised here."""
    summary = summarise(exchanges, clients, Slo())
    steady = begun_steadily(exchanges, clients)
    return {
        **{name: value for name, value in summary.items() if name != "goodput"},
        "tokens_per_s": tokens_per_s(exchanges, SteadyWindow.of([each.sample for each in exchanges], clients)),
        "mean_pieces": sum(len(_pieces_s(each)) for each in steady) / len(steady),
    }


def tokens_per_s(exchanges: Sequence[Exchange], window: SteadyWindow) -> float:
    """The rate at which tokens came within the window, whenever their answers began or ended; 0 if it is empty.

    Answers of one length come in waves, and whole answers would be counted in lumps. Each piece of an answer stands
    for an equal share of its tokens.
    """
    num_tokens = 0.0
    for exchange in exchanges:
        pieces_s = _pieces_s(exchange)
        within = sum(window.start_s < piece_s <= window.end_s for piece_s in pieces_s)
        num_tokens += exchange.completion_tokens * within / max(1, len(pieces_s))
    return num_tokens / window.length_s if window.length_s > 0 else 0.0


def _pieces_s(exchange: Exchange) -> list[float]:
    """When the pieces of an answer's text came, in seconds since the load began."""
    sample = exchange.sample
    if sample.ttft_s is None:
        return []
    return list(accumulate(sample.inter_token_s, initial=sample.start_s + sample.ttft_s))


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = figures
    for name in path:
        value = None if value is None else value[name]
    return None if value is None else float(value)
