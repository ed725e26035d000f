"""Front matter: the YAML at the head of a Markdown file. Whoever wrote the file may mean harm.

It imports a YAML parser, so it is imported where front matter is found, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

# PyYAML reads some 100 KB a second, and the time it takes over a sexagesimal number grows with the digits' square.
_MAX_CHARS = 1 << 16


def parse_front_matter(block: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return the title, empty where it is no scalar, and the other values.

    None where the block is no mapping, has aliases in it or more than 65,536 characters.
    """
    if len(block) > _MAX_CHARS:
        return None
    try:
        parsed = yaml.load(block, Loader=_LoaderWithoutAliases)
        if not isinstance(parsed, dict):
            return None
        title = parsed.pop("title", None)
        # YAML makes dates of what looks like one.
        values = {str(key): _undated(value) for key, value in parsed.items()}
        return _as_title(_undated(title)), values
    except Exception:  # noqa: BLE001 (PyYAML raises KeyError, AttributeError and more for values that fit no type)
        return None


class _LoaderWithoutAliases(yaml.SafeLoader):
    """A few lines of aliases to aliases, merged or printed, fill the memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _undated(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _as_title(value: Any) -> str:
    return str(value) if value and isinstance(value, str | int | float) else ""
