"""The front of house: composes the stages into the lane and serves it over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.app import build_app

__all__ = ["build_app"]


def __getattr__(name: str) -> Any:
    # Importing Ray takes seconds; `raglane ask` needs none of it, so the composition root is imported on first use.
    if name == "build_app":
        from serve_app.app import build_app

        return build_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
