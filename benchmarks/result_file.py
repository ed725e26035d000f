"""Where results are kept and how they are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
RESULTS = Path(__file__).resolve().parent / "results"


def default_path(name: str) -> Path:
    """Return a path in `benchmarks/results` that carries the time, to the second, in UTC."""
    return RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all, making its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
