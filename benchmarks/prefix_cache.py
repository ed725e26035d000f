"""`python -m benchmarks.prefix_cache --queries FILE --collection NAME`: what vLLM's prefix cache spares, in tokens."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.arguments import count
from benchmarks.asking import post
from benchmarks.command import record
from benchmarks.experiment import ExperimentError, read_queries
from benchmarks.run import EXIT_OK, EXIT_USAGE

QUERIES = "ray_vllm_prefix_cache_queries_total"
HITS = "ray_vllm_prefix_cache_hits_total"

TIMEOUT_S = 120.0
METRICS_TIMEOUT_S = 10.0
# Replicas, their node's agent and this program each have a clock of their own: a figure that has stood still for three
# exports has arrived.
SETTLED_READINGS = 4
MAX_READINGS = 60
# More than this in the cache already, and part of what is found there was not put there by this run.
WARM_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: `num_questions` of the file in the order that `seed` gives, `clients` of them at a time."""

    collection: str
    num_questions: int
    seed: int
    clients: int
    max_tokens: int

    def body(self, question: str) -> dict[str, Any]:
        """The request for a question. An answer that was given before would spare the model the whole prompt."""
        return {
            "question": question,
            "collection": self.collection,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "cache": False,
        }


@dataclass(frozen=True, slots=True)
class Counters:
    """Prompt tokens since the engines started: looked up in the prefix cache (`queries`) and found there (`hits`)."""

    queries: int = 0
    hits: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.queries + other.queries, self.hits + other.hits)

    def __sub__(self, other: Counters) -> Counters:
        return Counters(self.queries - other.queries, self.hits - other.hits)

    @property
    def hit_rate(self) -> float:
        """The share of tokens that was found; 0 where none was looked up."""
        return self.hits / self.queries if self.queries else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said of one answer. `prompt_tokens` are counted by the model's tokenizer."""

    query_id: str
    latency_s: float
    prompt_tokens: int
    generator: str
    degraded: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    if options.compare:
        try:
            print_comparison(Console(), [read_result(path) for path in options.compare])
        except ExperimentError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
            return EXIT_USAGE
        return EXIT_OK
    return record(
        "benchmarks.prefix_cache",
        arguments,
        console,
        lambda: {"label": options.label, **asyncio.run(_measure(options, console))},
        url=options.url,
        allow_remote=options.allow_remote,
        out=options.out,
        default_name=f"prefix-cache-{options.collection}",
        show=lambda result: print_comparison(console, [result]),
    )


def choose_questions(texts: Mapping[str, str], limit: int, seed: int) -> dict[str, str]:
    """The first `limit` of `texts`, by id, in an order shuffled with `seed`; all of them where there are fewer."""
    ids = sorted(texts)
    random.Random(seed).shuffle(ids)
    return {query_id: texts[query_id] for query_id in ids[:limit]}


async def ask_all(
    http: httpx.AsyncClient, questions: Mapping[str, str], workload: Workload, console: Console
) -> list[Answer]:
    """Ask every question, `clients` at a time, and return the answers as they came. Raises ExperimentError."""
    waiting = iter(questions.items())
    answers: list[Answer] = []
    with report.progress_bar(console) as progress:
        bar = progress.add_task("asking", total=len(questions), note="")

        async def work() -> None:
            for query_id, question in waiting:
                answers.append(await _ask(http, query_id, workload.body(question)))
                progress.update(bar, advance=1)

        try:
            async with asyncio.TaskGroup() as clients:
                for _ in range(workload.clients):
                    clients.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return answers


async def _ask(http: httpx.AsyncClient, query_id: str, body: dict[str, Any]) -> Answer:
    started_s = time.perf_counter()
    response = await post(http, "/v1/answers", body, f"the question {query_id!r}")
    try:
        answer = _to_answer(query_id, time.perf_counter() - started_s, response.json())
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{query_id!r} was answered without its usage: {response.text[:300]}") from error
    if "generate" in answer.degraded:
        raise ExperimentError(f"the model did not write the answer to {query_id!r}; ask with fewer --clients")
    return answer


def _to_answer(query_id: str, latency_s: float, answer: Mapping[str, Any]) -> Answer:
    return Answer(
        query_id,
        latency_s,
        int(answer["usage"]["prompt_tokens"]),
        str(answer["generator"]),
        tuple(str(stage) for stage in answer["degraded"]),
    )


def parse_counters(page: str) -> Counters | None:
    """Both counters of a Prometheus page, summed over all engines; None where it is not a page that has them."""
    if not page.startswith("#"):
        return None
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in (QUERIES, HITS):
                sums[sample.name] += int(sample.value)
    return Counters(sums[QUERIES], sums[HITS]) if QUERIES in sums else None


class MetricsPages:
    """Reads the counters of a cluster from its nodes' Ray metrics pages. Ports that serve no such page may be given."""

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self._http = http
        self._urls = urls

    async def read(self) -> Counters:
        """The sum over all pages as exported last. Raises ExperimentError where no page has the counters."""
        pages = await asyncio.gather(*map(self._read, self._urls))
        found = [counters for counters in pages if counters is not None]
        if not found:
            raise ExperimentError(
                "found no metrics page with vLLM's prefix cache counters: does the server generate with vLLM? "
                "If it does, name the Ray metrics page of each node with --metrics-url"
            )
        return sum(found, Counters())

    async def settled(self, interval_s: float, at_least: int = 0) -> Counters:
        """The counters once they stand still, with no fewer than `at_least` tokens looked up.

        `interval_s` is the seconds between two exports. Raises ExperimentError where that does not come.
        """
        seen: list[Counters] = []
        for _ in range(MAX_READINGS):
            seen.append(await self.read())
            latest = seen[-SETTLED_READINGS:]
            if len(latest) == SETTLED_READINGS and len(set(latest)) == 1 and latest[-1].queries >= at_least:
                return latest[-1]
            await asyncio.sleep(interval_s)
        raise ExperimentError(
            f"vLLM's counter of tokens looked up stands at {seen[-1].queries}, where {at_least} were sent by this "
            "program alone: is its prefix cache on (engine_kwargs.enable_prefix_caching), is nobody else asking, "
            "and is the page of every node named (--metrics-url)?"
        )

    async def _read(self, url: str) -> Counters | None:
        try:
            response = await self._http.get(url, timeout=METRICS_TIMEOUT_S)
        except httpx.HTTPError:
            return None
        return parse_counters(response.text)


def find_metrics_pages(url: str) -> list[str]:
    """Where the metrics page of the server at `url` may be: at one of its Ray agent's ports. Empty if not found.

    Who listens on the server's port has the node's raylet for an ancestor, and the agent is one of its children. Only
    the node on this machine is found, and only by who may look at its processes.
    """
    port = httpx.URL(url).port or 80
    listeners = [process for process in psutil.process_iter() if port in _listening(process)]
    raylets = {raylet for listener in listeners for raylet in _raylets_above(listener)}
    agents = [agent for raylet in raylets for agent in _agents_below(raylet)]
    return [f"http://127.0.0.1:{port}/metrics" for agent in agents for port in sorted(_listening(agent))]


def _listening(process: psutil.Process) -> set[int]:
    """The TCP ports that a process listens on; none where it is another user's or has ended."""
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def _raylets_above(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [ancestor for ancestor in process.parents() if ancestor.name() == "raylet"]
    except psutil.Error:
        return []


def _agents_below(raylet: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in raylet.children() if "agent" in " ".join(child.cmdline()).lower()]
    except psutil.Error:
        return []


async def _measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ask between two readings of the counters and return the result file's own part."""
    questions = choose_questions(read_queries(options.queries), options.limit, options.seed)
    workload = Workload(options.collection, len(questions), options.seed, options.clients, options.max_tokens)
    async with httpx.AsyncClient(base_url=options.url, timeout=TIMEOUT_S, trust_env=False) as http:
        pages = MetricsPages(http, options.metrics_url or find_metrics_pages(options.url))
        before = await pages.settled(options.export_interval_s)
        started_s = time.perf_counter()
        answers = await ask_all(http, questions, workload, console)
        wall_s = time.perf_counter() - started_s
        prompt_tokens = sum(answer.prompt_tokens for answer in answers)
        after = await pages.settled(options.export_interval_s, before.queries + prompt_tokens)
    if before.queries > WARM_SHARE * prompt_tokens:
        console.print(
            f"[yellow]The engines had looked up {before.queries} tokens before: what they remember of those counts as "
            "found here. Start the server anew for each run.[/yellow]",
            highlight=False,
        )
    spared = after - before
    return {
        "workload": asdict(workload),
        "generators": sorted({answer.generator for answer in answers}),
        "degraded": dict(Counter(stage for answer in answers for stage in answer.degraded)),
        "wall_s": wall_s,
        "requests_per_s": len(answers) / wall_s,
        "prompt_tokens": prompt_tokens,
        "prefix_cache": {"before": asdict(before), **asdict(spared), "hit_rate": spared.hit_rate},
        "answers": [asdict(answer) for answer in answers],
    }


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file of this program. Raises ExperimentError."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _figures(result)
    except OSError as error:
        raise ExperimentError(f"can't read the result {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExperimentError(f"{path} is not a result of benchmarks.prefix_cache") from error
    return result


def print_comparison(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Print results side by side, and say so where they were not asked the same."""
    table = Table(title="prefix cache", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(result["label"] or result["started_at"], justify="right")
    columns = [_figures(result) for result in results]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    if any(result["workload"] != results[0]["workload"] for result in results):
        console.print("[yellow]These were not asked the same: compare their `workload`.[/yellow]", highlight=False)


def _figures(result: Mapping[str, Any]) -> dict[str, str]:
    cache = result["prefix_cache"]
    return {
        "hit rate": f"{cache['hit_rate']:.1%}",
        "tokens looked up": f"{cache['queries']:,}",
        "tokens found": f"{cache['hits']:,}",
        "tokens left to compute": f"{cache['queries'] - cache['hits']:,}",
        "prompt tokens": f"{result['prompt_tokens']:,}",
        "questions": f"{result['workload']['num_questions']:,}",
        "requests/s": f"{result['requests_per_s']:.2f}",
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_cache", description=__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--queries", type=Path, metavar="FILE", help="JSONL with _id and text: the questions")
    task.add_argument("--compare", type=Path, nargs=2, metavar="RESULT", help="print two result files side by side")
    parser.add_argument("--collection", default="docs", help="where its answers are (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--limit", type=count, default=300, help="questions to ask (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions' order (default: %(default)s)")
    parser.add_argument("--clients", type=count, default=4, help="questions at a time (default: %(default)s)")
    parser.add_argument("--max-tokens", type=count, default=8, help="length of an answer (default: %(default)s)")
    parser.add_argument("--label", default="", help="what this run is called beside others: share_prefix=true")
    parser.add_argument(
        "--metrics-url",
        action="append",
        metavar="URL",
        help="a Ray metrics page; once for each node (default: the page of the node on this machine)",
    )
    parser.add_argument(
        "--export-interval-s",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two exports of the server's metrics (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/prefix-cache-….json)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
