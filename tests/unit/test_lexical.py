"""Stems and coverage: which words count as the same, and how much of a question a sentence covers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import Vector
from deployments.errors import ConfigError
from deployments.lexical import Stemmer, Terms, count_words, coverages, folded, phrase_pattern

ENGLISH = Stemmer()

# A sentence: the number of its passage, and its stems.
Sentence = tuple[int, set[int]]

stems = st.sets(st.integers(0, 12), max_size=6)
sentences = st.lists(st.tuples(st.integers(0, 4), stems), max_size=12)


def terms(stems: set[int]) -> Terms:
    return np.array(sorted(stems), np.uint32)


def covered(question: set[int], sentences: Sequence[Sentence]) -> Vector:
    return coverages(
        terms(question),
        np.concatenate([np.zeros(0, np.uint32), *(terms(stems) for _, stems in sentences)]),
        np.array([len(stems) for _, stems in sentences], np.int64),
        np.array([passage for passage, _ in sentences], np.int64),
    )


def slowly_covered(question: set[int], sentences: Sequence[Sentence]) -> list[float]:
    """The definition, word by word."""
    num_passages = len({passage for passage, _ in sentences})

    def weight(stem: int) -> float:
        holders = len({passage for passage, stems in sentences if stem in stems})
        return math.log(1 + (num_passages - holders + 0.5) / (holders + 0.5))

    whole = math.fsum(map(weight, question))
    return [math.fsum(map(weight, question & stems)) / whole if question else 0.0 for _, stems in sentences]


@given(stems, sentences)
def test_coverage_is_the_share_of_the_questions_stems_weighed_by_rarity(
    question: set[int], sentences: list[Sentence]
) -> None:
    shares = covered(question, sentences)
    assert shares.dtype == np.float32
    assert shares.tolist() == pytest.approx(slowly_covered(question, sentences), abs=1e-5)


@given(stems, sentences)
def test_coverage_is_a_share_and_whole_only_where_every_stem_is_held(
    question: set[int], sentences: list[Sentence]
) -> None:
    for share, (_, held) in zip(covered(question, sentences).tolist(), sentences, strict=True):
        assert 0.0 <= share <= 1.0
        assert (share > 0.0) == bool(question & held)
        assert (share > 1 - 1e-5) == (bool(question) and question <= held)


@given(stems, sentences)
def test_coverage_does_not_depend_on_the_order_or_the_numbers_of_the_passages(
    question: set[int], sentences: list[Sentence]
) -> None:
    backwards = [(7 - passage, held) for passage, held in reversed(sentences)]
    assert covered(question, backwards).tolist()[::-1] == pytest.approx(covered(question, sentences).tolist(), abs=1e-6)


def test_a_rare_stem_weighs_more_than_one_that_every_passage_holds() -> None:
    common, rare = 1, 2
    shares = covered({common, rare}, [(0, {common}), (1, {common}), (2, {common, rare}), (2, {rare}), (2, {common})])
    assert shares[2] == pytest.approx(1.0)
    assert shares[3] > 0.8
    assert shares[3] + shares[4] == pytest.approx(1.0)
    assert shares[0] == shares[1] == shares[4]


def test_a_stem_is_as_rare_as_its_passages_are_few_however_many_of_their_sentences_hold_it() -> None:
    shares = covered({1, 2}, [(0, {1}), (0, {1}), (0, {1}), (1, {2})])
    assert shares.tolist() == pytest.approx([0.5] * 4)


def test_a_stem_that_nobody_holds_keeps_every_sentence_from_covering_the_question() -> None:
    (share,) = covered({1, 2}, [(0, {1})])
    assert 0.0 < share < 0.5


@pytest.mark.parametrize(
    ("question", "sentences"),
    [(set(), [(0, {1})]), ({1}, [(0, set()), (1, set())]), ({1}, []), (set(), [])],
)
def test_without_words_on_either_side_nothing_is_covered(question: set[int], sentences: list[Sentence]) -> None:
    assert covered(question, sentences).tolist() == [0.0] * len(sentences)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tide", "tides"),
        ("connected", "connections"),
        ("TIDES", "tides"),
        ("the tides, (the sea)!", "sea the tides"),
        ("sea sea sea", "sea"),
        ("STRASSE", "straße"),
        ("caf\u00e9", "cafe\u0301"),
        ("e\ufb03cient", "efficient"),
        ("E-4711", "e 4711"),
    ],
)
def test_texts_with_the_same_words_have_the_same_stems(one: str, other: str) -> None:
    assert ENGLISH.terms(one).tolist() == ENGLISH.terms(other).tolist()


@pytest.mark.parametrize(("one", "other"), [("1998", "1999"), ("moon", "noon")])
def test_different_words_have_different_stems(one: str, other: str) -> None:
    assert ENGLISH.terms(one).tolist() != ENGLISH.terms(other).tolist()


@pytest.mark.parametrize("text", ["", " \n\t", "?! ... --", "\x00", "\ud800", "😀"])
def test_a_text_without_words_has_no_stems(text: str) -> None:
    assert ENGLISH.terms(text).tolist() == []


@pytest.mark.parametrize(
    ("question", "sentence"),
    [("月亮引起什么", "潮汐是由月亮引起的。"), ("海はなぜ青い", "海は青い。"), ("ทะเล", "น้ำทะเลขึ้นลง")],
)
def test_scripts_without_spaces_share_words_with_a_sentence_that_holds_them(question: str, sentence: str) -> None:
    shared = set(ENGLISH.terms(question).tolist()) & set(ENGLISH.terms(sentence).tolist())
    assert len(shared) >= 2


@pytest.mark.parametrize("word", ["हिन्दी", "தமிழ்", "বাংলা", "مُحَمَّدٌ", "שָׁלוֹם", "q\u0307\u0323a"])
def test_vowel_signs_and_accents_are_inside_words(word: str) -> None:
    assert len(ENGLISH.terms(word)) == 1
    assert len(ENGLISH.terms(f"({word}) {word}, \u093f")) == 1


def test_words_that_share_letters_under_their_vowel_signs_are_not_shared() -> None:
    question = set(ENGLISH.question_terms("भारत की राजधानी क्या है?").tolist())
    assert not question & set(ENGLISH.terms("मैं रोज सुबह दौड़ता हूँ।").tolist())
    assert len(question & set(ENGLISH.terms("नई दिल्ली भारत की राजधानी है।").tolist())) == 4


@given(st.text(), st.text())
def test_stems_are_sorted_and_distinct_and_those_of_two_texts_are_those_of_both(one: str, other: str) -> None:
    found = ENGLISH.terms(f"{one} {other}")
    assert found.dtype == np.uint32
    assert found.tolist() == sorted({*ENGLISH.terms(one).tolist(), *ENGLISH.terms(other).tolist()})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_how_a_text_composes_its_characters_makes_no_difference(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert ENGLISH.terms(decomposed).tolist() == ENGLISH.terms(text).tolist()


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), (" \n", 0), ("It's the E-4711 sensor.", 4), ("月亮引起潮汐", 6), ("Ray 是框架", 4), ("Привет, мир", 2)],
)
def test_words_are_counted_as_a_reader_does(text: str, count: int) -> None:
    assert count_words(text) == count


def test_the_language_decides_which_words_are_the_same() -> None:
    german = Stemmer("German")
    assert german.terms("Häuser").tolist() == german.terms("Haus").tolist()
    assert ENGLISH.terms("Häuser").tolist() != ENGLISH.terms("Haus").tolist()


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'klingon'.*english"):
        Stemmer("klingon")


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("the red planet", "Mars, The Red\n  Planet."),
        ("rust", "Rust: what iron does."),
        ("C++", "written in C++."),
        (".net", "an ASP.NET page"),
        ("caf\u00e9", "the Cafe\u0301"),
        ("a.b*", "see a.b* there"),
        ("数据", "一个大数据库"),
        ("हिन्दी", "यह हिन्दी में है"),
    ],
)
def test_a_phrase_is_found_whatever_its_case_and_white_space(phrase: str, text: str) -> None:
    assert phrase_pattern(phrase).search(folded(text))


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("rust", "This is frustrating."),
        ("rust", "trust"),
        ("rust", "rusty"),
        ("हिन", "हिन्दी"),
        ("red planet", "a red and cold planet"),
        ("red planet", "redplanet"),
        ("a.b", "acb"),
        ("rust", ""),
    ],
)
def test_a_phrase_is_not_found_in_the_middle_of_other_words(phrase: str, text: str) -> None:
    assert not phrase_pattern(phrase).search(folded(text))


@pytest.mark.parametrize(
    ("question", "same_as"),
    [
        ("What pulls the tides?", "pulls tides"),
        ("Who was it?", "who was it"),
        ("Does IT matter? 42!", "matter 42"),
    ],
)
def test_what_only_asks_is_not_part_of_a_question_unless_there_is_nothing_else(question: str, same_as: str) -> None:
    stemmer = Stemmer()
    assert stemmer.question_terms(question).tolist() == stemmer.terms(same_as).tolist()
