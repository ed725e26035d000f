"""`python -m benchmarks.retrieval --beir DIR --collection NAME`: the quality of search on a BEIR test set."""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks import report
from benchmarks.asking import post
from benchmarks.command import record
from benchmarks.experiment import ExperimentError, read_queries

CONCURRENCY = 8
TIMEOUT_S = 120.0
DEEPEST_CUTOFF = 100
MODES = ("vector", "text", "hybrid")
SEARCHES = (*MODES, *(f"{mode}+rerank" for mode in MODES))
DEFAULT_SEARCHES = ("vector", "text", "hybrid", "hybrid+rerank")
_SEARCHES_HELP = f"which of {', '.join(SEARCHES)}, one after the other (default: {' '.join(DEFAULT_SEARCHES)})"

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Search:
    """How every query is searched; `k` counts chunks, of which a document may have several."""

    collection: str
    mode: str
    rerank: bool
    rewrite: bool
    k: int

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.mode}{'+rerank' if self.rerank else ''}{'' if self.rewrite else ', no sub-queries'}"

    def body(self, query: str) -> dict[str, Any]:
        return {"query": query, **asdict(self)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.retrieval",
        arguments,
        console,
        lambda: asyncio.run(_evaluate(options, console)),
        url=options.url,
        allow_remote=options.allow_remote,
        out=options.out,
        default_name=f"retrieval-{options.collection}-{options.split}",
    )


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read relevance by query and document from a tab-separated file with a header line. Raises ExperimentError."""
    qrels: dict[str, dict[str, int]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t")
            next(rows, None)
            for query_id, document_id, relevance in rows:
                qrels.setdefault(query_id, {})[document_id] = int(relevance)
    except OSError as error:
        raise ExperimentError(f"can't read the judgements {path}: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"{path}: a line is not query-id, corpus-id and score, tab-separated") from error
    if not qrels:
        raise ExperimentError(f"{path} holds no judgements")
    return qrels


def documents_by_max_score(results: Iterable[Mapping[str, Any]]) -> Scores:
    """Give each document the score of its best chunk."""
    documents: Scores = {}
    for result in results:
        document_id, score = str(result["document_id"]), float(result["score"])
        documents[document_id] = max(score, documents.get(document_id, score))
    return documents


def measure_quality(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Scores]
) -> tuple[Scores, dict[str, Scores]]:
    """Return the measures over all judged queries and those of each query; a query without results scores 0."""
    import ir_measures
    from ir_measures import RR, R, nDCG

    names = {
        nDCG @ 10: "nDCG@10",
        R @ 5: "Recall@5",
        R @ 10: "Recall@10",
        R @ 100: "Recall@100",
        RR @ 10: "MRR@10",
    }
    per_query: dict[str, Scores] = {query_id: dict.fromkeys(names.values(), 0.0) for query_id in qrels}
    for metric in ir_measures.iter_calc(list(names), qrels, run):
        per_query[metric.query_id][names[metric.measure]] = float(metric.value)
    means = {name: sum(scores[name] for scores in per_query.values()) / len(per_query) for name in names.values()}
    return means, per_query


async def search_all(
    http: httpx.AsyncClient, queries: Mapping[str, str], search: Search, console: Console
) -> dict[str, Scores]:
    """Search every query, a few at a time, and return its documents' scores. Raises ExperimentError at a failure."""
    waiting = iter(queries.items())
    run: dict[str, Scores] = {}
    with report.progress_bar(console) as progress:
        bar = progress.add_task("searching", total=len(queries), note="")

        async def work() -> None:
            for query_id, query in waiting:
                run[query_id] = documents_by_max_score(await _search(http, search.body(query)))
                progress.update(bar, advance=1)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(CONCURRENCY):
                    workers.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return run


async def _search(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await post(http, "/v1/search", body, "the search")
    try:
        answer = response.json()
        found: list[dict[str, Any]] = answer["results"]
        degraded: list[str] = answer.get("degraded") or []
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"the answer has no results: {response.text[:300]}") from error
    if degraded:
        raise ExperimentError(f"a search did without {', '.join(degraded)}; it would not show what it is meant to")
    return found


async def _evaluate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Search in every way that was asked for, measure, print, and return the result file's own part."""
    qrels = read_qrels(options.beir / "qrels" / f"{options.split}.tsv")
    texts = read_queries(options.beir / "queries.jsonl")
    if unknown := sorted(qrels.keys() - texts.keys()):
        raise ExperimentError(f"{len(unknown)} judged queries are not in queries.jsonl, the first is {unknown[0]!r}")
    queries = {query_id: texts[query_id] for query_id in qrels}
    searches = _searches(options)
    evaluated = []
    async with httpx.AsyncClient(base_url=options.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for search in searches:
            evaluated.append(await _evaluate_one(http, search, queries, qrels, console))
    title = f"{options.collection}, {options.split}: {len(qrels)} queries"
    report.print_measures(console, title, {one["name"]: one["measures"] for one in evaluated})
    return {"split": options.split, "num_queries": len(qrels), "searches": evaluated}


def _searches(options: argparse.Namespace) -> list[Search]:
    decompositions = {"on": (True,), "off": (False,), "compare": (False, True)}[options.sub_queries]
    return [
        Search(options.collection, mode, rerank == "rerank", rewrite, options.k)
        for mode, _, rerank in (search.partition("+") for search in options.searches)
        for rewrite in decompositions
    ]


async def _evaluate_one(
    http: httpx.AsyncClient,
    search: Search,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    console: Console,
) -> dict[str, Any]:
    console.print(search.name, markup=False, highlight=False)
    started_s = time.perf_counter()
    run = await search_all(http, queries, search, console)
    wall_s = time.perf_counter() - started_s
    means, per_query = measure_quality(qrels, run)
    num_documents = {query_id: len(documents) for query_id, documents in run.items()}
    num_short = _warn_if_short(console, num_documents, search.k)
    return {
        "name": search.name,
        "search": asdict(search),
        "wall_s": wall_s,
        "measures": means,
        "num_queries_short_of_documents": num_short,
        "per_query": {query_id: {"documents": num_documents[query_id], **per_query[query_id]} for query_id in qrels},
    }


def _warn_if_short(console: Console, num_documents: Mapping[str, int], k: int) -> int:
    """Return how many queries got fewer documents than the deepest measure looks at, and say so."""
    short = [count for count in num_documents.values() if count < DEEPEST_CUTOFF]
    if short:
        console.print(
            f"{len(short)} of {len(num_documents)} queries got fewer than {DEEPEST_CUTOFF} documents "
            f"(the fewest: {min(short)}), which lowers Recall@{DEEPEST_CUTOFF}: ask for more chunks than --k {k}",
            style="yellow",
            highlight=False,
        )
    return len(short)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--beir", type=Path, required=True, help="folder with queries.jsonl and qrels/SPLIT.tsv")
    parser.add_argument("--collection", required=True, help="the collection that holds the folder's corpus")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument(
        "--searches", nargs="+", choices=SEARCHES, default=DEFAULT_SEARCHES, metavar="SEARCH", help=_SEARCHES_HELP
    )
    parser.add_argument(
        "--sub-queries",
        choices=("on", "off", "compare"),
        default="on",
        help="whether the server may search sub-queries as well; compare: both ways (default: %(default)s)",
    )
    parser.add_argument("--split", default="test", help="which judgements (default: %(default)s)")
    parser.add_argument("--k", type=int, default=200, help="chunks to ask for per query (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/retrieval-….json)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
