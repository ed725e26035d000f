"""What became of one request: the record that the client makes and the measurements are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ErrorKind = Literal[
    "shed",  # 429: the server refused it at the door
    "deadline",  # 504: the server gave up on it
    "http_3xx",
    "http_4xx",
    "http_5xx",
    "timeout",  # the client gave up on it
    "connection",  # no connection, or it broke before the answer was whole
    "stream",  # an `error` event, or a stream that ended without `done`
    "malformed",  # a 2xx answer that is not what it should be
    "client_limit",  # never sent: the client's own bound on requests in flight was reached
]


@dataclass(frozen=True, slots=True)
class StageTiming:
    """The time of one call of a stage, as the server reports it with its answer; `stage` names its branch, too."""

    stage: str
    total_s: float
    queue_s: float
    batch_wait_s: float
    compute_s: float
    batch_size: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageTiming:
        """Raises KeyError, TypeError or ValueError where `data` is not a timing."""
        return cls(
            stage=f"{data['stage']} {data.get('branch', '')}".rstrip(),
            total_s=float(data["total_s"]),
            queue_s=float(data["queue_s"]),
            batch_wait_s=float(data["batch_wait_s"]),
            compute_s=float(data["compute_s"]),
            batch_size=int(data["batch_size"]),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Its three times count from the start of the load.

    `intended_start_s` is when it should have been sent, and what `latency_s` and `ttft_s` count from: a request that
    had to wait its turn in the client waited nonetheless.
    """

    intended_start_s: float
    start_s: float
    end_s: float
    status: int | None = None
    error_kind: ErrorKind | None = None
    error: str = ""
    ttft_s: float | None = None
    inter_token_s: tuple[float, ...] = ()
    timings: tuple[StageTiming, ...] = ()
    degraded: tuple[str, ...] = ()

    @property
    def latency_s(self) -> float:
        return self.end_s - self.intended_start_s

    @property
    def is_whole(self) -> bool:
        """Answered, with every stage."""
        return self.error_kind is None and not self.degraded

    def to_json(self) -> dict[str, Any]:
        """Return the raw sample of the result file, times rounded to microseconds."""
        return {
            "intended_start_s": round(self.intended_start_s, 6),
            "start_s": round(self.start_s, 6),
            "latency_s": round(self.latency_s, 6),
            "status": self.status,
            "error_kind": self.error_kind,
            "ttft_s": None if self.ttft_s is None else round(self.ttft_s, 6),
            "inter_token_s": [round(gap, 6) for gap in self.inter_token_s],
            "degraded": list(self.degraded),
            "timings": [
                {
                    "stage": timing.stage,
                    "total_s": round(timing.total_s, 6),
                    "queue_s": round(timing.queue_s, 6),
                    "batch_wait_s": round(timing.batch_wait_s, 6),
                    "compute_s": round(timing.compute_s, 6),
                    "batch_size": timing.batch_size,
                }
                for timing in self.timings
            ],
        }


def error_kind_of(status: int) -> ErrorKind | None:
    """Return the kind of error that an HTTP status stands for, None for success."""
    if 200 <= status < 300:
        return None
    if status == 429:
        return "shed"
    if status == 504:
        return "deadline"
    if status >= 500:
        return "http_5xx"
    return "http_4xx" if status >= 400 else "http_3xx"
