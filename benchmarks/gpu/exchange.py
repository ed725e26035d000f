"""One answered request of the lane, or of the generator alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from benchmarks.records import ErrorKind, Sample


def streamed(
    start_s: float, pieces_s: Sequence[float], end_s: float, error_kind: ErrorKind | None = None, error: str = ""
) -> Sample:
    """The sample of an answer that came in pieces of text, at these times since the load's start."""
    return Sample(
        intended_start_s=start_s,
        start_s=start_s,
        end_s=end_s,
        error_kind=error_kind,
        error=error,
        ttft_s=pieces_s[0] - start_s if pieces_s else None,
        inter_token_s=tuple(later - earlier for earlier, later in pairwise(pieces_s)),
    )


@dataclass(frozen=True, slots=True)
class Exchange:
    """`rows` are the timings as the server reports them, `sources` those of the `sources` event: only a lane has any.

    Tokens are counted with the generator's tokenizer.
    """

    sample: Sample
    prompt_tokens: int = 0
    completion_tokens: int = 0
    question: str = ""
    rows: Sequence[dict[str, Any]] = ()
    sources: Sequence[dict[str, Any]] = ()

    @property
    def is_whole(self) -> bool:
        """Answered, with every stage."""
        return self.sample.is_whole

    def to_json(self) -> dict[str, Any]:
        """Everything but the sources' texts; `from_json` reads it."""
        sample = {name: value for name, value in asdict(self.sample).items() if name != "timings"}
        return {
            "sample": sample,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "question": self.question,
            "rows": list(self.rows),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Exchange:
        """Raises KeyError or TypeError where `data` is not an exchange."""
        known = {field.name for field in fields(Sample)}
        sample = {name: value for name, value in data["sample"].items() if name in known}
        for name in ("inter_token_s", "degraded"):
            sample[name] = tuple(sample[name])
        return cls(**{**data, "sample": Sample(**sample)})
