"""A cross-encoder engine for CPUs: a sentence-transformers CrossEncoder, compiled by OpenVINO when it starts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from functools import partial

from deployments.errors import StageError
from deployments.openvino_runtime import CompiledTexts, require_cpu
from deployments.reranker import Pair, PairInputs, RerankerConfig, activated_scores, load_scorer

logger = logging.getLogger(__name__)


class OpenVinoScorer:
    """The scores of `CrossEncoderScorer`, from the same model in the same config; named in `reranker.engine`.

    Raises ConfigError where OpenVINO is not installed, can't convert the model or does not run on the device.
    """

    def __init__(self, config: RerankerConfig) -> None:
        self._inputs, self._compiled = _compile(config)
        self.padding_cost = self._compiled.padding_cost
        # The torch module refers to itself; without this its weights would stay until some later collection.
        gc.collect()
        logger.info("reranking with %s on OpenVINO in %s", config.model, self._compiled.precision)

    def prepare(self, items: Sequence[Pair]) -> list[tuple[dict[str, list[int]], int] | StageError]:
        """Token ids of each pair; where a pair is too long, the longer of query and passage is cut first."""
        return self._inputs.prepare(items)

    def run(self, batch: Sequence[dict[str, list[int]]]) -> list[float]:
        """One forward pass over the pairs."""
        scores: list[float] = self._compiled(batch).tolist()
        return scores


def _compile(config: RerankerConfig) -> tuple[PairInputs, CompiledTexts]:
    """Both made from one torch module, which nothing holds afterwards."""
    import torch

    require_cpu(config.device)
    load = partial(load_scorer, config.model, "cpu", torch.float32)
    scorer = load()
    inputs = PairInputs(scorer, config, length_multiple=1)
    compiled = CompiledTexts(
        scorer, load, activated_scores, inputs.names, inputs.limit, config.dtype, config.num_threads
    )
    return inputs, compiled
