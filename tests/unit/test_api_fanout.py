"""Texts of one request cut into messages that travel together."""

from __future__ import annotations

from deployments.contracts import StageTiming
from serve_app.api.fanout import chunks, slowest
from serve_app.api.services import HttpConfig

CONFIG = HttpConfig(chunk_texts=3, chunk_bytes=1024)


def test_messages_hold_all_texts_in_order_within_both_limits() -> None:
    texts = ["a", "b", "c", "d", "é" * 500, "e" * 100, "f" * 5000, "g"]
    cut = list(chunks(texts, CONFIG))
    assert [text for chunk in cut for text in chunk] == texts
    assert [len(chunk) for chunk in cut] == [3, 2, 1, 1, 1]


def test_a_message_is_counted_in_bytes_not_characters() -> None:
    assert [len(chunk) for chunk in chunks(["é" * 300, "é" * 300], CONFIG)] == [1, 1]
    assert [len(chunk) for chunk in chunks(["e" * 300, "e" * 300], CONFIG)] == [2]


def test_calls_made_together_take_as_long_as_the_slowest_and_show_the_largest_batch() -> None:
    timings = [StageTiming(1.0, 2.0, 5), StageTiming(0.5, 4.0, 3), StageTiming(2.0, 1.0, 9)]
    assert slowest(timings) == StageTiming(0.5, 4.0, 9)
