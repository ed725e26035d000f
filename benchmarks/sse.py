"""Reading server-sent events (WHATWG HTML, section 9.2.6) from bytes as they arrive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name (`message` where the server gave none) and its data, lines joined by newlines."""

    name: str
    data: str


class EventDecoder:
    """Turns chunks, cut anywhere, into the events that are complete.

    Lines end in LF or CRLF. They are split as bytes, since text may hold characters (U+2028, form feed) that
    `str.splitlines` and httpx's `aiter_lines` also break at.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            if event := self._take(line.removesuffix(b"\r").decode("utf-8", "replace")):
                events.append(event)
        return events

    def _take(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
