"""Loaders: what becomes a document, under which id and title, and what is rejected with which reason."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.contracts import Document, RejectedDocument
from deployments.errors import InvalidInput
from deployments.ingestion.loaders import SUPPORTED_SUFFIXES, count, load
from deployments.ingestion.preparation import MAX_TITLE_CHARS

SAMPLES = Path(__file__).parents[3] / "shared/data/documents"


def document(path: Path) -> Document:
    [item] = load([path])
    assert isinstance(item, Document), item
    return item


def rejection(path: Path) -> RejectedDocument:
    [item] = load([path])
    assert isinstance(item, RejectedDocument), item
    return item


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def test_a_directory_is_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "book"
    for name in ("b.txt", "a/z.TXT", "a/b/c.md", ".hidden.txt", ".git/config.txt"):
        write(root / name, "Some text.")

    items = list(load([root]))

    assert [item.id for item in items] == ["book/a/b/c.md", "book/a/z.TXT", "book/b.txt"]
    assert [item.source for item in items if isinstance(item, Document)] == [
        f"{root.as_posix()}/{item.id[5:]}" for item in items
    ]


def test_the_current_directory_is_named_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "book/a.txt", "Some text.")
    monkeypatch.chdir(tmp_path / "book")

    [item] = load([Path(".")])

    assert item == Document("book/a.txt", "Some text.", title="a", source="a.txt")


def test_a_file_named_directly_has_its_name_as_id(tmp_path: Path) -> None:
    path = write(tmp_path / "deep/note.txt", "Some text.")

    assert document(path) == Document("note.txt", "Some text.", title="note", source=path.as_posix())


def test_a_path_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="missing"):
        load([write(tmp_path / "a.txt", "text"), tmp_path / "missing.txt"])
    with pytest.raises(InvalidInput, match="missing"):
        count([tmp_path / "missing.txt"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "empty file"),
        ("a.txt", b" \n\t ", "no text"),
        ("a.txt", b"\xef\xbb\xbf", "no text"),
        ("a.html", b"<script>var x = 1;</script>", "no text"),
        ("a.txt", b"text\0more", "NUL bytes"),
        ("a.txt", "na\u00efve caf\u00e9".encode("latin-1"), "convert it to UTF-8"),
        ("a.pdf", b"%PDF-1.7", r"unsupported type .pdf; supported are .htm .html .jsonl .markdown .md .txt"),
        ("Makefile", b"all:", r"unsupported type \(no suffix\)"),
        ("a.jsonl", b"", "empty file"),
        ("a.jsonl", b"\n\n", "empty file"),
        ("a.jsonl", '{"_id": 1}'.encode("utf-16"), "convert it to UTF-8"),
    ],
)
def test_a_file_that_can_not_be_taken_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    rejected = rejection(write(tmp_path / name, content))

    assert rejected.id == name
    assert re.search(reason, rejected.reason), rejected.reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_and_directories_without_permission_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text").chmod(0)
    write(tmp_path / "b/c.txt", "text").parent.chmod(0)
    write(tmp_path / "d.txt", "text")

    items = list(load([tmp_path]))

    assert [type(item) for item in items] == [RejectedDocument, RejectedDocument, Document]
    assert "Permission denied" in str(items[0])
    assert "Permission denied" in str(items[1])
    (tmp_path / "b").chmod(0o700)


def test_what_nobody_may_look_at_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "locked.txt", "z.txt"):
        write(tmp_path / "book" / name, "Some text.")
    stat = Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == "locked.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refuse)
    paths = [tmp_path / "book", tmp_path / "book/locked.txt"]

    items = list(load(paths))

    assert [item.id for item in items if isinstance(item, Document)] == ["book/a.txt", "book/z.txt"]
    assert [item for item in items if isinstance(item, RejectedDocument)] == [
        RejectedDocument("book/locked.txt", "can't be read: Permission denied"),
        RejectedDocument("locked.txt", "can't be read: Permission denied"),
    ]
    assert count(paths) == 4


def test_links_in_a_circle_and_broken_links_are_rejected(tmp_path: Path) -> None:
    write(tmp_path / "book/a.txt", "Some text.")
    (tmp_path / "book/circle").symlink_to(tmp_path / "book", target_is_directory=True)
    (tmp_path / "book/nothing.txt").symlink_to(tmp_path / "gone.txt")

    reasons = {item.id: item.reason for item in load([tmp_path / "book"]) if isinstance(item, RejectedDocument)}

    assert reasons == {
        "book/circle": "a link to a directory that contains it",
        "book/nothing.txt": "a broken link",
    }


def test_links_out_of_a_directory_and_to_what_is_hidden_in_it_are_rejected(tmp_path: Path) -> None:
    book = write(tmp_path / "book/a.txt", "Some text.").parent
    write(tmp_path / "credentials", "a secret")
    write(tmp_path / "other/b.txt", "a secret")
    write(book / ".git/config", "a secret")
    (book / "notes.txt").symlink_to(tmp_path / "credentials")
    (book / "more.txt").symlink_to("notes.txt")
    (book / "other").symlink_to("../other", target_is_directory=True)
    (book / "config.txt").symlink_to(".git/config")

    items = list(load([book]))

    assert [item.id for item in items if isinstance(item, Document)] == ["book/a.txt"]
    assert {item.id: item.reason for item in items if isinstance(item, RejectedDocument)} == {
        "book/config.txt": "a link to what is hidden",
        "book/more.txt": "a link that leads out of the directory that was named",
        "book/notes.txt": "a link that leads out of the directory that was named",
        "book/other": "a link that leads out of the directory that was named",
    }
    assert count([book]) == len(items)


def test_the_files_of_a_mounted_config_map_are_read(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    write(root / "..2026_11_28" / "a.txt", "Some text.")
    (root / "..data").symlink_to("..2026_11_28")
    (root / "a.txt").symlink_to("..data/a.txt")
    assert [item.id for item in load([root])] == ["docs/a.txt"]
    assert document(root / "a.txt").text == "Some text."


def test_links_that_are_named_and_links_to_files_beside_them_are_read(tmp_path: Path) -> None:
    write(tmp_path / "book/part/a.txt", "Some text.")
    (tmp_path / "book/b.txt").symlink_to("part/a.txt")
    (tmp_path / "shelf").symlink_to("book", target_is_directory=True)
    (tmp_path / "c.txt").symlink_to("book/b.txt")

    items = list(load([tmp_path / "shelf", tmp_path / "c.txt"]))

    assert all(isinstance(item, Document) for item in items)
    assert [item.id for item in items] == ["book/b.txt", "book/part/a.txt", "c.txt"]


def test_directories_that_are_linked_over_and_over_are_read_once(tmp_path: Path) -> None:
    for level in range(8):
        directory = tmp_path / "book" / "/".join(["down"] * level)
        write(directory / "down/a.txt", "Some text.")
        (directory / "again").symlink_to("down", target_is_directory=True)

    items = list(load([tmp_path / "book"]))

    assert len([item for item in items if isinstance(item, Document)]) == 8
    assert {item.reason for item in items if isinstance(item, RejectedDocument)} == {
        "a link to a directory that is read under its own name"
    }
    assert count([tmp_path / "book"]) == len(items) == 16


def test_directories_nested_over_a_thousand_deep_are_read(tmp_path: Path) -> None:
    directories = [f"{tmp_path}/book{'/d' * depth}" for depth in range(1200)]
    for directory in directories:
        os.mkdir(directory)
    file = write(Path(directories[-1]) / "a.txt", "Some text.")
    try:
        [item] = load([tmp_path / "book"])
    finally:
        file.unlink()
        for directory in reversed(directories):
            os.rmdir(directory)

    assert item.id.endswith("/d/a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")

    assert rejection(tmp_path / "pipe.txt").reason == "not a regular file"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    assert document(write(tmp_path / "a.txt", "Grüße 😀".encode(encoding))).text == "Grüße 😀"


def test_another_encoding_is_read_where_it_is_clear(tmp_path: Path) -> None:
    text = "Привет, как дела? Это простой текст на русском языке."

    assert document(write(tmp_path / "a.txt", text.encode("cp1251"))).text == text


def test_windows_newlines_become_plain_newlines(tmp_path: Path) -> None:
    assert document(write(tmp_path / "a.txt", "one\r\ntwo\rthree")).text == "one\ntwo\nthree"


def test_html_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    page = '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"><p>na\u00efve caf\u00e9</p>'

    assert document(write(tmp_path / "a.html", page.encode("latin-1"))).text == "naïve café"


def test_markup_gives_the_title_and_the_metadata(tmp_path: Path) -> None:
    markdown = document(write(tmp_path / "a.MD", "---\nauthor: Ada\ntags: [a, b]\n---\n# The title\n"))
    html = document(write(tmp_path / "b.HTM", "<title>The page</title><p>Some text."))

    assert (markdown.title, markdown.text, markdown.metadata) == ("The title", "# The title\n", {"author": "Ada"})
    assert (html.title, html.text) == ("The page", "Some text.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", "<title>{}</title><p>Some text."),
        ("a.html", "<h1>{}</h1><p>Some text."),
        ("a.md", "---\ntitle: {}\n---\nSome text."),
        ("a.md", "# {}\n\nSome text."),
    ],
)
def test_a_title_that_the_indexer_would_refuse_is_cut(tmp_path: Path, name: str, content: str) -> None:
    long = "A paragraph as a heading. " * 100
    title = document(write(tmp_path / name, content.format(long.strip()))).title
    assert long.startswith(title)
    assert 0 < len(title) <= MAX_TITLE_CHARS


@pytest.mark.parametrize("name", ["note.md", "note.html", "note.txt"])
def test_a_file_without_a_title_is_called_by_its_stem(tmp_path: Path, name: str) -> None:
    assert document(write(tmp_path / name, "Some text.")).title == "note"


def test_json_lines_have_their_own_ids_titles_and_metadata(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path / "corpus.JSONL",
        {
            "_id": 7,
            "id": "ignored",
            "title": "T",
            "text": "One.",
            "year": 2020,
            "metadata": {"year": 2021, "open": True},
        },
        {"id": "b", "text": "Two 😀.", "tags": ["nested"], "note": None, "score": 0.5},
    )

    assert list(load([path])) == [
        Document("7", "One.", "T", path.as_posix(), {"year": 2021, "open": True}),
        Document("b", "Two 😀.", "", path.as_posix(), {"score": 0.5}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"_id": "1", "text": ', "line 2: not valid JSON"),
        (b'{"_id": "1", "text": "t", "x": NaN}', "NaN is not a JSON value"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b'["a"]', "not a JSON object"),
        (b'{"text": "t"}', "no '_id' or 'id'"),
        (b'{"_id": true, "text": "t"}', "no '_id' or 'id'"),
        (b'{"_id": " ", "text": "t"}', "no '_id' or 'id'"),
        (b'{"_id": "1"}', "no 'text'"),
        (b'{"_id": "1", "text": ["t"]}', "no 'text'"),
        (b'{"_id": "1", "text": " "}', "'text' is empty"),
        (b'{"_id": "1", "text": "caf\xe9"}', "not UTF-8"),
        (b'{"_id": "1", "text": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"_id": "ok", "text": "again"}', "same id"),
    ],
)
def test_a_bad_line_is_rejected_alone_with_its_number_or_id(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"_id": "ok", "text": "first"}\n'
    last = b'\n\n{"_id": "last", "text": "last"}'

    items = list(load([write(tmp_path / "c.jsonl", b"\xef\xbb\xbf" + good + line + last)]))

    assert [item.id for item in items if isinstance(item, Document)] == ["ok", "last"]
    [rejected] = [item for item in items if isinstance(item, RejectedDocument)]
    assert rejected.id == ("ok" if reason == "same id" else "c.jsonl:2")
    assert reason in rejected.reason


def test_json_lines_are_streamed(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "c.jsonl", {"_id": "a", "text": "t"})
    items: Iterator[Any] = load([path])
    next(items)
    with path.open("a") as file:
        file.write("\n" * 2_000_000 + json.dumps({"_id": "b", "text": "appended while reading"}))

    assert [item.id for item in items] == ["b"]


def test_the_same_file_twice_is_one_document_and_one_rejection(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Some text.")

    first, second = load([path, path])

    assert isinstance(first, Document)
    assert isinstance(second, RejectedDocument)
    assert path.as_posix() in second.reason


def test_count_adds_files_and_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "b.pdf", "pdf")
    write(tmp_path / "c.jsonl", "{}\n{}\n{}")

    assert count([tmp_path]) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(raw=st.one_of(st.binary(), st.text().map(str.encode)), suffix=st.sampled_from(sorted(SUPPORTED_SUFFIXES)))
def test_any_bytes_are_loaded_or_rejected(tmp_path: Path, raw: bytes, suffix: str) -> None:
    items = list(load([write(tmp_path / f"any{suffix}", raw)]))

    assert items
    for item in items:
        assert item.text.strip() if isinstance(item, Document) else item.reason


@pytest.mark.skipif(not SAMPLES.exists(), reason="the sample documents are not there")
def test_every_sample_file_is_loaded_or_rejected_with_a_reason() -> None:
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]

    items = list(load([SAMPLES]))

    assert len(items) == len(files) == count([SAMPLES])
    loaded = [item for item in items if isinstance(item, Document)]
    assert len(loaded) > 100
    assert all(item.text.strip() and item.title for item in loaded)
    refused = [
        item for item in items if isinstance(item, RejectedDocument) and not item.reason.startswith("unsupported")
    ]
    assert {Path(item.id).name for item in refused} == {
        "MEDRPT-2024-PAT-3847_medical_report_scan.md", "empty.txt", "fake-text-utf-16-be.txt",
    }  # fmt: skip


def test_importing_the_loaders_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "pyarrow", "pydantic", "selectolax", "yaml", "charset_normalizer")
    code = f"import sys, deployments.ingestion.loaders; print([name for name in {heavy} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert found.strip() == "[]"
