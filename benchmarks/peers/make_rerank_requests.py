"""Write rerank requests on SciFact: each query with abstracts drawn at random, of whatever length they are.

    python -m benchmarks.peers.make_rerank_requests

One line for each request: `{"_id", "text", "documents": [...]}`; the same seed draws the same requests. What is
relevant does not matter here: a reranker takes the same time to read what is not.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiment import read_queries


def rerank_requests(
    queries: Mapping[str, str], abstracts: Sequence[str], *, num_requests: int, num_documents: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Draw `num_requests` queries, all different, each with `num_documents` different abstracts.

    Raises ValueError where there are fewer queries or abstracts than that.
    """
    chance = random.Random(seed)
    for query_id in chance.sample(sorted(queries), num_requests):
        documents = chance.sample(abstracts, num_documents)
        yield {"_id": query_id, "text": queries[query_id], "documents": documents}


def read_abstracts(path: Path) -> list[str]:
    """The texts of a BEIR corpus, in its order."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write rerank requests on SciFact.")
    parser.add_argument("--beir", type=Path, default=Path("data/scifact"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".peers/rerank_requests.jsonl"), help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=400, help="how many (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=20, help="in each of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    requests = rerank_requests(
        read_queries(args.beir / "queries.jsonl"),
        read_abstracts(args.beir / "corpus.jsonl"),
        num_requests=args.requests,
        num_documents=args.documents,
        seed=args.seed,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(request, ensure_ascii=False) + "\n" for request in requests)
    print(f"wrote {args.requests} requests to {args.out}")


if __name__ == "__main__":
    main()
