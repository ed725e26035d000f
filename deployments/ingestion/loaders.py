"""Loaders: files and directories read into documents, with a reason for everything that can't be taken.

The command line imports this module, so it must stay cheap to import.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from deployments.contracts import Document, RejectedDocument
from deployments.errors import InvalidInput
from deployments.ingestion.markup import HTML_SUFFIXES, MARKDOWN_SUFFIXES, Extract, extract_html, extract_markdown

JSON_LINES_SUFFIXES = frozenset({".jsonl"})
SUPPORTED_SUFFIXES = frozenset({".txt"}) | MARKDOWN_SUFFIXES | HTML_SUFFIXES | JSON_LINES_SUFFIXES

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HTML_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_MAX_CHAOS = 0.05  # the share of a decoded text that may look like noise
_READ_BYTES = 1 << 20


class _Unusable(Exception):
    """A file or a line can't be taken; the message is the reason that the user gets."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, or what stands in the place of one: `problem` says why it can't be read."""

    path: Path
    id: str
    problem: str = ""


def load(paths: Sequence[Path]) -> Iterator[Document | RejectedDocument]:
    """Read files and, recursively and sorted, directories; hidden files in them are left out. JSON lines are streamed.

    A file's document has its path from its directory's name on as id, or its name if it was named directly; a JSON
    line has its own. Raises InvalidInput at once where a path does not exist.
    """
    _require_existing(paths)
    return _without_duplicates(item for found in _find_all(paths) for item in _load_file(found))


def count(paths: Sequence[Path]) -> int:
    """Return about how many items `load` will yield: files plus lines of JSON lines. Raises like `load`."""
    _require_existing(paths)
    total = 0
    for found in _find_all(paths):
        is_json_lines = found.path.suffix.lower() in JSON_LINES_SUFFIXES and not found.problem
        total += _count_lines(found.path) if is_json_lines else 1
    return total


def _require_existing(paths: Sequence[Path]) -> None:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise InvalidInput(f"no such file or directory: {', '.join(missing)}")


def _without_duplicates(items: Iterable[Document | RejectedDocument]) -> Iterator[Document | RejectedDocument]:
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Document):
            if item.id in seen:
                yield RejectedDocument(
                    item.id, f"an earlier document of this run has the same id; this one is in {item.source}"
                )
                continue
            seen.add(item.id)
        yield item


def _find_all(paths: Sequence[Path]) -> Iterator[_Found]:
    for path in paths:
        if path.is_dir():
            # The resolved path has a name even for "." and "..".
            yield from _walk(path, path.resolve().name, frozenset())
        else:
            yield _describe(path, path.name)


def _walk(directory: Path, prefix: str, ancestors: frozenset[Path]) -> Iterator[_Found]:
    """Yield the files below `directory`, linked directories included, except where a link leads back to an ancestor."""
    real = directory.resolve()
    if real in ancestors:
        yield _Found(directory, prefix, "a link to a directory that contains it")
        return
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
    except OSError as error:
        yield _Found(directory, prefix, f"can't be read: {error.strerror}")
        return
    for name in names:
        path, identity = directory / name, f"{prefix}/{name}".lstrip("/")
        if path.is_dir():
            yield from _walk(path, identity, ancestors | {real})
        else:
            yield _describe(path, identity)


def _describe(path: Path, identity: str) -> _Found:
    if not path.is_file():
        return _Found(path, identity, "not a regular file" if path.exists() else "a broken link")
    if path.suffix.lower() not in SUPPORTED_SUFFIXES:
        supported = " ".join(sorted(SUPPORTED_SUFFIXES))
        return _Found(path, identity, f"unsupported type {path.suffix or '(no suffix)'}; supported are {supported}")
    return _Found(path, identity)


def _load_file(found: _Found) -> Iterator[Document | RejectedDocument]:
    if found.problem:
        yield RejectedDocument(_printable(found.id), found.problem)
        return
    try:
        if found.path.suffix.lower() in JSON_LINES_SUFFIXES:
            yield from _load_json_lines(found)
        else:
            yield _load_text(found)
    except _Unusable as error:
        yield RejectedDocument(_printable(found.id), str(error))
    except OSError as error:
        yield RejectedDocument(_printable(found.id), f"can't be read: {error.strerror or error}")


def _load_text(found: _Found) -> Document:
    suffix = found.path.suffix.lower()
    raw = found.path.read_bytes()
    text = _decode(raw, declared=_declared_charset(raw) if suffix in HTML_SUFFIXES else None)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if suffix in MARKDOWN_SUFFIXES:
        extract = extract_markdown(text)
    elif suffix in HTML_SUFFIXES:
        extract = extract_html(text)
    else:
        extract = Extract(text)
    if not extract.text.strip():
        raise _Unusable("no text in it")
    return Document(
        id=_printable(found.id),
        text=extract.text,
        title=extract.title or _printable(found.path.stem),
        source=_printable(found.path.as_posix()),
        metadata=_scalars(extract.metadata),
    )


def _printable(name: str) -> str:
    """Return a file name that can be sent: names that are not UTF-8 reach us with lone surrogates in them."""
    return os.fsencode(name).decode("utf-8", "replace")


def _decode(raw: bytes, declared: str | None) -> str:
    if not raw:
        raise _Unusable("empty file")
    marked = next((encoding for bom, encoding in _BOMS if raw.startswith(bom)), None)
    if marked is None and b"\0" in raw:
        raise _Unusable("it has NUL bytes: a binary file, or UTF-16 without a byte order mark; convert text to UTF-8")
    for encoding in (marked,) if marked else ("utf-8-sig", declared):
        if encoding and (text := _decode_as(raw, encoding)) is not None:
            return text
    if marked is None and (text := _detect(raw)) is not None:
        return text
    raise _Unusable("not UTF-8, and its encoding can't be told for sure; convert it to UTF-8")


def _decode_as(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except (ValueError, LookupError):
        return None


def _declared_charset(raw: bytes) -> str | None:
    match = _HTML_CHARSET.search(raw[:2048])
    # A declaration that can be read as ASCII is not in UTF-16, whatever it says.
    return match[1].decode("ascii", "ignore") if match and not match[1].lower().startswith(b"utf-16") else None


def _detect(raw: bytes) -> str | None:
    """Return the text in the likeliest encoding, or None where another is as likely and gives another text."""
    from charset_normalizer import from_bytes

    matches = from_bytes(raw)
    best = matches.best()
    if best is None or best.chaos > _MAX_CHAOS:
        return None
    rivals = [match for match in matches if match.chaos <= best.chaos and str(match) != str(best)]
    if any(rival.coherence >= best.coherence for rival in rivals):
        return None
    return str(best)


def _load_json_lines(found: _Found) -> Iterator[Document | RejectedDocument]:
    identity, is_empty = _printable(found.id), True
    with found.path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith(tuple(bom for bom, _ in _BOMS)):
                    raise _Unusable("not UTF-8; convert it to UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            is_empty = False
            try:
                yield _parse_line(line, _printable(found.path.as_posix()))
            except _Unusable as error:
                yield RejectedDocument(f"{identity}:{number}", f"line {number}: {error}")
    if is_empty:
        raise _Unusable("empty file")


def _parse_line(line: bytes, source: str) -> Document:
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise _Unusable("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise _Unusable("not a JSON object")
    identity = record.get("_id", record.get("id"))
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        raise _Unusable("no '_id' or 'id' that is a text or a whole number")
    text = record.get("text")
    if not isinstance(text, str):
        raise _Unusable("no 'text', or it is not a string")
    if not text.strip():
        raise _Unusable("'text' is empty")
    title, nested = record.get("title"), record.get("metadata")
    others = {key: value for key, value in record.items() if key not in ("_id", "id", "title", "text", "metadata")}
    metadata = _scalars({**others, **(nested if isinstance(nested, dict) else {})})
    document = Document(str(identity), text, "" if title is None else str(title), source, metadata)
    if b"\\u" in line:
        _require_encodable(document)
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _require_encodable(document: Document) -> None:
    try:
        for part in (document.id, document.title, document.text, json.dumps(document.metadata, ensure_ascii=False)):
            part.encode()
    except UnicodeEncodeError:
        raise _Unusable("a \\u escape in it is half of a surrogate pair") from None


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what metadata may hold: texts, truth values, finite floats and whole numbers of 64 bits."""
    return {key: value for key, value in values.items() if _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _count_lines(path: Path) -> int:
    total, last = 0, b"\n"
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                total, last = total + block.count(b"\n"), block[-1:]
    except OSError:
        return 1
    return max(1, total + (last != b"\n"))
