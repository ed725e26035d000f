"""Prints the OpenAPI document: python -m serve_app.api.openapi > tests/openapi.json."""

from __future__ import annotations

import sys

import orjson

from serve_app.api.app import routes_only


def openapi_json() -> bytes:
    """The document in the form in which it is committed."""
    return orjson.dumps(routes_only().openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(openapi_json())
