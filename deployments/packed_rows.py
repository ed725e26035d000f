"""A transformer that reads several texts from each row: for compilers, which want rectangles.

Attention sees a row's texts apart; everything else treats each token by itself anyway. So the graph is the one that
padded rows have, with next to no padding in them. Imports torch when called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.row_packing import Row, ids_of, pack_rows
from deployments.transformer_surgery import (
    PackableEncoder,
    padded_features,
    tried_rows,
    unpackable_is_a_config_error,
)


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Makes what a row-packed model takes: `id_names` are the inputs that each text has ids for."""

    id_names: tuple[str, ...]
    first_position: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """The arrays by name, in a fixed order; a text without token types is all of the first type."""
        packing = pack_rows([len(row["input_ids"]) for row in rows])
        ids = {name: packing.fill([ids_of(row, name) for row in rows]) for name in self.id_names}
        return ids | {
            "position_ids": packing.positions(self.first_position),
            "segments": packing.segments(),
            "sources": packing.sources(),
            "attention_mask": packing.mask(),
        }


class RowPackedModel:
    """A sentence-transformers model, on the CPU, whose `forward` takes tensors of what `inputs` makes.

    `head` is what the model says of padded features: a float tensor with a row for each text. One thread may call it.
    Raises ConfigError for an architecture that can't be packed, and where the packed model answers differently than
    before; `module` is not as it was then.
    """

    def __init__(
        self, module: Any, head: Callable[[dict[str, Any]], Any], input_names: Sequence[str], length_limit: int
    ) -> None:
        encoder = PackableEncoder(module)
        id_names = tuple(name for name in input_names if name != "attention_mask")
        self.inputs = RowInputs(id_names, encoder.first_position)
        self._head = head
        self._segments: Any = None
        self._sources: Any = None
        rows = tried_rows(length_limit)
        with encoder.hidden_states() as expected:
            _run(head, padded_features(rows, input_names))
        with unpackable_is_a_config_error():
            encoder.replace(self._attention, self._unpack)
            with encoder.hidden_states() as found:
                _run(self.forward, self.inputs(rows))
        encoder.compare(expected, found, rows)

    def forward(self, features: dict[str, Any]) -> Any:
        """A row for each text, in order."""
        left = dict(features)
        self._segments, self._sources = left.pop("segments"), left.pop("sources")
        try:
            return self._head(left)
        finally:
            self._segments = self._sources = None

    def _attention(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **options: Any
    ) -> tuple[Any, None]:
        """transformers' attention interface: (rows, heads, width, size) each in, (rows, width, heads, size) out."""
        import torch

        together = self._segments[:, None, :, None] == self._segments[:, None, None, :]
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, attn_mask=together, scale=scaling).transpose(1, 2).contiguous(), None

    def _unpack(self, hidden_states: Any) -> Any:
        """(rows, width, size) as a padded rectangle, (texts, longest, size)."""
        sources = self._sources
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1]).index_select(0, sources.reshape(-1))
        return tokens.reshape(sources.shape[0], sources.shape[1], -1)


def _run(forward: Callable[[dict[str, Any]], Any], arrays: dict[str, Any]) -> None:
    import torch

    with torch.inference_mode():
        forward({name: torch.from_numpy(array) for name, array in arrays.items()})
