"""An embedding engine for CPUs: a sentence-transformers model, compiled by OpenVINO when it starts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from functools import partial

from deployments.embedder import EmbeddedText, EmbedderConfig, EncoderInputs, Text, load_encoder, unit_vectors
from deployments.errors import StageError
from deployments.openvino_runtime import LENGTH_MULTIPLE, CompiledModule, require_cpu

logger = logging.getLogger(__name__)


class OpenVinoEncoder:
    """The vectors of `SentenceEncoder`, from the same model in the same config; named in `embedder.engine`.

    Raises ConfigError where OpenVINO is not installed, can't convert the model or does not run on the device.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        self._inputs, self._compiled = _compile(config)
        self.model = self._inputs.model
        # The torch module refers to itself; without this its weights would stay until some later collection.
        gc.collect()
        logger.info("embedding with %s on OpenVINO in %s", self.model.name, self._compiled.precision)

    def prepare(self, items: Sequence[Text]) -> list[tuple[list[int], int] | StageError]:
        """Token ids of each text, special tokens included, and how many a row of them takes."""
        return self._inputs.prepare(items)

    def run(self, batch: Sequence[list[int]]) -> list[EmbeddedText]:
        """One forward pass over the padded batch; rows are L2-normalised float32."""
        vectors = self._compiled(self._inputs.pad(batch))
        return [EmbeddedText(vector, len(ids)) for vector, ids in zip(vectors, batch, strict=True)]


def _compile(config: EmbedderConfig) -> tuple[EncoderInputs, CompiledModule]:
    """Both made from one torch module, which nothing holds afterwards."""
    import torch

    require_cpu(config.device)
    encoder = load_encoder(config.model, "cpu", torch.float32)
    inputs = EncoderInputs(encoder, config, LENGTH_MULTIPLE)
    forward = partial(unit_vectors, encoder)
    return inputs, CompiledModule(encoder, forward, inputs.names, config.dtype, config.num_threads)
