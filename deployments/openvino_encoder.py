"""An embedding engine for CPUs: a sentence-transformers model, compiled by OpenVINO when it starts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from functools import partial

from deployments.embedder import EmbeddedText, EmbedderConfig, EncoderInputs, Text, load_encoder, unit_vectors
from deployments.errors import StageError
from deployments.openvino_runtime import CompiledTexts, require_cpu

logger = logging.getLogger(__name__)


class OpenVinoEncoder:
    """The vectors of `SentenceEncoder`, from the same model in the same config; named in `embedder.engine`.

    Raises ConfigError where OpenVINO is not installed, can't convert the model or does not run on the device.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        self._inputs, self._compiled = _compile(config)
        self.model = self._inputs.model
        self.padding_cost = self._compiled.padding_cost
        # The torch module refers to itself; without this its weights would stay until some later collection.
        gc.collect()
        logger.info("embedding with %s on OpenVINO in %s", self.model.name, self._compiled.precision)

    def prepare(self, items: Sequence[Text]) -> list[tuple[list[int], int] | StageError]:
        """Token ids of each text, special tokens included, and how many they are."""
        return self._inputs.prepare(items)

    def run(self, batch: Sequence[list[int]]) -> list[EmbeddedText]:
        """One forward pass; vectors are L2-normalised float32."""
        vectors = self._compiled([{"input_ids": ids} for ids in batch])
        return [EmbeddedText(vector, len(ids)) for vector, ids in zip(vectors, batch, strict=True)]


def _compile(config: EmbedderConfig) -> tuple[EncoderInputs, CompiledTexts]:
    """Both made from one torch module, which nothing holds afterwards."""
    import torch

    require_cpu(config.device)
    load = partial(load_encoder, config.model, "cpu", torch.float32)
    encoder = load()
    inputs = EncoderInputs(encoder, config, length_multiple=1)
    limit = inputs.model.max_length_tokens
    return inputs, CompiledTexts(encoder, load, unit_vectors, inputs.names, limit, config.dtype, config.num_threads)
