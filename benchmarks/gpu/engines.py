"""`python -m benchmarks.gpu.engines`: tokens a second of raglane's batcher, the library's loop and fixed batches.

Models have real sizes and random weights, texts have SciFact's lengths; no network is needed. All contenders get the
same items, all at once, tokenising included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import add_corpus, count
from benchmarks.command import record
from benchmarks.experiment import ExperimentError
from benchmarks.gpu.batched import EngineSettings
from benchmarks.gpu.engine_benchmark import TARGETS, EngineBenchmark, EngineOptions
from benchmarks.gpu.hardware import TERA, device_name, peak_flops
from benchmarks.gpu.shapes import ENCODER_GROUPS, ENCODERS
from benchmarks.gpu.texts import load_corpus

FIXED_ROWS = (16, 32, 64, 128, 256, 512)
# As in deploy/gpu.yaml; on a CPU the stages' own defaults hold.
GPU_BATCHING = {"max_batch_tokens": 65536, "max_batch_rows": 512, "padding_slack_tokens": 4096}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.gpu.engines",
        arguments,
        console,
        lambda: _measure(options, console),
        # No server is asked.
        url="",
        allow_remote=True,
        out=options.out,
        default_name="gpu-engines",
    )


def _measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure every shape, print, and return the result file's own part."""
    shapes = ENCODER_GROUPS.get(options.shape) or (ENCODERS[options.shape],)
    _refuse_missing_device(options.device)
    peak = _peak_flops(options)
    corpus = load_corpus(options.corpus, options.items, options.items, options.seed)
    chosen = EngineOptions(_settings(options), options.items, options.texts, options.rounds, options.fixed_rows, peak)
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in shapes:
            folder = (options.models or Path(temporary)) / shape.name
            one = EngineBenchmark(shape, folder, corpus, chosen).run()
            console.print(_table(one))
            measured.append(one)
    return {
        "device": device_name(options.device),
        "dtype": options.dtype,
        "peak_tflops": peak / TERA if peak else None,
        "texts": corpus.source,
        "targets": TARGETS,
        "shapes": measured,
    }


def _peak_flops(options: argparse.Namespace) -> float | None:
    if options.peak_tflops:
        return float(options.peak_tflops) * TERA
    return None if options.dtype == "float32" else peak_flops(device_name(options.device))


def _settings(options: argparse.Namespace) -> EngineSettings:
    defaults: dict[str, Any] = GPU_BATCHING if options.device.startswith("cuda") else {}
    given = {name: getattr(options, name) for name in (*GPU_BATCHING, "max_padding_share")}
    chosen = defaults | {name: value for name, value in given.items() if value is not None}
    return EngineSettings(options.device, options.dtype, options.threads, **chosen)


def _refuse_missing_device(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ExperimentError("torch sees no GPU; try --device cpu --shape tiny")


def _table(measured: dict[str, Any]) -> Table:
    ratios = measured["ratios"]
    title = (
        f"{measured['shape']['name']}: {measured['num_items']} items, {measured['num_tokens']} tokens; "
        f"raglane: {ratios['over_library']:.2f} x library, {ratios['over_best_fixed']:.2f} x {measured['best_fixed']}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("median s", "items/s", "tokens/s", "TFLOP/s", "MFU", "deviation"):
        table.add_column(column, justify="right")
    for one in measured["contenders"]:
        table.add_row(
            one["name"],
            f"{one['median_s']:.3f}",
            f"{one['items_per_s']:,.1f}",
            f"{one['tokens_per_s']:,.0f}",
            f"{one['tflops']:.2f}",
            "" if one["mfu"] is None else f"{one['mfu']:.1%}",
            f"{one['max_deviation']:.1e}",
        )
    return table


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.engines", description=__doc__)
    parser.add_argument(
        "--shape", choices=(*ENCODER_GROUPS, *ENCODERS), default="full", help="model, or several (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add_corpus(parser)
    parser.add_argument("--items", type=count, default=4096, help="texts or pairs in a round (default: %(default)s)")
    parser.add_argument(
        "--texts",
        choices=("mixed", "documents", "questions"),
        default="mixed",
        help="what an embedder gets (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=count, default=5, help="rounds that count (default: %(default)s)")
    parser.add_argument(
        "--fixed-rows", type=count, nargs="+", default=FIXED_ROWS, help="fixed batches to try (default: %(default)s)"
    )
    parser.add_argument("--max-batch-tokens", type=count, help="raglane's (default on a GPU: 65536)")
    parser.add_argument("--max-batch-rows", type=count, help="raglane's (default on a GPU: 512)")
    parser.add_argument("--padding-slack-tokens", type=int, help="raglane's (default on a GPU: 4096)")
    parser.add_argument("--max-padding-share", type=float, help="raglane's (default: the stage's)")
    parser.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="of a CPU (default: %(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="the device's peak, where the kit does not know it")
    parser.add_argument("--models", type=Path, help="folder to keep the models in (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/gpu-engines-….json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
