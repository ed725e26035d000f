"""Citations: what counts as one, which are taken out of an answer, and that streaming makes no difference."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deployments.citations import CitationFilter, cited_sources, defuse_citations
from deployments.contracts import Passage, Source

NUM_SOURCES = 3

Checked = tuple[str, tuple[int, ...], tuple[int, ...]]


def check(*deltas: str, num_sources: int = NUM_SOURCES) -> Checked:
    """The whole answer as it is sent, the numbers cited, and the numbers removed."""
    citations = CitationFilter(num_sources)
    text = "".join(map(citations.feed, deltas)) + citations.flush()
    return text, citations.cited, citations.removed


@pytest.mark.parametrize(
    ("answer", "cited"),
    [
        ("The moon [2]. And again [2], and bees [1].", (2, 1)),
        ("[1][2] and [3]", (1, 2, 3)),
        ("[1, 3] or [3,1] or [1; 2]", (1, 3, 2)),
        ("[1-3]", (1, 2, 3)),
        ("[1\u20132, 3]", (1, 2, 3)),
        ("[ 1 ]", (1,)),
        ("The sea[1], the moon.[2]\n[3]", (1, 2, 3)),
        ("(as told [1])", (1,)),
        ("CO2[1] in 2019[2], vitamin C[3]", (1, 2, 3)),
        ("`code` [1]", (1,)),
        ("`never closed. [1]", (1,)),
        ("`never closed\nbut here [1]", (1,)),
        ("```\nx = 1\n```\nThat is it [1].", (1,)),
        ("[see [1]]", (1,)),
        ("Nothing is cited.", ()),
        ("", ()),
    ],
)
def test_valid_citations_are_kept_as_written(answer: str, cited: tuple[int, ...]) -> None:
    assert check(answer) == (answer, cited, ())


@pytest.mark.parametrize(
    ("answer", "sent", "cited", "removed"),
    [
        ("The moon [9].", "The moon.", (), (9,)),
        ("The moon[9].", "The moon.", (), (9,)),
        ("The moon [9] pulls.", "The moon pulls.", (), (9,)),
        ("The moon [1, 9].", "The moon [1].", (1,), (9,)),
        ("The moon [9,2 , 1].", "The moon [2, 1].", (2, 1), (9,)),
        ("The moon [2-5].", "The moon [2-3].", (2, 3), (4, 5)),
        ("The moon [3-5].", "The moon [3].", (3,), (4, 5)),
        ("The moon [4-5, 1].", "The moon [1].", (1,), (4, 5)),
        ("The moon [8][9].", "The moon.", (), (8, 9)),
        ("The moon [8] [9].", "The moon.", (), (8, 9)),
        ("The moon [9][1].", "The moon [1].", (1,), (9,)),
        ("The moon [1][9].", "The moon [1].", (1,), (9,)),
        ("The moon [9]and the sea[8]side.", "The moon and the sea side.", (), (9, 8)),
        ("[9]", "", (), (9,)),
        ("[134] again [134]", " again", (), (134,)),
        ("A year [2024], an index [0].", "A year [2024], an index [0].", (), ()),
    ],
)
def test_numbers_that_were_never_given_are_taken_out(
    answer: str, sent: str, cited: tuple[int, ...], removed: tuple[int, ...]
) -> None:
    assert check(answer) == (sent, cited, removed)


@pytest.mark.parametrize(
    "text",
    [
        "[x], [a1], [1a], [], [ ], [,], [1,], [-1], [1 2], [1.5], (9), [9",
        "[0], [0, 9], [01], [1234], [2019-2024]",
        "a[9] x[9][8] top_k[9] _[9]",
        "`argv[9]` and `x = [8, 9]`",
        "```python\nx = [9]\ny = argv[9]\n```",
        "````\n[9]\n````",
        "[9](https://example.org/9), \\sqrt[9]{x}",
        "[a link](https://example.org/[9)",
        "the score was [3-1]",
        "9] [",
        "[" * 200 + "9" * 200,
        "[" + "9, " * 200 + "9]",
    ],
)
def test_other_brackets_are_left_alone(text: str) -> None:
    assert check(text) == (text, (), ())


def test_without_removing_every_piece_is_sent_at_once_and_citations_are_still_known() -> None:
    citations = CitationFilter(NUM_SOURCES, remove_invalid=False)
    deltas = ["The moon ", "[", "2", "][9", "]."]
    assert [citations.feed(delta) for delta in deltas] == deltas
    assert citations.flush() == ""
    assert (citations.cited, citations.removed) == ((2,), ())


def test_without_sources_no_citation_is_left() -> None:
    assert check("The moon [1].", num_sources=0) == ("The moon.", (), (1,))


def test_text_is_sent_as_soon_as_it_can_not_become_a_citation() -> None:
    citations = CitationFilter(NUM_SOURCES)
    assert citations.feed("The moon") == "The moon"
    assert citations.feed(" [") == ""
    assert citations.feed("x") == " [x"
    assert citations.feed("] [1") == "]"
    assert citations.feed("]") == ""
    assert citations.feed(".") == " [1]."
    assert citations.flush() == ""


PIECES = st.sampled_from(
    (
        *("[", "]", "[1]", "[2]", "[3]", "[4]", "[9]", "[1, 9]", "[2-7]", "[8-9]", "[0]", "[2024]", "[1](", "[7]{"),
        *(" ", "\u00a0", "\n", ".", ",", ", ", "-", "(", "_", "a", "the moon", " x", "top_k", "7", "1", "12"),
    )
)
CODE = st.sampled_from(("`", "```", "``", "\n```\n", "`x`", "."))
PROSE = st.lists(PIECES, max_size=25).map("".join)
ANSWERS = st.one_of(PROSE, st.lists(PIECES | CODE, max_size=25).map("".join), st.text(), st.text("[]0123,-; a`_.\n"))


@given(ANSWERS, st.data())
def test_how_an_answer_is_cut_makes_no_difference(answer: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    deltas = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert check(*deltas) == check(*answer) == check(answer)


@given(PROSE)
def test_every_citation_that_is_left_is_valid(answer: str) -> None:
    sent, cited, _ = check(answer)
    again, still_cited, removed = check(sent)
    assert (again, removed) == (sent, ())
    assert set(still_cited) == set(cited)
    assert all(1 <= number <= NUM_SOURCES for number in cited)


@given(ANSWERS)
def test_text_without_a_number_in_brackets_passes_unchanged(answer: str) -> None:
    assume(not re.search(r"\[[^\]]*[0-9][^\]]*\]", answer))
    assert check(answer) == (answer, (), ())


@given(ANSWERS)
def test_valid_numbers_alone_change_nothing(answer: str) -> None:
    _, _, removed = check(answer, num_sources=999)
    assert removed == ()
    assert check(answer, num_sources=999)[0] == answer


@given(ANSWERS)
def test_no_more_is_held_back_than_one_citation(answer: str) -> None:
    citations = CitationFilter(999)
    sent = 0
    for place, character in enumerate(answer, start=1):
        sent += len(citations.feed(character))
        assert place - sent <= 70


@pytest.mark.parametrize(
    ("text", "defused"),
    [
        ("As shown before [12].", "As shown before (12)."),
        ("Tides[1,2] and [3-5].", "Tides(1,2) and (3-5)."),
        ("x[1] and `y = [1]` and [a]", "x[1] and `y = [1]` and [a]"),
        ("Nothing here.", "Nothing here."),
    ],
)
def test_citations_of_a_quoted_source_become_parentheses(text: str, defused: str) -> None:
    assert defuse_citations(text) == defused


@given(PROSE)
def test_a_defused_quote_has_no_citations_of_its_own(quote: str) -> None:
    defused = defuse_citations(quote)
    assert len(defused) == len(quote)
    assert check(f"{defused} [1]") == (f"{defused} [1]", (1,), ())


def test_cited_sources_come_in_their_own_order() -> None:
    sources = [Source(number, Passage("", "", "", 0.0)) for number in (1, 2, 3)]
    assert cited_sources((3, 9, 1), sources) == (sources[0], sources[2])
