"""The map bounded by memory: what stays, what goes, and what it says it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.byte_lru import ENTRY_BYTES, ByteLru


def lru_for(entries: int, num_bytes: int = 10) -> ByteLru[str, str]:
    """With room for this many entries of `num_bytes`."""
    return ByteLru(entries * (num_bytes + ENTRY_BYTES))


def fill(lru: ByteLru[str, str], keys: str, num_bytes: int = 10) -> None:
    for key in keys:
        lru.put(key, key.upper(), num_bytes)


def held(lru: ByteLru[str, str], keys: str) -> str:
    return "".join(key for key in keys if lru.peek(key) is not None)


def test_what_was_put_is_found() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    assert (lru.get("a"), lru.get("b"), lru.get("c")) == ("A", "B", None)
    assert len(lru) == 2


def test_the_entry_that_was_not_used_for_longest_makes_room() -> None:
    lru = lru_for(3)
    fill(lru, "abc")
    lru.get("a")
    fill(lru, "d")
    assert held(lru, "abcd") == "acd"
    assert lru.num_evictions == 1


def test_peeking_is_not_using() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    assert lru.peek("a") == "A"
    fill(lru, "c")
    assert held(lru, "abc") == "bc"


def test_putting_again_replaces_the_value_and_its_size_and_is_a_use() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    lru.put("a", "new", 5)
    assert lru.num_bytes == 15 + 2 * ENTRY_BYTES
    assert lru.num_evictions == 0
    fill(lru, "c")
    assert held(lru, "abc") == "ac"
    assert lru.get("a") == "new"


def test_a_large_value_takes_the_room_of_several_small_ones() -> None:
    lru = lru_for(4)
    fill(lru, "abcd")
    lru.put("e", "E", 10 + ENTRY_BYTES)
    assert held(lru, "abcde") == "cde"
    assert lru.num_evictions == 2


@pytest.mark.parametrize(("spare", "kept"), [(0, "a"), (1, "")])
def test_a_value_may_be_as_large_as_the_bound_but_no_larger(spare: int, kept: str) -> None:
    lru: ByteLru[str, str] = ByteLru(100 + ENTRY_BYTES)
    lru.put("a", "A", 100 + spare)
    assert held(lru, "a") == kept


def test_a_value_that_is_too_large_leaves_the_others_but_not_what_its_key_had() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    lru.put("b", "huge", 10_000)
    assert held(lru, "ab") == "a"
    assert lru.num_bytes == 10 + ENTRY_BYTES
    assert lru.num_evictions == 0


def test_a_bound_of_zero_keeps_nothing() -> None:
    lru: ByteLru[str, str] = ByteLru(0)
    fill(lru, "ab", num_bytes=0)
    assert (held(lru, "ab"), len(lru), lru.num_bytes) == ("", 0, 0)


def test_dropping_frees_the_bytes_and_an_unknown_key_does_no_harm() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    lru.drop("a")
    lru.drop("x")
    assert held(lru, "ab") == "b"
    assert lru.num_bytes == 10 + ENTRY_BYTES


def test_clearing_forgets_everything_and_evicts_nothing() -> None:
    lru = lru_for(2)
    fill(lru, "ab")
    lru.clear()
    assert (held(lru, "ab"), len(lru), lru.num_bytes, lru.num_evictions) == ("", 0, 0, 0)
    fill(lru, "cd")
    assert held(lru, "cd") == "cd"


steps = st.lists(st.tuples(st.sampled_from(["get", "put", "drop"]), st.sampled_from("abcdef"), st.integers(0, 900)))


@given(st.integers(0, 3000), steps)
def test_it_holds_what_a_list_ordered_by_use_would_hold(max_bytes: int, steps: list[tuple[str, str, int]]) -> None:
    lru: ByteLru[str, int] = ByteLru(max_bytes)
    # The least recently used first.
    model: list[tuple[str, int]] = []
    for step, key, size in steps:
        had = [value for name, value in model if name == key]
        if step == "get":
            assert lru.get(key) == (had[0] if had else None)
            model = [entry for entry in model if entry[0] != key] + [(key, value) for value in had]
            continue
        model = [entry for entry in model if entry[0] != key]
        if step == "drop":
            lru.drop(key)
            continue
        lru.put(key, size, size)
        if size + ENTRY_BYTES <= max_bytes:
            model.append((key, size))
        while sum(value + ENTRY_BYTES for _, value in model) > max_bytes:
            model.pop(0)
    assert {key: lru.peek(key) for key in "abcdef" if lru.peek(key) is not None} == dict(model)
    assert lru.num_bytes == sum(value + ENTRY_BYTES for _, value in model) <= max_bytes
    assert len(lru) == len(model)
