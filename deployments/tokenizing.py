"""A model's tokenizer, called the cheapest way that gives the ids of its own call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

# What the arrays that a model takes are called in the tokenizers library.
_ATTRIBUTES = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
# How much of a long text is looked at first: English has four to five characters in a token, source code more.
_CHARS_PER_TOKEN = 16
# And how much more of it each time that this was too little: blanks are no tokens, a word of any length may be one.
_GROWTH = 4
# WordPiece makes one token of a word of more than 100 characters, but as many as it has of what a cut leaves of it.
_TOKENS_OF_A_CUT_WORD = 100


class BatchTokenizer:
    """A transformers tokenizer that never pads and that cuts pairs at `max_length` tokens, or never where that is None.

    Where the tokenizer is Rust behind a call in Python, Rust is asked directly: the call makes offsets and other arrays
    that no engine reads, and a short text takes twice as long in it. The tokenizer's settings become this object's,
    and one thread may use it.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._rust: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._rust is None:
            return
        self._rust.no_padding()
        self._rust.no_truncation()

    @property
    def pad_token_id(self) -> int:
        """What rows of ids are filled up with."""
        return int(self._tokenizer.pad_token_id or 0)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The arrays that the model takes: token ids, attention mask and, if it has segments, token type ids."""
        segments = ("token_type_ids",) if "token_type_ids" in self._tokenizer.model_input_names else ()
        return ("input_ids", "attention_mask", *segments)

    def head(self, text: str, num_tokens: int) -> str:
        """The text, or so much of its beginning that its first `num_tokens` tokens are in it and more besides.

        Tokenising all of a book would hold up every text behind it.
        """
        size = num_tokens * _CHARS_PER_TOKEN
        while size < len(text):
            head = text[:size]
            if len(self.ids([head])[0]) >= num_tokens + _TOKENS_OF_A_CUT_WORD:
                return head
            size *= _GROWTH
        return text

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens included; none is cut."""
        if self._rust is None:
            return list(self._call(None, list(texts))["input_ids"])
        return [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts))]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, list[int]]]:
        """What the model takes of each pair, by name; where a pair is too long its longer half is cut first.

        Of two halves that are both longer than `max_length` either may be taken for the longer one, which keeps a token
        more where their number is odd.
        """
        # A question stands in as many pairs as it has candidates.
        kept = {half: self._kept(half) for half in set(chain.from_iterable(pairs))}
        heads = [(kept[first], kept[second]) for first, second in pairs]
        if self._rust is None:
            called = self._call(self._max_length, [first for first, _ in heads], [second for _, second in heads])
            return [{name: called[name][row] for name in self.input_names} for row in range(len(pairs))]
        with self._truncation():
            encoded = self._rust.encode_batch_fast(heads)
        return [{name: getattr(encoding, _ATTRIBUTES[name]) for name in self.input_names} for encoding in encoded]

    def _kept(self, half: str) -> str:
        """As much of half a pair as can matter to it."""
        if self._max_length is None or self._tokenizer.truncation_side != "right":
            return half
        return self.head(half, self._max_length)

    @contextmanager
    def _truncation(self) -> Iterator[None]:
        """While inside, Rust cuts what it encodes."""
        if self._max_length is not None:
            self._rust.enable_truncation(self._max_length, direction=self._tokenizer.truncation_side)
        try:
            yield
        finally:
            self._rust.no_truncation()

    def _call(self, max_length: int | None, *texts: list[str]) -> Any:
        return self._tokenizer(
            *texts,
            truncation=False if max_length is None else "longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=True,
            verbose=False,
        )
