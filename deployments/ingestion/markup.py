"""Markup: the text and the title that a Markdown or HTML file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
HTML_SUFFIXES = frozenset({".html", ".htm"})

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
# Possessive, as a tilde may belong to the fence or to what follows it. Code between more than 80 backticks is text, as
# it is for cmark: runs of many lengths, none of them closed, would each have the whole line read.
_CODE = (
    r"(?P<code>^[ \t]*(?P<fence>`{3,}+|~{3,}+)[^\n`]*+\n.*?(?:^[ \t]*(?P=fence)|\Z)"
    r"|(?<!`)(?P<ticks>`{1,80})(?!`)(?:[^`\n]++(?!(?P=ticks)(?!`))`++)*+[^`\n]++(?P=ticks)(?!`))"
)
_CODE_OR_COMMENT = re.compile(rf"{_CODE}|<!--.*?-->", re.DOTALL | re.MULTILINE)
# CommonMark's link reference definitions, which a reader never sees; `[^1]: text` is a footnote and stays.
_CODE_OR_DEFINITIONS = re.compile(
    rf"(?:^[ ]{{0,3}}\[(?!\^)[^\[\]\n]{{1,999}}\]:[ \t]*\S+"
    rf"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t]*(?:\n|\Z))++|{_CODE}",
    re.DOTALL | re.MULTILINE,
)
# A line that no paragraph goes on after: an empty one, a heading, its underline, a rule, the end of a code fence.
_ENDS_PARAGRAPH = re.compile(r"[ \t]*+(?:#{1,6}[ \t][^\n]*+|(?:`{3,}+|~{3,}+|=++|-++|[*_]{3,}+)[ \t]*+)?\n")
_CODE_OR_HEADING = re.compile(
    rf"^[ ]{{0,3}}(?P<level>#{{1,6}})[ \t]+(?P<heading>[^\n]+)|{_CODE}", re.DOTALL | re.MULTILINE
)
_CLOSING_HASHES = re.compile(r"(?:^|[ \t])#+$")
_MAX_HEADING_CHARS = 300
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")

_INVISIBLE = frozenset({"script", "style", "noscript", "template", "iframe", "head", "title"})
# fmt: off
_BLOCK = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup",
    "hr", "legend", "li", "main", "menu", "nav", "ol", "optgroup", "option", "p", "pre", "search", "section",
    "select", "summary", "table", "tbody", "textarea", "tfoot", "thead", "tr", "ul",
})
# fmt: on
_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Extract:
    """What a file says, without its markup's machinery; `title` is empty where the file names none."""

    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def extract_markdown(text: str) -> Extract:
    """Return Markdown as it is, without comments, front matter and definitions of link targets; newlines are expected
    to be `\\n`.

    The title is the front matter's, else the first heading of level 1, else the first heading. The other values of the
    front matter become metadata.
    """
    title, metadata, text = _split_front_matter(text)
    # A comment that is never closed is text; looking for its end only before the last `-->` keeps this linear.
    last_comment_end = text.rfind("-->") + len("-->")
    if last_comment_end >= len("-->"):
        head = _CODE_OR_COMMENT.sub(lambda match: match["code"] or "", text[:last_comment_end])
        text = head + text[last_comment_end:]
    if "]:" in text:
        text = _CODE_OR_DEFINITIONS.sub(_without_definitions, text)
    return Extract(text, title or _first_heading(text), metadata)


def _without_definitions(match: re.Match[str]) -> str:
    """Code, and definitions that go on a paragraph, as they are: "[Alice]: Yes" may be the line of a dialogue."""
    start = match.start()
    before = match.string[match.string.rfind("\n", 0, max(start - 1, 0)) + 1 : start]
    is_text = match["code"] or (before and not _ENDS_PARAGRAPH.fullmatch(before))
    return match[0] if is_text else ""


def _split_front_matter(text: str) -> tuple[str, Mapping[str, Any], str]:
    """Return the title and the other values of the front matter, and the text after it: all of it where there is
    none that can be used."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return "", {}, text
    from deployments.ingestion.front_matter import parse_front_matter

    parsed = parse_front_matter(match[1])
    return ("", {}, text) if parsed is None else (*parsed, text[match.end() :])


def _first_heading(text: str) -> str:
    first = ""
    for match in _CODE_OR_HEADING.finditer(text):
        heading = _plain_heading(match["heading"] or "")
        if heading and match["level"] == "#":
            return heading
        first = first or heading
    return first


def _plain_heading(heading: str) -> str:
    heading = _CLOSING_HASHES.sub("", heading.strip()[:_MAX_HEADING_CHARS])
    return re.sub(r"[`*]", "", _LINK.sub(r"\1", heading)).strip()


def extract_html(html: str) -> Extract:
    """Return the visible text of an HTML page: blocks apart by an empty line, whitespace folded except in `pre`.

    The title is the page's, else its first h1.
    """
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(html)
    title = ""
    for selector in ("head > title", "h1"):
        node = tree.css_first(selector)
        title = title or ("" if node is None else " ".join(node.text(separator=" ").split()))
    return Extract("" if tree.body is None else _VisibleText().of(tree.body), title)


class _VisibleText:
    """Walks the nodes below one node in document order, without recursion: pages may nest thousands deep."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._inline: list[str] = []
        self._pre_depth = 0

    def of(self, root: LexborNode) -> str:
        node: LexborNode | None = root
        depth = 0
        while node is not None:
            child = self._enter(node)
            if child is not None:
                node, depth = child, depth + 1
                continue
            self._leave(node)
            while depth and node.next is None:
                assert node.parent is not None, "a node below the root has a parent"
                node, depth = node.parent, depth - 1
                self._leave(node)
            node = node.next if depth else None
        self._end_block()
        return "\n\n".join(self._blocks)

    def _enter(self, node: LexborNode) -> LexborNode | None:
        """Take what stands at the start of the node and return its first child if the walk goes on there."""
        tag = node.tag
        if tag == "-text":
            text = node.text_content or ""
            self._inline.append(text if self._pre_depth else _WHITESPACE.sub(" ", text))
            return None
        if tag in _BLOCK:
            self._end_block()
        elif tag == "br":
            self._inline.append("\n")
        elif tag in ("td", "th"):
            self._inline.append(" ")
        self._pre_depth += tag == "pre"
        return None if tag in _INVISIBLE else node.first_child

    def _leave(self, node: LexborNode) -> None:
        if node.tag in _BLOCK:
            self._end_block()
        self._pre_depth -= node.tag == "pre"

    def _end_block(self) -> None:
        text = "".join(self._inline)
        self._inline.clear()
        if not text or text.isspace():
            return
        if self._pre_depth:
            self._blocks.append(text.strip("\r\n").rstrip())
        else:
            lines = (" ".join(line.split()) for line in text.split("\n"))
            self._blocks.append("\n".join(line for line in lines if line))
