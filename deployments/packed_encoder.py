"""An embedding engine for GPUs: a sentence-transformers model that computes no padding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from deployments.embedder import EmbeddedText, EmbedderConfig, EncoderInputs, Text, load_encoder, unit_vectors
from deployments.errors import StageError
from deployments.packed_runtime import PackedModule
from deployments.torch_runtime import set_up

logger = logging.getLogger(__name__)

TokenIds = NDArray[np.int64]


class PackedEncoder:
    """The vectors of `SentenceEncoder`, from the same model in the same config; named in `embedder.engine`.

    Raises ConfigError for a model that can't be packed: see `deployments.packed_runtime`.
    """

    padding_cost = 0.0

    def __init__(self, config: EmbedderConfig) -> None:
        device, dtype = set_up(config.device, config.dtype, config.num_threads)
        encoder = load_encoder(config.model, device, dtype)
        self._inputs = EncoderInputs(encoder, config, length_multiple=1)
        self.model = self._inputs.model
        forward = partial(unit_vectors, encoder)
        self._packed = PackedModule("embedder", encoder, forward, self._inputs.names, self.model.max_length_tokens)
        logger.info("embedding with %s on %s in %s, packed", self.model.name, device, dtype)

    def prepare(self, items: Sequence[Text]) -> list[tuple[TokenIds, int] | StageError]:
        """Token ids of each text, special tokens included, and how many they are."""
        outcomes = self._inputs.prepare(items)
        # Here, beside the forward passes, and not between two of them.
        return [one if isinstance(one, StageError) else (np.array(one[0]), one[1]) for one in outcomes]

    def launch(self, batch: Sequence[TokenIds]) -> Callable[[], list[EmbeddedText]]:
        """Start one forward pass; rows are L2-normalised float32."""
        wait = self._packed.launch([{"input_ids": ids} for ids in batch])
        return lambda: [EmbeddedText(vector, len(ids)) for vector, ids in zip(wait(), batch, strict=True)]

    def run(self, batch: Sequence[TokenIds]) -> list[EmbeddedText]:
        """One forward pass, waited for."""
        return self.launch(batch)()
