"""How the orders of several searches become one, and how the scores of two stages do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

import numpy as np
from pydantic import Field

from deployments.contracts import Passage, SearchKind, Vector
from deployments.lexical import folded, phrase_pattern
from deployments.section import Section

# A passage that a search did not return is worth at most as much there as the last one that it did.
UNSEEN_SHARE = 0.9
# Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet" (SIGIR 2009), section 2.
RANK_CONSTANT = 60

Scores = dict[str, float]


class FusionConfig(Section):
    """How the results of several searches become one order."""

    method: Literal["scores", "ranks"] = Field(
        "scores",
        description="scores: each search's scores divided by its best, then added up; ranks: reciprocal rank fusion.",
    )
    vector_weight: float = Field(0.55, ge=0, description="Weight of the vector searches.")
    text_weight: float = Field(0.45, ge=0, description="Weight of the text searches (BM25).")
    sub_query_weight: float = Field(
        0.1,
        ge=0,
        description="Added for the best passage of a sub-query, against 1 for the question's; a quarter of it for the "
        "second, a ninth for the third, and so on.",
    )
    phrase_weight: float = Field(
        0.1, ge=0, description="Added for passages that hold every quoted phrase of the question word for word."
    )


@dataclass(frozen=True, slots=True)
class Hits:
    """What one search found: `query` is 0 for the question and counts the sub-queries from 1.

    `complete` says that there was no more to find: a passage that is not there has nothing in common with the query.
    """

    query: int
    kind: SearchKind
    passages: Sequence[Passage]
    complete: bool = False


def fuse(
    found: Sequence[Hits], config: FusionConfig, phrases: Sequence[str] = (), limit: int | None = None
) -> list[Passage]:
    """The passages found, at most `limit`, ordered by their fused score; ties by id. The hits of a single search stay
    as they are.

    Of each query the vector and the text search are joined first, so that a query's passages are comparable. On
    SciFact's train queries adding scores ranks better than adding ranks, and what a search that was cut off did not
    return is better estimated by its last score than by nothing. Of what a sub-query finds only the very best counts:
    it asks for one thing, a person or a film, and the rest of its passages tell little about the question.
    """
    found = [hits for hits in found if hits.passages]
    if len(found) <= 1 and not phrases:
        return list(found[0].passages[:limit]) if found else []
    passages = {passage.id: passage for hits in reversed(found) for passage in hits.passages}
    by_query: dict[int, list[Hits]] = {}
    for hits in found:
        by_query.setdefault(hits.query, []).append(hits)
    joined = {query: _join(parts, config) for query, parts in by_query.items()}
    fused = _add_sub_queries(joined, config)
    patterns = [phrase_pattern(phrase) for phrase in phrases]
    if patterns:
        for name, passage in passages.items():
            fused[name] += config.phrase_weight * _holds_all(passage, patterns)
    return [passages[name].scored(fused[name]) for name in _best_first(fused)[:limit]]


def _best_first(scores: Scores) -> list[str]:
    """The names by descending score, ties by name. Two stable sorts by plain keys are faster than one by pairs."""
    ordered = sorted(scores)
    ordered.sort(key=scores.__getitem__, reverse=True)
    return ordered


def _join(parts: Sequence[Hits], config: FusionConfig) -> Scores:
    """One query's passages with the weighted mean of their scores in its searches."""
    by_kind = {"vector": config.vector_weight, "text": config.text_weight}
    weights = [by_kind[hits.kind] for hits in parts]
    # Where only searches without weight found something, their order is all there is.
    total_weight = sum(weights) or sum(weights := [1.0] * len(parts))
    joined: Scores = {}
    # What a passage has that no search so far returned.
    nowhere = 0.0
    for hits, weight in zip(parts, weights, strict=True):
        scores, unseen = _scaled(hits.passages) if config.method == "scores" else _reciprocal_ranks(hits.passages)
        share = weight / total_weight
        missed = share * (min(unseen, 0.0) if hits.complete else unseen)
        gained = {passage.id: share * score for passage, score in zip(hits.passages, scores, strict=True)}
        for name in joined.keys() - gained.keys():
            joined[name] += missed
        for name, gain in gained.items():
            joined[name] = joined.get(name, nowhere) + gain
        nowhere += missed
    return joined


def _scaled(passages: Sequence[Passage]) -> tuple[list[float], float]:
    """Scores divided by the best, and what a passage that was not returned is worth."""
    scores = [passage.score for passage in passages]
    best = max(max(scores), -min(scores)) or 1.0
    scaled = [score / best for score in scores]
    return scaled, _unseen(scaled)


def _unseen(scores: Iterable[float]) -> float:
    """What a passage without a score is worth beside these."""
    last = min(scores, default=0.0)
    return min(last, UNSEEN_SHARE * last)


def _reciprocal_ranks(passages: Sequence[Passage]) -> tuple[list[float], float]:
    """(k + 1) / (k + rank), so that the first passage has 1; what was not returned has nothing."""
    return [(RANK_CONSTANT + 1) / (RANK_CONSTANT + rank) for rank in range(1, len(passages) + 1)], 0.0


def _add_sub_queries(joined: Mapping[int, Scores], config: FusionConfig) -> Scores:
    """The question's scores, and for each passage the bonus of the sub-query that ranks it best."""
    question = joined.get(0, {})
    best_ranks: dict[str, int] = {}
    for query, scores in joined.items():
        if query != 0:
            for rank, name in enumerate(_best_first(scores), start=1):
                best_ranks[name] = min(rank, best_ranks.get(name, rank))
    unseen = _unseen(question.values())
    fused = dict(question)
    for name, rank in best_ranks.items():
        fused[name] = fused.get(name, unseen) + config.sub_query_weight * rank**-2
    return fused


def _holds_all(passage: Passage, phrases: Sequence[re.Pattern[str]]) -> bool:
    text = folded(f"{passage.title}\n{passage.text}")
    return all(phrase.search(text) for phrase in phrases)


def blend(passages: Sequence[Passage], rerank_scores: Vector, weight: float, limit: int | None = None) -> list[Passage]:
    """The passages, at most `limit`, by retrieval score ÷ best retrieval score + weight × rerank score; ties by id.

    `rerank_scores` are those of the first passages; the others follow behind them in their own order, at scores that
    say so. Dividing by the maximum puts any retrieval score on the scale of a cosine or a probability. Adding, rather
    than replacing, keeps what the retrieval knew: on SciFact every rerank score alone ranks worse than the blend.
    """
    if not passages:
        return []
    retrieval = np.array([passage.score for passage in passages], dtype=np.float32)
    scaled = retrieval / (float(np.max(np.abs(retrieval))) or 1.0)
    num_reranked = len(rerank_scores)
    blended = scaled[:num_reranked] + weight * rerank_scores
    lead = float(np.max(scaled[num_reranked:], initial=-np.inf) - np.min(blended, initial=np.inf))
    others = scaled[num_reranked:] - max(0.0, lead)
    first, rest = passages[:num_reranked], passages[num_reranked:]
    ranked = (*_ranked(first, blended), *_ranked(rest, others))
    return [passage.scored(score) for score, passage in ranked[:limit]]


def _ranked(passages: Sequence[Passage], scores: Vector) -> list[tuple[float, Passage]]:
    """Each passage with its score, the best first; ties by id."""
    pairs = sorted(zip(scores.tolist(), passages, strict=True), key=lambda pair: pair[1].id)
    pairs.sort(key=itemgetter(0), reverse=True)
    return pairs
