"""What every packing torch engine needs: a transformer that reads texts end to end. Imports torch when called.

In a padded batch every text costs as much as the longest; here texts stand one after the other in a single row, and
attention, the only operation in which a token sees another, is told where each of them ends.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ConfigError
from deployments.fused_layers import fuse_layers

logger = logging.getLogger(__name__)

# Texts of these many tokens are what a packed model is tried on against the same model with padding.
TRIED_LENGTHS = (7, 16, 3)
# How far hidden states may move then, as a share of their norm. Rounding to bfloat16 moves those of a small model by
# 0.002; positions that are off by two, by 0.8.
_MAX_RELATIVE_ERROR = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}
_HALF_PRECISIONS = ("float16", "bfloat16")
_numbers = itertools.count()

# The ids of one text by the names of the model's inputs, (tokens,) each.
Row = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the texts of one row of (total,) tokens lie. Tensors are on the model's device.

    `ends` is (texts + 1,) int32, from 0 to the total; `places` is (total,) int64: where each token is in a rectangle of
    `num_texts` rows of `longest` tokens.
    """

    lengths: tuple[int, ...]
    ends: Any
    places: Any

    @property
    def num_texts(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)


class PackedModule:
    """A sentence-transformers model whose transformer computes no padding. One thread may call it.

    What follows the transformer, such as pooling or a classifier, gets a padded rectangle as it always does: `forward`
    takes the features of a batch by name and returns a float tensor with a row for each text. `module` is the model
    with weights on its device. Raises ConfigError for an architecture that can't be packed, where torch has no kernel
    for it, and where the packed model answers differently than before.
    """

    def __init__(
        self, module: Any, forward: Callable[[dict[str, Any]], Any], input_names: Sequence[str], length_limit: int
    ) -> None:
        self._forward = forward
        self._input_names = tuple(input_names)
        self._device = module.device
        transformer = _encoder_only(module)
        self._first_position = _first_position(transformer)
        self._attend = _attention(transformer, self._device)
        self._layout: _Layout | None = None
        rows = [_example(number, min(length, length_limit)) for number, length in enumerate(TRIED_LENGTHS)]
        with _hidden_states(transformer) as expected:
            self._run_padded(rows)
        if self._device.type == "cuda":
            fuse_layers(transformer)
        _set_attention(transformer, self._attention)
        transformer.encoder.register_forward_hook(self._unpack)
        with _hidden_states(transformer) as found:
            self._try(rows)
        _compare(expected, found, rows, _dtype(transformer))

    def launch(self, rows: Sequence[Row]) -> Callable[[], NDArray[np.float32]]:
        """Put one forward pass into the device's queue; what is returned waits for the output's rows, in order.

        `rows` have the ids of each text; a text without token types is all of the first type.
        """
        import torch

        with torch.inference_mode(), self._laid_out([len(row["input_ids"]) for row in rows]) as layout:
            output = self._forward(self._features(rows, layout)).to("cpu", non_blocking=True)
            finished = _mark(self._device)

        def wait() -> NDArray[np.float32]:
            if finished is not None:
                finished.synchronize()
            arrived: NDArray[np.float32] = output.numpy()
            return arrived

        return wait

    def _features(self, rows: Sequence[Row], layout: _Layout) -> dict[str, Any]:
        """One row of all tokens for the transformer, and for what follows it the mask of the padded rectangle."""
        lengths = np.asarray(layout.lengths)
        positions = np.concatenate([np.arange(length) for length in layout.lengths]) + self._first_position
        features = {"position_ids": self._on_device(positions[None])}
        for name in self._input_names:
            if name == "attention_mask":
                mask = np.arange(layout.longest) < lengths[:, None]
                features[name] = self._on_device(mask.astype(np.int64))
            else:
                ids = [row[name] if name in row else np.zeros_like(row["input_ids"]) for row in rows]
                features[name] = self._on_device(np.concatenate(ids)[None])
        return features

    def _on_device(self, array: NDArray[Any]) -> Any:
        import torch

        tensor = torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # From pinned memory, and so without waiting for what is in the device's queue.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    @contextmanager
    def _laid_out(self, lengths: Sequence[int]) -> Iterator[_Layout]:
        """While inside, the transformer is told of these texts."""
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        longest = max(lengths)
        places = np.concatenate([np.arange(length) + row * longest for row, length in enumerate(lengths)])
        self._layout = _Layout(tuple(lengths), self._on_device(ends), self._on_device(places))
        try:
            yield self._layout
        finally:
            self._layout = None

    def _attention(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **options: Any
    ) -> tuple[Any, None]:
        """transformers' attention interface: (1, heads, total, size) each in, (1, total, heads, size) out."""
        assert self._layout is not None
        turned = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        return self._attend(*turned, self._layout, scaling)[None], None

    def _unpack(self, encoder: Any, inputs: Any, output: Any) -> Any:
        """A hook behind the transformer's layers: its hidden states as a padded rectangle."""
        layout = self._layout
        assert layout is not None
        hidden = output.last_hidden_state[0]
        rectangle = hidden.new_zeros(layout.num_texts * layout.longest, hidden.shape[-1])
        rectangle.index_copy_(0, layout.places, hidden)
        output.last_hidden_state = rectangle.view(layout.num_texts, layout.longest, -1)
        return output

    def _run_padded(self, rows: Sequence[Row]) -> None:
        """One forward pass over the rows, padded, as long as the model is not packed; positions are left to it."""
        import torch

        shape = (len(rows), max(len(row["input_ids"]) for row in rows))
        arrays = {name: np.zeros(shape, np.int64) for name in self._input_names}
        for index, row in enumerate(rows):
            arrays["input_ids"][index, : len(row["input_ids"])] = row["input_ids"]
            arrays["attention_mask"][index, : len(row["input_ids"])] = 1
        with torch.inference_mode():
            self._forward({name: self._on_device(array) for name, array in arrays.items()})

    def _try(self, rows: Sequence[Row]) -> None:
        try:
            self.launch(rows)()
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"this model can't be packed ({type(error).__name__}: {error})") from error


@contextmanager
def _hidden_states(transformer: Any) -> Iterator[list[Any]]:
    """What leaves the transformer's layers, (texts, longest, size), of each forward pass inside."""
    seen: list[Any] = []

    def look(encoder: Any, inputs: Any, output: Any) -> None:
        seen.append(output.last_hidden_state)

    hook = transformer.encoder.register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def _compare(expected: Sequence[Any], found: Sequence[Any], rows: Sequence[Row], dtype: str) -> None:
    """Raises ConfigError where the one forward pass made other hidden states of the rows' tokens than the other."""
    padded, packed = (
        np.concatenate([states[index, : len(row["input_ids"])].float().cpu().numpy() for index, row in enumerate(rows)])
        for (states,) in (expected, found)
    )
    if not np.linalg.norm(packed - padded) <= _MAX_RELATIVE_ERROR[dtype] * np.linalg.norm(padded):
        raise ConfigError("this model answers differently when it is packed; use the torch engine for it")


def _dtype(transformer: Any) -> str:
    return str(transformer.dtype).removeprefix("torch.")


def _mark(device: Any) -> Any:
    """An event that happens when the device has done what it was given until now; None where it has done it already."""
    if device.type != "cuda":
        return None
    import torch

    event: Any = torch.cuda.Event  # torch declares no types for its constructor
    finished = event()
    finished.record()
    return finished


def _encoder_only(module: Any) -> Any:
    """The transformer without what may stand on it. Raises ConfigError where it is not made like BERT."""
    model = getattr(module, "transformers_model", None)
    base = getattr(model, "base_model", None)
    if base is None or not hasattr(base, "encoder") or not hasattr(base, "embeddings"):
        raise ConfigError("only encoders with BERT's parts can be packed; use the torch engine for this model")
    return base


def _first_position(transformer: Any) -> int:
    """The position of a text's first token: RoBERTa and its kin count from behind the padding token's id."""
    table = getattr(transformer.embeddings, "position_embeddings", None)
    if table is None:
        raise ConfigError("only encoders with positions of their own can be packed; use the torch engine for this one")
    return 0 if table.padding_idx is None else int(table.padding_idx) + 1


def _set_attention(transformer: Any, attention: Callable[..., Any]) -> None:
    from transformers import AttentionInterface

    # One name for each model: the function that it stands for knows one model's texts. No mask is made for a name that
    # transformers has none for.
    name = f"raglane_packed_{next(_numbers)}"
    AttentionInterface.register(name, attention)
    transformer.set_attn_implementation(name)


def _attention(transformer: Any, device: Any) -> Callable[..., Any]:
    """(total, heads, size) of queries, keys and values, a layout and a scale to (total, heads, size) of results."""
    if device.type == "cuda":
        return _flash_attention(_dtype(transformer))
    return _attention_text_by_text


def _flash_attention(dtype: str) -> Callable[..., Any]:
    if dtype not in _HALF_PRECISIONS:
        raise ConfigError(f"packed attention computes in float16 or bfloat16, not in {dtype}")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ConfigError("packed attention needs torch 2.10 or newer") from error

    def attend(query: Any, key: Any, value: Any, layout: _Layout, scaling: float | None) -> Any:
        ends, longest = layout.ends, layout.longest
        return varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling)

    return attend


def _attention_text_by_text(query: Any, key: Any, value: Any, layout: _Layout, scaling: float | None) -> Any:
    """The same on devices whose torch has no kernel for texts of unlike length."""
    import torch

    parts = zip(*(tensor.transpose(0, 1).split(layout.lengths, dim=1) for tensor in (query, key, value)), strict=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    results = [attend(q[None], k[None], v[None], scale=scaling)[0] for q, k, v in parts]
    return torch.cat(results, dim=1).transpose(0, 1)


def _example(number: int, length: int) -> Row:
    """Small token ids, others in each row."""
    return {"input_ids": 2 + (7 * number + 3 * np.arange(length)) % 61}
