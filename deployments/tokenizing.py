"""A model's tokenizer, called the cheapest way that gives the ids of its own call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What the arrays that a model takes are called in the tokenizers library.
_ATTRIBUTES = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}


class BatchTokenizer:
    """A transformers tokenizer that never pads and that cuts at `max_length` tokens, or never where that is None.

    Where the tokenizer is Rust behind a call in Python, Rust is asked directly: the call makes offsets and other arrays
    that no engine reads, and a short text takes twice as long in it. The tokenizer's settings become this object's.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._rust: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._rust is None:
            return
        self._rust.no_padding()
        if max_length is None:
            self._rust.no_truncation()
        else:
            self._rust.enable_truncation(max_length, direction=tokenizer.truncation_side)

    @property
    def pad_token_id(self) -> int:
        """What rows of ids are filled up with."""
        return int(self._tokenizer.pad_token_id or 0)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The arrays that the model takes: token ids, attention mask and, if it has segments, token type ids."""
        segments = ("token_type_ids",) if "token_type_ids" in self._tokenizer.model_input_names else ()
        return ("input_ids", "attention_mask", *segments)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens included."""
        if self._rust is None:
            return list(self._call(list(texts))["input_ids"])
        return [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts))]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, list[int]]]:
        """What the model takes of each pair, by name; where a pair is too long its longer half is cut first."""
        if self._rust is None:
            called = self._call([first for first, _ in pairs], [second for _, second in pairs])
            return [{name: called[name][row] for name in self.input_names} for row in range(len(pairs))]
        encoded = self._rust.encode_batch_fast(list(pairs))
        return [{name: getattr(encoding, _ATTRIBUTES[name]) for name in self.input_names} for encoding in encoded]

    def _call(self, *texts: list[str]) -> Any:
        truncation = False if self._max_length is None else "longest_first"
        return self._tokenizer(
            *texts,
            truncation=truncation,
            max_length=self._max_length,
            padding=False,
            return_attention_mask=True,
            verbose=False,
        )
