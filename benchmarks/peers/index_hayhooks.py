"""Put passages into the store that the Haystack pipeline searches. Runs in the environment of hayhooks:

    .peers/hayhooks/bin/python benchmarks/peers/index_hayhooks.py

It reads what `benchmarks.peers.export_passages` wrote and writes `INDEX.faiss` and `INDEX.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from haystack import Document
from haystack_integrations.document_stores.faiss import FAISSDocumentStore


def read_passages(path: Path) -> list[Document]:
    """One document for each line, with its title as metadata."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        Document(id=record["_id"], content=record["text"], meta={"title": record["title"]}, embedding=record["vector"])
        for record in records
    ]


def index(passages: Path, out: Path) -> int:
    """Write an exact index over the passages' vectors and return their number."""
    documents = read_passages(passages)
    store = FAISSDocumentStore(embedding_dim=len(documents[0].embedding))
    store.write_documents(documents)
    store.save(out)
    return len(documents)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Put passages into the store that the Haystack pipeline searches.")
    parser.add_argument("--passages", type=Path, default=Path(".peers/passages.jsonl"), help="(default: %(default)s)")
    parser.add_argument("--index", type=Path, default=Path(".peers/passages"), help="(default: %(default)s)")
    args = parser.parse_args()
    print(f"indexed {index(args.passages, args.index)} passages")


if __name__ == "__main__":
    main()
