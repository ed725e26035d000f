"""Markup: the text and the title of Markdown and HTML."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.ingestion.markup import extract_html, extract_markdown

TAGS = st.sampled_from(
    ["<p>", "</p>", "<pre>", "</pre>", "<br>", "<td>", "<script>", "</script>", "<!--", "-->", "<b>", "&amp;"]
)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n## Part\n\n# The *Title* of `it` #\n", "The Title of it"),
        ("# About C#\n", "About C#"),
        ("```sh\n# not a title\n```\n\n## Part\n", "Part"),
        ("# [Linked](http://example.org) title\n", "Linked title"),
        ("---\ntitle: 'From: front'\n---\n# Heading\n", "From: front"),
        ("---\ntitle: 2024-05-01\n---\n# Heading\n", "2024-05-01"),
        ("---\ntitle: [a, b]\n---\n# Heading\n", "Heading"),
        ("# #\n#\n\nno heading at all\n", ""),
    ],
)
def test_the_title_of_markdown(text: str, title: str) -> None:
    assert extract_markdown(text).title == title


def test_where_markdown_links_lead_is_no_text() -> None:
    text = """# Errors

See [the chapter][ch9] and [this][Long label] on errors[^1].

[ch9]: ch09-02-recoverable-errors.html#a-shortcut
[Long label]: <https://example.com/a> "A title"
   [indented]: https://example.com/b 'Another'
[^1]: A footnote says something.
[not a definition]: it goes on with more words

```
[in code]: stays.html
```
[last]: end.html"""
    extracted = extract_markdown(text).text
    assert (
        extracted
        == """# Errors

See [the chapter][ch9] and [this][Long label] on errors[^1].

[^1]: A footnote says something.
[not a definition]: it goes on with more words

```
[in code]: stays.html
```
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        "[Alice]: Hello all there friends\n[Bob]: Yes\n[Alice]: Great",
        "At night\n[10:32]: OK\n[10:33]: OK\n\nThe end",
        "- an item\n[a]: b",
        "# not a heading of seven\n####### words\n[a]: b",
        "code ```\n[a]: b",
    ],
)
def test_a_paragraph_is_not_interrupted_by_what_looks_like_a_definition(text: str) -> None:
    assert extract_markdown(text).text == text


@pytest.mark.parametrize(
    "before",
    [
        "",
        "\n",
        "Text.\n\n",
        "Text.\n \t\n",
        "# Head\n",
        "Head\n====\n",
        "Text.\n***\n",
        "```\ncode\n```\n",
        "~~~\n~~~\n",
    ],
)
def test_definitions_stand_where_a_paragraph_could_begin(before: str) -> None:
    assert extract_markdown(f"{before}[a]: b\n[c]: d 'e'\nText\n\n[f]: g").text == f"{before}Text\n\n"


@pytest.mark.parametrize(
    "text", ["[a]: " * 20_000, "[" * 100_000 + "]:", "[a]: x " + '"' * 100_000, "[" + "a" * 100_000 + "]:"]
)
def test_what_only_looks_like_a_definition_is_read_in_linear_time(text: str) -> None:
    assert extract_markdown(text).text == text


@pytest.mark.parametrize("text", ["~" * 200_000 + "`", " ".join("`" * length for length in range(1, 1_200))])
def test_what_only_looks_like_code_is_read_in_linear_time(text: str) -> None:
    assert extract_markdown(f"{text}\n\n[a]: b\n<!-- c -->").text == f"{text}\n\n"


@pytest.mark.parametrize("code", ["`` <!-- ` kept --> ``", "`a```<!-- kept -->``b`", "~~~~\n~~~ <!-- kept -->\n~~~~"])
def test_code_ends_at_as_many_marks_as_it_began_with(code: str) -> None:
    assert extract_markdown(f"{code}<!-- gone -->").text == code


def test_backticks_that_none_follow_open_no_code() -> None:
    assert extract_markdown("```a ` ``b<!-- gone -->").text == "```a ` ``b"


def test_markdown_keeps_its_text_without_comments_and_front_matter() -> None:
    front = "---\ntitle: T\nauthor: Ada\ndate: 2024-05-01\n---\n"
    before = "# Head\n\nSome *text*"
    after = " here, `<!-- kept -->`.\n\n```html\n<!-- kept too -->\n```\n\nlast <!-- never closed"

    extract = extract_markdown(f"{front}{before}<!-- a\ncomment -->{after}")

    assert extract.text == before + after
    assert extract.metadata == {"author": "Ada", "date": "2024-05-01"}


@pytest.mark.parametrize("text", ["---\njust a rule\n---\nText.", "---\nnot: [closed\n---\nText.", "---\nno end"])
def test_what_only_looks_like_front_matter_is_kept(text: str) -> None:
    assert extract_markdown(text).text == text


@pytest.mark.parametrize(
    "block",
    [
        "a: &a {k: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n",
        "a: &a [1, 2]\nb: &b [*a, *a]\ntitle: [*b, *b]\n",
        "title: *unknown\n",
        f"title: 0x{'f' * 4000}\n",
        f"? 0x{'f' * 4000}\n: a key\n",
        f"duration: 1{':1' * 200}.5\n",
        "draft: !!bool maybe\n",
        "pages: !!int ''\n",
        "date: !!timestamp soon\n",
        "date: 0000-00-00\n",
        "a: " + "[" * 10_000 + "\n",
        f"duration: 1{':1' * 40_000}\n",
    ],
    ids=lambda block: block[:24].strip(),
)
def test_front_matter_that_would_harm_its_reader_is_text(block: str) -> None:
    text = f"---\n{block}---\nText."
    extract = extract_markdown(text)
    assert (extract.text, extract.title, extract.metadata) == (text, "", {})


def test_html_gives_its_visible_text_in_blocks() -> None:
    page = """<!doctype html><html><head><title> The
      Page </title><style>p {}</style><script>var a = "<p>no</p>";</script></head><body>
      <nav><a href="/">Home</a></nav><h1>Head &amp; <em>shoulders</em></h1>
      <p>First   line<br>second&nbsp;line <!-- comment --><b>bo</b>ld</p>
      <ul><li>one</li><li>two</li></ul><noscript>no</noscript><template><p>no</p></template>
      <table><tr><td>a</td><td>b</td></tr></table><pre>  x = 1\n  y = 2\n</pre><p>caf&eacute; 5 &lt; 6"""

    extract = extract_html(page)

    assert extract.title == "The Page"
    assert extract.text.split("\n\n") == [
        "Home",
        "Head & shoulders",
        "First line\nsecond line bold",
        "one",
        "two",
        "a b",
        "  x = 1\n  y = 2",
        "café 5 < 6",
    ]


@pytest.mark.parametrize(
    ("page", "title"),
    [("<p>text</p><h1>The <i>one</i></h1><h1>Two</h1>", "The one"), ("<title> </title><p>text</p>", "")],
)
def test_the_title_of_html_without_a_title_is_its_first_h1(page: str, title: str) -> None:
    assert extract_html(page).title == title


def test_html_nested_thousands_deep_is_read() -> None:
    assert extract_html("<div>" * 5000 + "deep" + "</div>" * 5000).text == "deep"


@given(st.lists(st.one_of(TAGS, st.sampled_from(["word ", "\n", "x"]))).map("".join))
def test_html_of_any_shape_gives_text_without_empty_blocks(page: str) -> None:
    text = extract_html(page).text

    assert text == text.rstrip()
    assert all(not block.isspace() for block in text.split("\n\n"))
