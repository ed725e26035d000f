"""Kept answers: found for the same key and version alone, and never older than what is kept already."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidInput
from serve_app.answer_cache import AnswerCache, AnswerCacheConfig, canonical

KEY = ("docs", "What makes iron rust?", "null", 10)


def cache(**config: Any) -> AnswerCache[str]:
    return AnswerCache(AnswerCacheConfig(**config))


def cache_with(version: int, answer: str = "water") -> AnswerCache[str]:
    filled = cache()
    filled.put(KEY, version, answer, 100)
    return filled


def test_an_answer_is_found_again_at_its_version() -> None:
    answers = cache_with(3)
    assert answers.known(KEY)
    assert answers.get(KEY, 3) == "water"


@pytest.mark.parametrize(
    "other",
    [("notes", *KEY[1:]), (KEY[0], "what makes iron rust?", *KEY[2:]), (*KEY[:2], '{"a":1}', 10), (*KEY[:3], 5)],
)
def test_another_collection_question_filter_or_option_is_another_key(other: tuple[Any, ...]) -> None:
    answers = cache_with(3)
    assert not answers.known(other)
    assert answers.get(other, 3) is None


def test_an_answer_from_before_a_change_is_dropped() -> None:
    answers = cache_with(3)
    assert answers.get(KEY, 4) is None
    assert not answers.known(KEY)
    assert (answers.stats().stale, answers.stats().num_entries, answers.stats().num_bytes) == (1, 0, 0)


def test_an_answer_of_a_newer_version_than_the_one_asked_for_is_not_given_but_kept() -> None:
    answers = cache_with(3)
    assert answers.get(KEY, 2) is None
    assert answers.get(KEY, 3) == "water"
    assert answers.stats().stale == 0


@pytest.mark.parametrize(("version", "kept"), [(2, "water"), (3, "air"), (4, "air")])
def test_an_answer_replaces_those_of_its_own_and_of_older_versions(version: int, kept: str) -> None:
    answers = cache_with(3)
    answers.put(KEY, version, "air", 100)
    assert answers.get(KEY, max(version, 3)) == kept


def test_knowing_a_key_is_not_using_its_answer() -> None:
    answers = cache(max_bytes=1000)
    for key in "abc":
        answers.put(key, 1, key, 200)
        answers.known("a")
    assert [answers.get(key, 1) for key in "abc"] == [None, "b", "c"]
    assert answers.stats().evictions == 1


def test_the_answer_that_was_not_given_for_longest_makes_room() -> None:
    answers = cache(max_bytes=1000)
    for key in "abc":
        answers.put(key, 1, key, 200)
        answers.get("a", 1)
    assert [answers.get(key, 1) for key in "abc"] == ["a", None, "c"]


@pytest.mark.parametrize("config", [{"enabled": False}, {"max_bytes": 0}])
def test_switched_off_it_keeps_nothing(config: Mapping[str, Any]) -> None:
    answers = cache(**config)
    answers.put(KEY, 1, "water", 0)
    assert not answers.known(KEY)
    assert answers.get(KEY, 1) is None


def test_every_lookup_is_a_hit_or_a_miss_and_knowing_an_answer_is_neither() -> None:
    answers = cache()
    answers.known(KEY)
    answers.put(KEY, 1, "water", 100)
    answers.known(KEY)
    answers.get(KEY, 1)
    answers.get(KEY, 2)
    stats = answers.stats()
    assert (stats.hits, stats.misses) == (1, 2)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def exact(value: Any) -> Any:
    """The value with the type of everything in it, so that == tells 1 from 1.0 and from True."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return type(value), repr(value)


@given(values, values)
def test_two_values_have_one_text_exactly_when_they_are_alike(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (exact(one) == exact(other))


@given(st.dictionaries(st.text(), values, max_size=5))
def test_the_order_of_a_mappings_keys_does_not_count(mapping: dict[str, Any]) -> None:
    backwards = dict(reversed(mapping.items()))
    assert canonical(MappingProxyType(backwards)) == canonical(mapping)


def test_numbers_booleans_and_text_stay_apart() -> None:
    texts = {canonical({"year": value}) for value in (1, 1.0, True, "1", "true", None, "null", [1], {"gt": 1})}
    assert len(texts) == 9


def test_the_order_of_a_list_counts() -> None:
    assert canonical(["a", "b"]) != canonical(["b", "a"])


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_json_does_not_have_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(InvalidInput, match=type(value).__name__):
        canonical({"field": value})


def test_a_value_that_is_nested_without_end_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidInput, match="nested"):
        canonical(value)
