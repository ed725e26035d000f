"""What every packing torch engine needs: a transformer that reads texts end to end. Imports torch when called.

In a padded batch every text costs as much as the longest; here texts stand one after the other in a single row, and
attention, the only operation in which a token sees another, is told where each of them ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ConfigError
from deployments.fused_layers import fuse_layers
from deployments.row_packing import Row, ids_of
from deployments.torch_runtime import forward_pass
from deployments.transformer_surgery import (
    PackableEncoder,
    padded_features,
    tried_rows,
    unpackable_is_a_config_error,
)

_HALF_PRECISIONS = ("float16", "bfloat16")


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


# (total, heads, size) of queries, keys and values, a layout and a scale to (total, heads, size) of results.
Attend = Callable[[Any, Any, Any, _Layout, float | None], Any]


class PackedModule:
    """A sentence-transformers model whose transformer computes no padding. One thread may call it.

    What follows the transformer, such as pooling or a classifier, gets a padded rectangle as it always does: `forward`
    takes the features of a batch by name and returns a float tensor with a row for each text. `stage` is who is named
    when the device is lost. `module` is the model
    with weights on its device. Raises ConfigError for an architecture that can't be packed, where torch has no kernel
    for it, and where the packed model answers differently than before.
    """

    def __init__(
        self,
        stage: str,
        module: Any,
        forward: Callable[[dict[str, Any]], Any],
        input_names: Sequence[str],
        length_limit: int,
    ) -> None:
        self._stage = stage
        self._forward = forward
        self._input_names = tuple(input_names)
        encoder = PackableEncoder(module)
        self._device = module.device
        self._first_position = encoder.first_position
        on_gpu = self._device.type == "cuda"
        self._attend: Attend = _flash_attention(encoder.dtype) if on_gpu else _attention_text_by_text
        self._layout: _Layout | None = None
        rows = tried_rows(length_limit)
        with encoder.hidden_states() as expected:
            self._run_padded(rows)
        with unpackable_is_a_config_error():
            if on_gpu:
                fuse_layers(encoder.transformer)
            encoder.replace(self._attention, self._unpack)
            with encoder.hidden_states() as found:
                self.launch(rows)()
        encoder.compare(expected, found, rows)

    def launch(self, rows: Sequence[Row]) -> Callable[[], NDArray[np.float32]]:
        """Put one forward pass into the device's queue; what is returned waits for the output's rows, in order.

        `rows` have the ids of each text; a text without token types is all of the first type. Launching and waiting
        raise EngineDead when the device is lost.
        """
        with forward_pass(self._stage), self._laid_out([len(row["input_ids"]) for row in rows]) as layout:
            output = self._forward(self._features(rows, layout)).to("cpu", non_blocking=True)
            finished = _mark(self._device)

        def wait() -> NDArray[np.float32]:
            with forward_pass(self._stage):
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
                features[name] = self._on_device(np.concatenate([ids_of(row, name) for row in rows])[None])
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
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return self._attend(q, k, v, self._layout, scaling)[None], None

    def _unpack(self, hidden_states: Any) -> Any:
        """(1, total, size) as a padded rectangle, (texts, longest, size)."""
        layout = self._layout
        assert layout is not None
        hidden = hidden_states[0]
        rectangle = hidden.new_zeros(layout.num_texts * layout.longest, hidden.shape[-1])
        rectangle.index_copy_(0, layout.places, hidden)
        return rectangle.view(layout.num_texts, layout.longest, -1)

    def _run_padded(self, rows: Sequence[Row]) -> None:
        """One forward pass over the rows, as long as the model is not packed."""
        arrays = padded_features(rows, self._input_names)
        with forward_pass(self._stage):
            self._forward({name: self._on_device(array) for name, array in arrays.items()})


def _mark(device: Any) -> Any:
    """An event that happens when the device has done what it was given until now; None where it has done it already."""
    if device.type != "cuda":
        return None
    import torch

    event: Any = torch.cuda.Event  # torch declares no types for its constructor
    finished = event()
    # Without a stream it would be that of the current device, which nobody sets.
    finished.record(torch.cuda.current_stream(device))
    return finished


def _flash_attention(dtype: str) -> Attend:
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
