"""Many texts of one request, sent to a stage in several messages at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from deployments.contracts import StageTiming
from serve_app.api.services import HttpConfig


def chunks(texts: Sequence[str], config: HttpConfig) -> Iterator[tuple[str, ...]]:
    """The texts in order, cut where a message would hold too many of them or grow too large."""
    chunk: list[str] = []
    num_bytes = 0
    for text in texts:
        size = len(text.encode())
        if chunk and (len(chunk) == config.chunk_texts or num_bytes + size > config.chunk_bytes):
            yield tuple(chunk)
            chunk, num_bytes = [], 0
        chunk.append(text)
        num_bytes += size
    if chunk:
        yield tuple(chunk)


def slowest(timings: Sequence[StageTiming]) -> StageTiming:
    """The timing of calls made together: that of the slowest, with the largest batch of any."""
    longest = max(timings, key=lambda timing: timing.batch_wait_s + timing.compute_s)
    return replace(longest, batch_size=max(timing.batch_size for timing in timings))
