"""What packing changes in a transformers encoder, and how it is found out whether the encoder still says the same.

Imports torch and transformers when called.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from deployments.errors import ConfigError
from deployments.padding import Padding
from deployments.positions import first_position, position_table
from deployments.row_packing import Row, ids_of

# Texts of these many tokens are what a packed model is tried on against the same model with padding.
TRIED_LENGTHS = (7, 16, 3)
# How far hidden states may move then, as a share of their norm. Rounding to bfloat16 moves those of a small model by
# 0.002; positions that are off by two, by 0.8.
_MAX_RELATIVE_ERROR = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}

_numbers = itertools.count()


class PackableEncoder:
    """The transformer in a sentence-transformers model, without what stands on it.

    Raises ConfigError where it is not made like BERT, with `encoder`, `embeddings` and learned positions.
    """

    def __init__(self, module: Any) -> None:
        table = position_table(module)
        base = None if table is None else module.transformers_model.base_model
        if not hasattr(base, "encoder"):
            raise ConfigError("only encoders with BERT's parts can be packed; use the engine that pads for this model")
        self.transformer: Any = base
        self.first_position = first_position(table)

    @property
    def dtype(self) -> str:
        """The weights' dtype by its short name."""
        return str(self.transformer.dtype).removeprefix("torch.")

    def replace(self, attention: Callable[..., Any], unpack: Callable[[Any], Any]) -> None:
        """Have layers attend by `attention`, transformers' interface, and `unpack` take what leaves the last one."""
        from transformers import AttentionInterface

        # The registry is for ever; a model that is only there to be converted is not.
        weak = weakref.WeakMethod(attention)

        def attend(*tensors: Any, **options: Any) -> Any:
            method = weak()
            assert method is not None
            return method(*tensors, **options)

        def hook(encoder: Any, inputs: Any, output: Any) -> Any:
            output.last_hidden_state = unpack(output.last_hidden_state)
            return output

        # One name for each model: the function that it stands for knows one model's texts. No mask is made for a name
        # that transformers has none for.
        name = f"raglane_packed_{next(_numbers)}"
        AttentionInterface.register(name, attend)
        self.transformer.set_attn_implementation(name)
        self.transformer.encoder.register_forward_hook(hook)

    @contextmanager
    def hidden_states(self) -> Iterator[list[Any]]:
        """What leaves the layers, (texts, longest, size), of each forward pass inside."""
        seen: list[Any] = []

        def look(encoder: Any, inputs: Any, output: Any) -> None:
            seen.append(output.last_hidden_state)

        hook = self.transformer.encoder.register_forward_hook(look)
        try:
            yield seen
        finally:
            hook.remove()

    def compare(self, expected: Sequence[Any], found: Sequence[Any], rows: Sequence[Row]) -> None:
        """Raises ConfigError where one forward pass made other hidden states of the rows' tokens than the other."""
        padded, packed = (
            np.concatenate(
                [states[index, : len(row["input_ids"])].float().cpu().numpy() for index, row in enumerate(rows)]
            )
            for (states,) in (expected, found)
        )
        if not np.linalg.norm(packed - padded) <= _MAX_RELATIVE_ERROR[self.dtype] * np.linalg.norm(padded):
            raise ConfigError("this model answers differently when it is packed; use the engine that pads")


def tried_rows(length_limit: int) -> list[Row]:
    """Small token ids, others in each row."""
    lengths = [min(length, length_limit) for length in TRIED_LENGTHS]
    return [{"input_ids": 2 + (7 * row + 3 * np.arange(length)) % 61} for row, length in enumerate(lengths)]


def padded_features(rows: Sequence[Row], input_names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The rows as a model takes them without packing, zeros behind their ends; positions are left to it."""
    lengths = [len(row["input_ids"]) for row in rows]
    padding = Padding(max(lengths), multiple=1)
    arrays = {name: padding.pad([ids_of(row, name) for row in rows], 0) for name in input_names}
    return arrays | {"attention_mask": padding.pad([[1] * length for length in lengths], 0)}


@contextmanager
def unpackable_is_a_config_error() -> Iterator[None]:
    """What a model raises that is not made as it looked becomes a ConfigError."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"this model can't be packed ({type(error).__name__}: {error})") from error
