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
# Whole paragraphs are marked as headings, and the indexer refuses a longer title.
_TITLE_CHARS = 2048
# A name with two dots is where Kubernetes keeps the files of a mounted ConfigMap, which are links to it.
_HIDDEN = re.compile(r"\.(?!\.)")


class _Unusable(Exception):
    """A file or a line can't be taken; the message is the reason that the user gets."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, or what stands in the place of one: `problem` says why it can't be read. A directory is still to walk."""

    path: Path
    id: str
    problem: str = ""
    is_directory: bool = False


def load(paths: Sequence[Path]) -> Iterator[Document | RejectedDocument]:
    """Read files and, recursively and sorted, directories; hidden files in them are left out. JSON lines are streamed.

    Links in a directory are read if they lead to a file of it that is not hidden, other links are rejected. A link that
    is named itself is followed wherever it leads.

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
    missing = [str(path) for path in paths if _is_missing(path)]
    if missing:
        raise InvalidInput(f"no such file or directory: {', '.join(missing)}")


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:
        # Nobody may look whether it is there: it is rejected with the reason when its turn comes.
        return False


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
        found = _describe(path, path.name)
        if found.is_directory:
            yield from _walk(path)
        else:
            yield found


def _walk(named: Path) -> Iterator[_Found]:
    """Yield the files below a directory, without recursion: directories may nest thousands deep."""
    root = named.resolve()
    # The resolved path has a name even for "." and "..".
    pending = [_Found(named, root.name, is_directory=True)]
    while pending:
        found = pending.pop()
        if found.is_directory:
            pending += reversed(_list(found, root))
        else:
            yield found


def _list(directory: _Found, root: Path) -> list[_Found]:
    try:
        entries = sorted(os.scandir(directory.path), key=lambda entry: entry.name)
    except OSError as error:
        return [_Found(directory.path, directory.id, f"can't be read: {error.strerror}")]
    listed = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        found = _describe(directory.path / entry.name, f"{directory.id}/{entry.name}".lstrip("/"))
        listed.append(_follow(found, root) if not found.problem and entry.is_symlink() else found)
    return listed


def _follow(link: _Found, root: Path) -> _Found:
    """Return a link as it is if it leads to a file that is in `root` and not hidden, else with the reason against it.

    Whoever made the directory may have linked what only its reader can read, or its directories a thousandfold.
    """
    target = link.path.resolve()
    if not target.is_relative_to(root):
        problem = "a link that leads out of the directory that was named"
    elif any(_HIDDEN.match(part) for part in target.relative_to(root).parts):
        problem = "a link to what is hidden"
    elif not link.is_directory:
        return link
    elif link.path.parent.resolve().is_relative_to(target):
        problem = "a link to a directory that contains it"
    else:
        problem = "a link to a directory that is read under its own name"
    return _Found(link.path, link.id, problem)


def _describe(path: Path, identity: str) -> _Found:
    try:
        if path.is_dir():
            return _Found(path, identity, is_directory=True)
        return _Found(path, identity, _problem(path))
    except OSError as error:
        return _Found(path, identity, f"can't be read: {error.strerror}")


def _problem(path: Path) -> str:
    """Why the path is no file that can be taken; empty if it is one. Raises OSError where nobody may look."""
    if not path.is_file():
        return "not a regular file" if path.exists() else "a broken link"
    if path.suffix.lower() not in SUPPORTED_SUFFIXES:
        supported = " ".join(sorted(SUPPORTED_SUFFIXES))
        return f"unsupported type {path.suffix or '(no suffix)'}; supported are {supported}"
    return ""


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
        title=extract.title[:_TITLE_CHARS] or _printable(found.path.stem),
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
