"""A cross-encoder engine for GPUs: a sentence-transformers CrossEncoder that computes no padding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from deployments.errors import StageError
from deployments.packed_runtime import PackedModule
from deployments.reranker import Pair, PairInputs, RerankerConfig, activated_scores, load_scorer
from deployments.row_packing import Row
from deployments.torch_runtime import set_up

logger = logging.getLogger(__name__)


class PackedScorer:
    """The scores of `CrossEncoderScorer`, from the same model in the same config; named in `reranker.engine`.

    Raises ConfigError for a model that can't be packed: see `deployments.packed_runtime`.
    """

    padding_cost = 0.0

    def __init__(self, config: RerankerConfig) -> None:
        device, dtype = set_up(config.device, config.dtype, config.num_threads)
        scorer = load_scorer(config.model, device, dtype)
        self._inputs = PairInputs(scorer, config, length_multiple=1)
        forward = partial(activated_scores, scorer)
        self._packed = PackedModule("reranker", scorer, forward, self._inputs.names, self._inputs.limit)
        logger.info("reranking with %s on %s in %s, packed", config.model, device, dtype)

    def prepare(self, items: Sequence[Pair]) -> list[tuple[Row, int] | StageError]:
        """Token ids of each pair; where a pair is too long, the longer of query and passage is cut first."""
        outcomes = self._inputs.prepare(items)
        # Here, beside the forward passes, and not between two of them.
        return [one if isinstance(one, StageError) else (_arrays(one[0]), one[1]) for one in outcomes]

    def launch(self, batch: Sequence[Row]) -> Callable[[], list[float]]:
        """Start one forward pass over the pairs."""
        wait = self._packed.launch(batch)
        return lambda: [float(score) for score in wait()]

    def run(self, batch: Sequence[Row]) -> list[float]:
        """One forward pass, waited for."""
        return self.launch(batch)()


def _arrays(row: Mapping[str, Sequence[int]]) -> Row:
    return {name: np.array(ids) for name, ids in row.items() if name != "attention_mask"}
