"""Types of command-line arguments that several benchmarks take; each raises ArgumentTypeError for nonsense."""

from __future__ import annotations

import argparse
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


def engine_argument(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value read as YAML: true, 16, a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, yaml.safe_load(value)
