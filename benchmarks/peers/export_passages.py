"""Write the passages of a raglane collection with their vectors, so that another system can search the very same ones.

    python -m benchmarks.peers.export_passages --data DIR

`DIR` is the data folder of a raglane server, which need not run. The output has a line for each passage, ordered by
`_id`, in the layout of a BEIR corpus with one key more: `{"_id", "title", "text", "vector"}`. Vectors have norm 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lancedb

COLUMNS = ["id", "title", "text", "vector"]
# Of each component of a vector: a cosine changes by less than 1e-5.
DECIMALS = 6


def export_passages(data: Path, collection: str, out: Path) -> int:
    """Write the collection's passages to `out` and return their number."""
    table = lancedb.connect(data / "lancedb").open_table(collection)
    rows = table.search().select(COLUMNS).limit(table.count_rows()).to_list()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as lines:
        for row in sorted(rows, key=lambda row: str(row["id"])):
            vector = [round(component, DECIMALS) for component in row["vector"]]
            record = {"_id": row["id"], "title": row["title"], "text": row["text"], "vector": vector}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the passages of a raglane collection as JSONL.")
    parser.add_argument("--data", type=Path, required=True, help="data folder of a raglane server")
    parser.add_argument("--collection", default="scifact", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".peers/passages.jsonl"), help="(default: %(default)s)")
    args = parser.parse_args()
    print(f"wrote {export_passages(args.data, args.collection, args.out)} passages to {args.out}")


if __name__ == "__main__":
    main()
