"""`python -m benchmarks.vllm_stream`: raglane's streamed generation against the bare vLLM engine, on the CPU.

Both run the same tiny model with the same arguments and threads and write the same number of tokens for the same
prompts, in processes of their own that take turns (A B B A). One is the generate stage on Ray Serve, called by handle
as raglane's ingress calls it; the other is vLLM's AsyncLLM, called in its own process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import add_corpus, add_engine_arguments, count, counts
from benchmarks.command import end_as_interrupted, record
from benchmarks.streaming.comparison import compare, take_turns, targets
from benchmarks.streaming.contenders import HOST, contenders, serve_document
from benchmarks.streaming.inputs import StreamOptions, make_inputs

# Name, key in the result, factor to what is shown.
SHOWN = (
    ("tokens/s", "tokens_per_s", 1.0),
    ("TTFT p50 ms", "ttft_p50_s", 1000.0),
    ("TTFT p99 ms", "ttft_p99_s", 1000.0),
    ("ITL mean ms", "itl_mean_s", 1000.0),
    ("ITL p50 ms", "itl_p50_s", 1000.0),
    ("ITL p99 ms", "itl_p99_s", 1000.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.vllm_stream",
        arguments,
        console,
        lambda: _measure(options, console),
        url=f"http://{HOST}:{options.port}",
        allow_remote=False,
        out=options.out,
        default_name="vllm-stream",
        show=lambda result: print_result(console, result),
    )


def _measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure and return the result file's own part. The work folder stays where a turn fails, for its logs."""
    asked = _options(options)
    work = Path(tempfile.mkdtemp(prefix="vllm-stream-"))
    console.print(f"model and logs are in {work}", style="dim", markup=False, highlight=False)
    inputs = make_inputs(asked, work / "model")
    sides = contenders(inputs, work, options.port, options.turn_timeout_s)
    turns = take_turns(sides, inputs.plan, options.rounds, lambda text: console.print(text, style="dim"))
    loads = compare(turns, inputs.plan)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "plan": inputs.plan.model_dump(mode="json"),
        "texts": inputs.texts,
        "serve_config": serve_document(inputs.plan, options.port),
        "rounds": options.rounds,
        "loads": loads,
        "targets": [target.to_json() for target in targets(loads)],
    }


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print a table of all loads, what was hoped for, and what makes the figures doubtful."""
    for load in result["loads"]:
        console.print(_table(load))
    for target in result["targets"]:
        style, verdict = ("green", "met") if target["met"] else ("red", "missed")
        text = f"{target['clients']} clients, {target['what']}: {target['value']:.4g} ({target['kind']}"
        console.print(f"{text} {target['bound']:g}: {verdict})", style=style, highlight=False)
    for load in result["loads"]:
        if load["same_prompts"] < 1:
            share = f"{load['clients']} clients: only {load['same_prompts']:.1%} of the prompts were as long"
            console.print(share, style="yellow", highlight=False)


def _table(load: Mapping[str, Any]) -> Table:
    first, other = load["systems"]
    tokens = load["figures"][other][0]["mean_prompt_tokens"]
    title = f"{load['clients']} clients, {load['num_requests']} prompts of {tokens:.0f} tokens; medians of the rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in (first, other, f"{first} ÷ {other} (least … greatest)"):
        table.add_column(column, justify="right")
    for label, measure, factor in SHOWN:
        medians = (load["systems"][name][measure]["median"] for name in (first, other))
        table.add_row(label, *(_number(value, factor) for value in medians), _ratio(load["first_to_other"][measure]))
    return table


def _number(value: float | None, factor: float) -> str:
    return "–" if value is None else f"{factor * value:.2f}"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['of_medians']:.3f} ({ratio['least']:.3f} … {ratio['greatest']:.3f})"


def _options(options: argparse.Namespace) -> StreamOptions:
    return StreamOptions(
        clients=options.clients,
        requests_per_client=options.requests_per_client,
        min_requests=options.min_requests,
        max_tokens=options.max_tokens,
        num_sources=options.sources,
        source_words=options.source_words,
        engine_args=dict(options.engine_arg),
        corpus=options.corpus,
        seed=options.seed,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_stream", description=__doc__)
    parser.add_argument("--clients", type=counts, default=(1, 8, 32), help="of each load (default: 1,8,32)")
    parser.add_argument("--rounds", type=count, default=4, help="turns of each side (default: %(default)s)")
    parser.add_argument("--requests-per-client", type=count, default=8, help="in each load (default: %(default)s)")
    parser.add_argument("--min-requests", type=count, default=64, help="of a load (default: %(default)s)")
    parser.add_argument("--max-tokens", type=count, default=64, help="length of each answer (default: %(default)s)")
    parser.add_argument("--sources", type=count, default=3, help="passages in a prompt (default: %(default)s)")
    parser.add_argument("--source-words", type=count, default=60, help="of a passage (default: %(default)s)")
    add_corpus(parser)
    add_engine_arguments(parser, "vLLM's, for both sides: max_num_seqs=16")
    parser.add_argument("--port", type=int, default=8000, help="of the server (default: %(default)s)")
    parser.add_argument("--turn-timeout-s", type=float, default=600.0, metavar="S", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/vllm-stream-….json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    # A benchmark that is told to end must not leave its engines behind.
    end_as_interrupted()
    sys.exit(main())
