"""The filter of a SearchRequest: its grammar, and the SQL that it becomes."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from deployments.errors import InvalidInput
from deployments.store import sql_literal

COLUMNS = frozenset({"id", "document_id", "source", "title"})

_METADATA_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "ne": "!="}
_COMPARISONS = (*_OPERATORS, "contains")
_FIELDS_SHOWN = 10


def where_clause(filter_: Mapping[str, Any] | None) -> str | None:
    """The filter as SQL; None when it filters nothing. Every condition must hold.

    Raises InvalidInput that names the field it can't use.
    """
    conditions = [condition for field, wanted in (filter_ or {}).items() for condition in _conditions(field, wanted)]
    return " AND ".join(conditions) or None


def filterable(keys: Iterable[str]) -> frozenset[str]:
    """Those of the metadata keys that a filter can name."""
    return frozenset(key for key in keys if _METADATA_KEY.fullmatch(key))


def unknown_field(filter_: Mapping[str, Any] | None, known: frozenset[str]) -> str | None:
    """The first field of the filter that is neither a column nor one of the `known` metadata keys."""
    for field in filter_ or {}:
        if field not in COLUMNS and _key(field) not in known:
            return field
    return None


def no_such_field(field: str, known: frozenset[str], collection: str) -> InvalidInput:
    """The refusal of a field that no document has, with those that it may have meant, the nearest first."""
    near = difflib.get_close_matches(_key(field), sorted(COLUMNS | known), n=_FIELDS_SHOWN, cutoff=0.0)
    return InvalidInput(
        f"filter field {field!r}: no document of collection {collection!r} has it; known fields: {', '.join(near)}"
    )


def _key(field: str) -> str:
    return field.removeprefix("metadata.")


def _conditions(field: str, wanted: Any) -> list[str]:
    if isinstance(wanted, Mapping):
        unknown = set(wanted) - set(_COMPARISONS)
        if unknown or not wanted:
            raise InvalidInput(
                f"filter field {field!r}: unknown comparison {sorted(map(str, unknown))}; use {', '.join(_COMPARISONS)}"
            )
        return [
            _contains(field, value) if name == "contains" else _compares(field, _OPERATORS[name], value)
            for name, value in wanted.items()
        ]
    if isinstance(wanted, list | tuple):
        if not wanted:
            raise InvalidInput(f"filter field {field!r}: the list of values is empty")
        return ["(" + " OR ".join(_compares(field, "=", value) for value in wanted) + ")"]
    return [_compares(field, "=", wanted)]


def _compares(field: str, operator: str, value: Any) -> str:
    """One comparison as SQL. A field that is missing, or holds another kind of value, satisfies no comparison."""
    literal = _literal(field, value)
    if field in COLUMNS:
        if not isinstance(value, str):
            raise InvalidInput(f"filter field {field!r} holds text; compare it with a string")
        return f"{field} {operator} {literal}"
    as_json = _as_json(field)
    if isinstance(value, bool):
        return f"({as_json} IN ('true', 'false') AND {as_json} {operator} '{literal}')"
    if isinstance(value, int | float):
        return f"TRY_CAST({as_json} AS DOUBLE) {operator} {literal}"
    if operator == "=":
        return f"{as_json} = {sql_literal(json.dumps(value, ensure_ascii=False))}"
    return f"({as_json} LIKE '\"%' AND {_as_text(field)} {operator} {literal})"


def _contains(field: str, value: Any) -> str:
    """Text that holds `value` somewhere, in upper or lower case. Nothing in `value` is a wildcard."""
    if not isinstance(value, str):
        raise InvalidInput(f"filter field {field!r}: contains looks for text; give it a string")
    needle = f"lower({_literal(field, value)})"
    if field in COLUMNS:
        return f"contains(lower({field}), {needle})"
    return f"({_as_json(field)} LIKE '\"%' AND contains(lower({_as_text(field)}), {needle}))"


def _literal(field: str, value: Any) -> str:
    try:
        return sql_literal(value)
    except InvalidInput as error:
        raise InvalidInput(f"filter field {field!r}: {error.message}") from None


def _as_json(field: str) -> str:
    """The JSON text of a metadata value: "7" in quotes for a string, 7 for a number.

    The typed json_get_ functions fail the whole query at the first row whose value is of another kind; this never does.
    """
    key = _key(field)
    if not _METADATA_KEY.fullmatch(key):
        raise InvalidInput(f"filter field {field!r} is not a field name; use letters, digits, '_', '-' and '.'")
    path = f'$."{key}"'
    return f"json_extract(metadata, {sql_literal(path)})"


def _as_text(field: str) -> str:
    """A metadata value that is known to be a string."""
    return f"json_get_string(metadata, {sql_literal(_key(field))})"
