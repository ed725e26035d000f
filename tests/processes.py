"""Processes that a test started, found by what their command lines say."""

from __future__ import annotations

from contextlib import suppress

import psutil

VLLM_ENGINE = "VLLM::EngineCore"


def descendants(ancestor: psutil.Process, name: str) -> list[psutil.Process]:
    """Those of a process's descendants whose command line has the name in it."""
    found = []
    for process in ancestor.children(recursive=True):
        # One that has ended since has no command line any more.
        with suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
