"""How a filter becomes SQL. What it means to a table is in the search contract."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import InvalidInput
from deployments.filters import filterable, no_such_field, unknown_field, where_clause


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_filter_without_conditions_filters_nothing(nothing: Any) -> None:
    assert where_clause(nothing) is None
    assert unknown_field(nothing, frozenset()) is None


def test_every_condition_of_a_filter_must_hold() -> None:
    clause = where_clause({"source": "a.txt", "title": {"gte": "A", "lt": "B"}, "document_id": ["x", "y"]})
    assert clause == "source = 'a.txt' AND title >= 'A' AND title < 'B' AND document_id IN ('x', 'y')"


def test_what_is_looked_for_in_a_text_stays_in_its_literal() -> None:
    assert where_clause({"title": {"contains": "it's 100%"}}) == "contains(lower(title), lower('it''s 100%'))"


@given(st.text("aZ_9.-'\\\" )(;=é\n\0%", min_size=1), st.sampled_from([1, "x", True, {"ne": "x"}, {"contains": "x"}]))
def test_a_field_name_that_gets_into_sql_is_made_of_harmless_characters(field: str, value: Any) -> None:
    with suppress(InvalidInput):
        assert where_clause({field: value})
        assert set(field) <= set("aZ_9.-")


@pytest.mark.parametrize(
    ("wanted", "unknown"),
    [
        ({"document_id": "a", "source": "b", "title": "c", "id": "d"}, None),
        ({"year": 1, "metadata.year": 2}, None),
        ({"metadata.source": 1}, "metadata.source"),
        ({"year": 1, "yaer": 2, "x": 3}, "yaer"),
        ({"metadata.yaer": 1}, "metadata.yaer"),
    ],
)
def test_a_field_is_a_column_or_a_known_key(wanted: dict[str, Any], unknown: str | None) -> None:
    assert unknown_field(wanted, frozenset({"year"})) == unknown


def test_the_refusal_of_a_field_names_the_nearest_ones_first() -> None:
    known = frozenset({"year", "author", "pages"} | {f"field{number}" for number in range(20)})
    message = no_such_field("metadata.auhtor", known, "docs").message
    assert "'metadata.auhtor'" in message
    assert "'docs'" in message
    named = message.partition("known fields: ")[2].split(", ")
    assert named[0] == "author"
    assert len(named) == 10


def test_where_documents_have_no_metadata_the_columns_are_named() -> None:
    assert "document_id" in no_such_field("doc_id", frozenset(), "docs").message


def test_keys_that_no_filter_can_name_are_left_out() -> None:
    assert filterable(["year", "a.b-c", "", "a b", "größe", "x" * 200, "\0"]) == {"year", "a.b-c"}
