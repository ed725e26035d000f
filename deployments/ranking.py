"""How the scores of two stages become one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deployments.contracts import Passage, Vector


def blend(passages: Sequence[Passage], rerank_scores: Vector, weight: float) -> list[Passage]:
    """Order passages by retrieval score ÷ best retrieval score + weight × rerank score; ties by id.

    Dividing by the maximum puts any retrieval score on the scale of a cosine or a probability. Adding, rather than
    replacing, keeps what the retrieval knew: on SciFact every rerank score alone ranks worse than the blend.
    """
    if not passages:
        return []
    retrieval = np.array([passage.score for passage in passages], dtype=np.float32)
    best = float(np.max(np.abs(retrieval))) or 1.0
    blended = retrieval / best + weight * rerank_scores
    scored = [replace(passage, score=float(score)) for passage, score in zip(passages, blended, strict=True)]
    return sorted(scored, key=lambda passage: (-passage.score, passage.id))
