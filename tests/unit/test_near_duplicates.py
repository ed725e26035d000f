"""Near duplicates: which texts count as said before; the context's tests say what becomes of them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.near_duplicates import NearDuplicates

# Letters, digits and underscores make words, the same ones beside ASCII's punctuation and beside another.
words = st.lists(st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=5), max_size=12)


@given(words, st.text(string.punctuation.replace("_", "") + string.whitespace + "\x00\x1f\x7f", min_size=1, max_size=3))
def test_punctuation_keeps_words_apart_and_is_no_part_of_them(said: list[str], between: str) -> None:
    seen = NearDuplicates(similarity=1.0)
    assert seen.take_if_new(between.join(["first", *said, "last"]))
    assert not seen.take_if_new(" – ".join(["first", *said, "last"]))
    assert not seen.take_if_new(between.join(["FIRST", *said, "last"]))


def test_a_text_with_a_word_more_is_new() -> None:
    seen = NearDuplicates(similarity=1.0)
    assert seen.take_if_new("The moon pulls the tides.")
    assert seen.take_if_new("The moon pulls the high tides.")
    assert not seen.take_if_new("the moon pulls the tides")


@pytest.mark.parametrize(
    ("text", "other_word", "other_number"),
    [
        (
            "The games of 2020 were put off by a whole year, as an illness went around the world, and began in July.",
            ("whole", "full"),
            ("2020", "2021"),
        ),
        (
            "東京は2020年に夏のオリンピックを開く予定だったが、感染症の流行のため一年延期された。",
            ("開く", "開ク"),
            ("2020", "2021"),
        ),
        (
            "การแข่งขันในปี๒๐๒๐ถูกเลื่อนออกไปหนึ่งปีเพราะโรคระบาดทั่วโลก",
            ("หนึ่ง", "หนึง"),
            ("๒๐๒๐", "๒๐๐๒"),
        ),
        (
            "भारत में २०२० में खेल एक साल के लिए टाल दिए गए थे क्योंकि दुनिया में बीमारी फैली थी और लोग घर पर थे।",
            ("साल", "वर्ष"),
            ("२०२०", "२०२१"),
        ),
    ],
)
def test_a_number_makes_a_text_new_in_every_script_and_another_word_does_not(
    text: str, other_word: tuple[str, str], other_number: tuple[str, str]
) -> None:
    seen = NearDuplicates(similarity=0.7)
    assert seen.take_if_new(text)
    assert not seen.take_if_new(text.replace(*other_word))
    assert seen.take_if_new(text.replace(*other_number))


@pytest.mark.parametrize("letters", ["a" * 300_000, "ก" * 300_000])
def test_a_long_word_is_looked_through_for_numbers_in_linear_time(letters: str) -> None:
    seen = NearDuplicates(similarity=0.5)
    assert seen.take_if_new(letters)
    assert not seen.take_if_new(letters)
