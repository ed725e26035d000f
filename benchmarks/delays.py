"""The delays of benchmarks.delayed_engines, as the server and the benchmark both read them."""

from __future__ import annotations

import os


def delay_s(name: str) -> float:
    """The delay of one engine in seconds, from RAGLANE_DELAY_<name>; 0 where it is not set."""
    return float(os.environ.get(f"RAGLANE_DELAY_{name}", "0"))
