"""What a request gets when it does not say, and the most that it may ask for."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.errors import InvalidInput, NotFound, TooLarge
from serve_app.api.services import HttpConfig
from serve_app.lane_config import LaneConfig
from serve_app.trace import Deadline


def deadline_of(timeout_s: float | None, config: LaneConfig, default_s: float | None = None) -> Deadline:
    """The request's deadline; raises InvalidInput for one that is further away than allowed."""
    if timeout_s is not None and timeout_s > config.max_timeout_s:
        raise InvalidInput(f"timeout_s is {timeout_s:g}; ask for at most {config.max_timeout_s:g}")
    return Deadline.after(timeout_s or default_s or config.default_timeout_s)


def results_wanted(k: int | None, config: LaneConfig) -> int:
    """The request's k; raises InvalidInput for one that is larger than allowed."""
    if k is not None and k > config.max_k:
        raise InvalidInput(f"k is {k}; ask for at most {config.max_k}")
    return k or min(config.default_k, config.max_k)


def check_texts(texts: Sequence[str], field: str, config: HttpConfig) -> None:
    """Refuse too many texts (TooLarge), and empty or huge ones (InvalidInput), by the name of the request's field."""
    if not texts:
        raise InvalidInput(f"{field} is empty; send at least one text")
    if len(texts) > config.max_inputs:
        raise TooLarge(f"{field} has {len(texts)} texts; send at most {config.max_inputs} at a time")
    for position, text in enumerate(texts):
        if not text.strip():
            raise InvalidInput(f"{field}[{position}] is empty; send some text")
        if len(text) * 4 > config.max_text_bytes and len(text.encode()) > config.max_text_bytes:
            raise InvalidInput(f"{field}[{position}] has more than {config.max_text_bytes} bytes; shorten it")


def check_model(asked: str | None, served: str) -> str:
    """The name of the served model; it may be asked for by its last part alone, or not at all. Raises NotFound."""
    if asked is None or asked in (served, served.rsplit("/", 1)[-1]):
        return served
    raise NotFound(f"there is no model {asked!r} here; use {served!r}")
