"""How a command ends: the exit codes, and the one kind of error that a user is meant to read."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What scripts may rely on. 2 is also what the option parser itself exits with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SERVER_STATE = 3
    NOT_READY = 4
    PARTLY_DONE = 5


EXIT_CODES_HELP = (
    "Exit codes: 0 done · 1 failed · 2 wrong usage · 3 the server is not in the needed state (already running, "
    "not running, port busy) · 4 running but not ready · 5 partly done (some documents were rejected)."
)


class Failure(Exception):
    """A command can't go on: `message` says what is wrong, `remedy` what to do about it."""

    def __init__(self, message: str, remedy: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()
