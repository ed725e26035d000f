"""The error tree: everything a stage may say went wrong. Status codes are the HTTP room's business.

Every error takes one positional message, so that it survives pickling between replicas.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Reason = Literal["failed", "refused", "overloaded", "expired", "unavailable"]


class RaglaneError(Exception):
    """Root of every error that raglane raises on purpose; `str(error)` is safe to show to a client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(RaglaneError):
    """The configuration can't be used; raised while starting, never while serving."""


class StageError(RaglaneError):
    """A request failed inside the lane. `reason` is why, in the one word that metrics have for it."""

    reason: ClassVar[Reason] = "failed"


class InvalidInput(StageError):
    """The request can't be served as it is; the message says what to change."""

    reason = "refused"


class InputTooLong(InvalidInput):
    """A text is longer than the model takes; the message gives both lengths in tokens."""


class TooLarge(StageError):
    """The request carries more items or bytes than one request may."""

    reason = "refused"


class BodyTimeout(RaglaneError):
    """The request's body did not arrive in time."""


class NotFound(StageError):
    """The named collection, document or model does not exist."""

    reason = "refused"


class AlreadyExists(StageError):
    """The thing to be created is there already."""

    reason = "refused"


class IndexMismatch(StageError):
    """The collection was indexed with another embedding model; its vectors can't be compared with ours."""

    reason = "refused"


class Overloaded(StageError):
    """A queue is full. Trying again after `retry_after_s` seconds is reasonable; None where the queue does not know."""

    reason = "overloaded"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(StageError):
    """The request's deadline passed before its work was done; what was left of it was dropped."""

    reason = "expired"


class StageUnavailable(StageError):
    """The stage has no replica that can work right now (starting, restarting or dead)."""

    reason = "unavailable"


class EngineFailed(StageError):
    """The engine could not process this one item; its neighbours are not affected."""


class EngineDead(StageUnavailable):
    """The engine is gone for good in this process (lost device, killed worker); the replica must be replaced."""
