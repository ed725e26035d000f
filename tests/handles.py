"""A deployment object called the way a Ray Serve handle is, in this process: for tests of the adapters without Ray."""

from __future__ import annotations

from deployments.in_process import InProcessHandle as LocalHandle

__all__ = ["LocalHandle"]
