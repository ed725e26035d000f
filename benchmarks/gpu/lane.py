"""`python -m benchmarks.gpu.lane`: the whole lane on one GPU against its generator alone, with the same prompts.

Three models share the GPU: an embedder, a cross-encoder, and a language model in vLLM, in real sizes and with random
weights; no network is needed. The steps are `models` (write them), `lane` (start raglane, ingest, ask), `alone` (the
bare vLLM engine on the very prompts that the lane made) and `report`; each keeps its results in --work for the next.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import add_corpus, add_engine_arguments, counts
from benchmarks.command import record
from benchmarks.experiment import Slo
from benchmarks.gpu.lane_benchmark import STEPS, LaneBenchmark, LaneOptions
from benchmarks.gpu.shapes import DECODERS, LLAMA_8B


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.gpu.lane",
        arguments,
        console,
        lambda: LaneBenchmark(_options(options), console).run(),
        url=f"http://127.0.0.1:{options.port}",
        allow_remote=False,
        out=options.out if "report" in options.steps else options.work / "steps.json",
        default_name="gpu-lane",
        show=lambda result: _print(console, result) if "loads" in result else None,
    )


def _options(options: argparse.Namespace) -> LaneOptions:
    return LaneOptions(
        shape=options.shape,
        device=options.device,
        steps=options.steps,
        work=options.work,
        corpus=options.corpus,
        num_documents=options.documents,
        clients=options.clients,
        requests_per_client=options.requests_per_client,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        rerank_candidates=options.rerank_candidates,
        slo=Slo(request_p99_s=options.slo_request_s, ttft_s=options.slo_ttft_s, itl_s=options.slo_itl_s),
        gpu_memory_gib=options.gpu_memory_gib,
        engine_args=dict(options.engine_arg),
        port=options.port,
        seed=options.seed,
    )


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"the lane / its generator alone, on {result['device']}", title_justify="left")
    for column in ("clients", "lane /s", "alone /s", "ratio", "TTFT p50 ms", "ITL p50 ms", "good /s", "SLO"):
        table.add_column(column, justify="right")
    for load in result["loads"]:
        lane, alone = load["lane"], load["generator_alone"]
        ratio = lane["requests_per_s"] / alone["requests_per_s"] if alone["requests_per_s"] else 0.0
        times = [" / ".join(_p50_ms(each[name]) for each in (lane, alone)) for name in ("ttft", "inter_token")]
        rates = (f"{lane['requests_per_s']:.2f}", f"{alone['requests_per_s']:.2f}", f"{ratio:.2f}")
        goodput = lane["goodput"]
        row = (*rates, *times, f"{goodput['good_per_s']:.2f}", "met" if goodput["met"] else "missed")
        table.add_row(str(load["clients"]), *row)
    console.print(table)
    for load in result["loads"]:
        split = ", ".join(f"{name} {1000 * taken:.1f}" for name, taken in load["lane"]["ttft_by_stage_s"].items())
        console.print(f"{load['clients']} clients, mean TTFT by stage, ms: {split}", highlight=False)
        _warn(console, load)
    summary = result["summary"]
    console.print(
        f"best rate of the lane by that of the generator alone: {summary['ratio']:.3f} (target {summary['target']})",
        highlight=False,
    )


def _warn(console: Console, load: dict[str, Any]) -> None:
    """Say what makes the figures doubtful."""
    if load["same_prompts"] < 1:
        console.print(f"[yellow]only {load['same_prompts']:.1%} of the prompts were the same[/yellow]", highlight=False)
    for name in ("lane", "generator_alone"):
        if missing := load[name]["num_requests"] - load[name]["num_whole"]:
            why = {**load[name]["errors"], **load[name]["degraded"]}
            console.print(f"[yellow]{name}: {missing} requests without a whole answer: {why}[/yellow]", highlight=False)


def _p50_ms(values: dict[str, Any] | None) -> str:
    return "" if values is None else f"{1000 * values['p50_s']:.1f}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.lane", description=__doc__)
    parser.add_argument("--shape", choices=tuple(DECODERS), default=LLAMA_8B.name, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--steps", type=_steps, default=STEPS, help=f"some of {','.join(STEPS)} (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu-lane"), help="what steps leave (default: %(default)s)"
    )
    add_corpus(parser)
    parser.add_argument("--documents", type=int, default=1000, help="documents to ingest (default: %(default)s)")
    parser.add_argument(
        "--clients", type=counts, default=(1, 8, 32, 64), help="of each load, 1,8,32 (default: 1,8,32,64)"
    )
    parser.add_argument("--requests-per-client", type=int, default=8, help="in each load (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="length of an answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 may end all answers alike (default: 1)")
    parser.add_argument("--rerank-candidates", type=int, default=50, help="passages reranked (default: %(default)s)")
    parser.add_argument("--slo-request-s", type=float, default=3.0, help="p99 of requests (default: %(default)s)")
    parser.add_argument("--slo-ttft-s", type=float, default=0.3, help="p99 of first tokens (default: %(default)s)")
    parser.add_argument("--slo-itl-s", type=float, default=0.1, help="p99 of mean token times (default: %(default)s)")
    parser.add_argument("--gpu-memory-gib", type=float, help="of the GPU (default: what torch says)")
    add_engine_arguments(parser, "vLLM's, for the server and the engine alone: enforce_eager=true")
    parser.add_argument("--port", type=int, default=8000, help="of the server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/gpu-lane-….json)")
    return parser.parse_args(arguments)


def _steps(text: str) -> tuple[str, ...]:
    steps = tuple(text.split(","))
    if unknown := set(steps) - set(STEPS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; the steps are {', '.join(STEPS)}")
    return steps


if __name__ == "__main__":
    sys.exit(main())
