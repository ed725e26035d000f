"""`python -m benchmarks.baselines.engine_alone`: a stage's engine by itself in ideal batches, which no server can beat.

All items are there at once, tokenised beforehand, and sorted by length over all of them: what is measured is the engine
alone, on every core of the machine. A step of benchmarks.efficiency.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import result_file
from benchmarks.efficiency_plan import StageName
from deployments.batching import BatchEngine, raise_or_return
from deployments.embedder import EmbedderConfig, Text, load_embedding_engine
from deployments.parsing import ParsingConfig, parse_question
from deployments.reranker import Pair, RerankerConfig, load_scoring_engine


@dataclass(frozen=True, slots=True)
class AloneRate:
    """What the engine did in batches of at most so many padded tokens, or of one longer item."""

    max_batch_tokens: int
    items_per_s: float
    num_batches: int
    padding_share: float


class EngineAlone:
    """One engine and its items, each with what the engine reads of it and its length in tokens."""

    def __init__(self, engine: BatchEngine[Any, Any, Any], items: Sequence[Any]) -> None:
        """Raises the StageError of the first item that the engine does not take."""
        self._engine = engine
        prepared = [raise_or_return(one) for one in engine.prepare(items)]
        self._rows = sorted(prepared, key=lambda row: row[1])

    def measure(self, max_batch_tokens: int, at_least_s: float) -> AloneRate:
        """Go through all items once to warm up, then again and again until `at_least_s` seconds have passed."""
        lengths = [length for _, length in self._rows]
        cuts = cut_by_tokens(lengths, max_batch_tokens)
        batches = [[row for row, _ in self._rows[cut]] for cut in cuts]
        self._run(batches)
        num_passes, elapsed_s = 0, 0.0
        started = time.perf_counter()
        while elapsed_s < at_least_s or not num_passes:
            self._run(batches)
            num_passes += 1
            elapsed_s = time.perf_counter() - started
        padded = sum((cut.stop - cut.start) * lengths[cut.stop - 1] for cut in cuts)
        return AloneRate(
            max_batch_tokens=max_batch_tokens,
            items_per_s=num_passes * len(lengths) / elapsed_s,
            num_batches=len(batches),
            padding_share=1.0 - sum(lengths) / padded,
        )

    def _run(self, batches: Sequence[Sequence[Any]]) -> None:
        for batch in batches:
            self._engine.run(batch)


def cut_by_tokens(lengths: Sequence[int], max_batch_tokens: int) -> list[slice]:
    """Cut ascending lengths, in their order, into batches whose rows x longest row stays within the budget.

    An item that is longer than the budget goes alone.
    """
    cuts: list[slice] = []
    start = 0
    for index, length in enumerate(lengths):
        if index > start and (index - start + 1) * length > max_batch_tokens:
            cuts.append(slice(start, index))
            start = index
    if lengths:
        cuts.append(slice(start, len(lengths)))
    return cuts


def load(stage: StageName, profile: Path, records: Sequence[dict[str, str]]) -> EngineAlone:
    """The engine that a Serve config file gives to the stage, with the items of the records.

    Records have a `text`, or a `query` and a candidate's `title` and `text`. They are read as the server reads them.
    """
    document = yaml.safe_load(profile.read_text(encoding="utf-8"))
    args: dict[str, Any] = document["applications"][0].get("args") or {}
    if stage == "embed":
        texts = [Text(record["text"], "passage", truncate=False) for record in records]
        return EngineAlone(load_embedding_engine(EmbedderConfig.model_validate(args.get("embedder", {}))), texts)
    parsing = ParsingConfig.model_validate(args.get("lane", {}).get("parsing", {}))
    pairs = [pair_of(record, parsing) for record in records]
    return EngineAlone(load_scoring_engine(RerankerConfig.model_validate(args.get("reranker", {}))), pairs)


def pair_of(record: dict[str, str], parsing: ParsingConfig) -> Pair:
    """What a cross-encoder behind the lane reads of a query and a candidate."""
    title, text = record["title"], record["text"]
    return parse_question(record["query"], parsing).text, f"{title}\n{text}" if title else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.engine_alone", description=__doc__)
    parser.add_argument("stage", choices=("rerank", "embed"))
    parser.add_argument("--profile", type=Path, required=True, help="the server's Serve config file")
    parser.add_argument("--items", type=Path, required=True, help="JSON list of records")
    parser.add_argument("--max-batch-tokens", type=int, nargs="+", required=True, help="batch sizes to try")
    parser.add_argument("--at-least-s", type=float, default=5.0, help="for each of them (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    alone = load(options.stage, options.profile, json.loads(options.items.read_bytes()))
    rates = [alone.measure(budget, options.at_least_s) for budget in options.max_batch_tokens]
    result_file.write(options.out, {"rates": [asdict(rate) for rate in rates]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
