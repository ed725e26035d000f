"""Server-sent events from bytes."""

from __future__ import annotations

import pytest

from benchmarks.sse import Event, EventDecoder


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_however_their_bytes_are_cut(size: int) -> None:
    text = (
        ': ping\n\nevent: token\ndata: {"text": "\u00fc\u2028"}\n\n'
        "data: one\r\ndata:two\r\n\r\nevent: done\ndata: {}\n\ndata: cut"
    )
    encoded = text.encode()
    decoder = EventDecoder()
    events = [event for at in range(0, len(encoded), size) for event in decoder.feed(encoded[at : at + size])]
    assert events == [Event("token", '{"text": "\u00fc\u2028"}'), Event("message", "one\ntwo"), Event("done", "{}")]
