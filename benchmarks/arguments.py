"""Command-line arguments that several benchmarks take, and their types, which raise ArgumentTypeError for nonsense."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml


def count(text: str) -> int:
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Such numbers, separated by commas."""
    return tuple(count(part) for part in text.split(","))


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """`--corpus`: where the texts come from."""
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path("data/scifact/corpus.jsonl"),
        help="BEIR corpus with queries.jsonl beside it; made-up texts where there is none (default: %(default)s)",
    )


def add_engine_arguments(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--engine-arg NAME=VALUE`, any number of times, the value read as YAML: true, 16, a text."""
    parser.add_argument(
        "--engine-arg", type=_engine_argument, action="append", default=[], metavar="NAME=VALUE", help=meaning
    )


def _engine_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, yaml.safe_load(value)
