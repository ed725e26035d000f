"""`python -m benchmarks.answers`: how well a server tells questions that its documents answer from those they can't."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Literal

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.asking import post
from benchmarks.command import record
from benchmarks.experiment import ExperimentError, read_queries
from benchmarks.retrieval import read_qrels

CONCURRENCY = 4
TIMEOUT_S = 120.0

# Steps finer than some hundreds of questions can tell apart, and values that one would write into a config.
THRESHOLDS = tuple(step / 100 for step in range(101))
# A server that refuses at more than this has a threshold of its own. Without one it refuses at about 0, where nothing
# was retrieved or the best score is negative.
MAX_REFUSED_CONFIDENCE = 0.05

Kind = Literal["answerable", "unanswerable"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the half (0 or 1) of the questions it is in, and the documents that are judged to answer it."""

    id: str
    kind: Kind
    half: int
    text: str
    supporting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server said. `cited` holds each document once, `confidence` is from 0 to 1."""

    found: bool
    confidence: float
    cited: tuple[str, ...]
    degraded: tuple[str, ...]
    generator: str


@dataclass(frozen=True, slots=True)
class Row:
    """A question and what became of it."""

    question: Question
    reply: Reply

    @property
    def score(self) -> float:
        """What thresholds are held against: the confidence, and less than any threshold where nothing was found."""
        return self.reply.confidence if self.reply.found else -1.0

    @property
    def cites_support(self) -> bool:
        return not set(self.question.supporting).isdisjoint(self.reply.cited)

    def to_json(self) -> dict[str, Any]:
        return {
            "question_id": self.question.id,
            "kind": self.question.kind,
            "half": self.question.half,
            "supporting": self.question.supporting,
            **asdict(self.reply),
        }


@dataclass(frozen=True, slots=True)
class Quality:
    """What a threshold makes of the answers: an answer counts as found if its confidence is no less than that.

    All but the threshold are shares, 0 to 1. `found_answerable` and `supported` are of the answerable questions:
    those that were answered, and those whose answer cites at least one document that supports it.
    `cites_support_of_found` is the latter of the former, None where there are none. `refused` is of the unanswerable
    questions. `balance` is the harmonic mean of `found_answerable` and `refused`.
    """

    threshold: float
    found_answerable: float
    supported: float
    cites_support_of_found: float | None
    refused: float
    balance: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A threshold chosen on one half of the questions, and what it does there (`seen`) and on the other (`unseen`).

    `curve` and `area_under_roc` are of the unseen half.
    """

    chosen_on_half: int
    threshold: float
    seen: Quality
    unseen: Quality
    area_under_roc: float
    curve: tuple[Quality, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.answers",
        arguments,
        console,
        lambda: asyncio.run(_evaluate(options, console)),
        url=options.url,
        allow_remote=options.allow_remote,
        out=options.out,
        default_name=f"answers-{options.collection}",
    )


def read_questions(beir: Path, split: str, kind: Kind, limit: int | None, seed: int) -> list[Question]:
    """Draw questions from a BEIR folder: shuffled with `seed`, at most `limit`, and dealt out to both halves in turn.

    A smaller limit draws some of the same questions into the same halves. Answerable are the questions with a judgement
    above 0; of another folder's, which stay unanswerable, all that are judged in any way are taken. Raises
    ExperimentError where files can't be read or there is no question for each half.
    """
    qrels = read_qrels(beir / "qrels" / f"{split}.tsv")
    texts = read_queries(beir / "queries.jsonl")
    if unknown := sorted(qrels.keys() - texts.keys()):
        raise ExperimentError(f"{len(unknown)} judged queries are not in {beir}/queries.jsonl, such as {unknown[0]!r}")
    if kind == "answerable":
        supporting = {query_id: _relevant(judged) for query_id, judged in qrels.items() if _relevant(judged)}
    else:
        supporting = dict.fromkeys(qrels, ())
    ids = sorted(supporting)
    random.Random(seed).shuffle(ids)
    ids = ids[:limit]
    if len(ids) < 2:
        raise ExperimentError(f"{beir}, {split}: {len(ids)} {kind} question(s), but each half needs one")
    return [Question(id_, kind, index % 2, texts[id_], supporting[id_]) for index, id_ in enumerate(ids)]


def read_reply(body: Any) -> Reply:
    """Read the body of an answer. Raises ExperimentError where it is no answer or comes without a confidence."""
    try:
        return Reply(
            found=bool(body["found"]),
            confidence=_confidence(body),
            cited=tuple(dict.fromkeys(str(citation["document_id"]) for citation in body["citations"])),
            degraded=tuple(map(str, body["degraded"])),
            generator=str(body["generator"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"this is no answer ({error!r}): {str(body)[:300]}") from error


def _confidence(body: Mapping[str, Any]) -> float:
    value = body["confidence"]
    if value is None or not 0 <= float(value) <= 1:
        raise ExperimentError(
            f"the generator {body['generator']!r} gives {value} for its confidence and not a number from 0 to 1; "
            "this benchmark needs one that can tell, such as the extractive answerer"
        )
    return float(value)


def refuse_threshold_of_server(reply: Reply) -> None:
    """Raise ExperimentError for an answer that the server held back although its documents hold something.

    What would have been cited is then unknown, and so is everything at thresholds below the server's own.
    """
    if not reply.found and reply.confidence > MAX_REFUSED_CONFIDENCE:
        raise ExperimentError(
            f"an answer with confidence {reply.confidence:.2f} was held back by the server's own threshold; for this "
            "benchmark set it to 0 (generator.extractive.min_score in the server's config)"
        )


def measure(rows: Sequence[Row], threshold: float) -> Quality:
    """Judge the answers at one threshold. `rows` hold both kinds of question."""
    answerable = [row for row in rows if row.question.kind == "answerable"]
    unanswerable = [row for row in rows if row.question.kind == "unanswerable"]
    found = [row for row in answerable if row.score >= threshold]
    num_supported = sum(row.cites_support for row in found)
    found_answerable = len(found) / len(answerable)
    refused = sum(row.score < threshold for row in unanswerable) / len(unanswerable)
    return Quality(
        threshold=threshold,
        found_answerable=found_answerable,
        supported=num_supported / len(answerable),
        cites_support_of_found=num_supported / len(found) if found else None,
        refused=refused,
        balance=float(harmonic_mean((found_answerable, refused))),
    )


def measure_all(rows: Sequence[Row]) -> tuple[Quality, ...]:
    """Judge the answers at every threshold, ascending."""
    return tuple(measure(rows, threshold) for threshold in THRESHOLDS)


def choose(curve: Sequence[Quality]) -> float:
    """Return the threshold of the best balance; of equals the lowest, which answers more. `curve` ascends.

    The balance is a harmonic mean, not Youden's index (the sum of the shares less 1), because a server has to be good
    at both: the sum would as soon have 0.99 and 0.51 as 0.75 and 0.75. Either way it does not matter how many questions
    of each kind there are. What is held against the refused questions are the answered ones, not `supported`: a
    threshold decides whether an answer is given, not what it cites.
    """
    return max(curve, key=lambda quality: quality.balance).threshold


def area_under_roc(rows: Sequence[Row]) -> float:
    """Return the share of all pairs of an answerable and an unanswerable question in which the former scores higher.

    A tie counts one half, so that 0.5 is chance (the Mann-Whitney statistic). `rows` hold both kinds of question.
    """
    answerable = np.array([row.score for row in rows if row.question.kind == "answerable"])
    unanswerable = np.sort([row.score for row in rows if row.question.kind == "unanswerable"])
    below = np.searchsorted(unanswerable, answerable, side="left")
    not_above = np.searchsorted(unanswerable, answerable, side="right")
    return float(np.mean(below + not_above) / 2 / len(unanswerable))


def try_halves(rows: Sequence[Row]) -> tuple[Trial, Trial]:
    """Choose on half 0 and judge on half 1, then the other way round: how far they differ shows what chance does."""
    halves = [[row for row in rows if row.question.half == half] for half in (0, 1)]
    return _trial(0, halves[0], halves[1]), _trial(1, halves[1], halves[0])


def _trial(chosen_on_half: int, seen: Sequence[Row], unseen: Sequence[Row]) -> Trial:
    threshold = choose(measure_all(seen))
    return Trial(
        chosen_on_half=chosen_on_half,
        threshold=threshold,
        seen=measure(seen, threshold),
        unseen=measure(unseen, threshold),
        area_under_roc=area_under_roc(unseen),
        curve=measure_all(unseen),
    )


async def ask_all(
    http: httpx.AsyncClient, questions: Sequence[Question], fields: Mapping[str, Any], console: Console
) -> list[Row]:
    """Ask every question, a few at a time, and return the rows in the questions' order.

    `fields` go with each of them. Raises ExperimentError at the first answer that can't be used.
    """
    waiting = iter(enumerate(questions))
    replies: dict[int, Reply] = {}
    with report.progress_bar(console) as progress:
        bar = progress.add_task("asking", total=len(questions), note="")

        async def work() -> None:
            for index, question in waiting:
                reply = read_reply(await _post(http, {"question": question.text, **fields}))
                refuse_threshold_of_server(reply)
                replies[index] = reply
                progress.update(bar, advance=1)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(CONCURRENCY):
                    workers.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return [Row(question, replies[index]) for index, question in enumerate(questions)]


async def _post(http: httpx.AsyncClient, body: Mapping[str, Any]) -> Any:
    response = await post(http, "/v1/answers", body, "the question")
    try:
        return response.json()
    except ValueError as error:
        raise ExperimentError(f"an answer is not JSON: {response.text[:300]}") from error


async def _evaluate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ask, judge, print, and return the result file's own part."""
    questions = _draw(options)
    fields = {"collection": options.collection, "rewrite": options.rewrite, "cache": False}
    started_s = time.perf_counter()
    async with httpx.AsyncClient(base_url=options.url, timeout=TIMEOUT_S, trust_env=False) as http:
        rows = await ask_all(http, questions, fields, console)
    wall_s = time.perf_counter() - started_s
    generator = _only_generator(rows)
    trials = try_halves(rows)
    area = area_under_roc(rows)
    num_degraded = sum(bool(row.reply.degraded) for row in rows)
    console.print(
        f"{options.collection}: {len(rows)} questions, {wall_s:.1f} s; "
        f"all of them together: area under the ROC curve of the confidence {area:.4f}",
        highlight=False,
    )
    console.print(_table(trials))
    _warn(console, rows, num_degraded)
    return {
        "asked": fields,
        "split": options.split,
        "unanswerable_split": options.unanswerable_split,
        "limit": options.limit,
        "seed": options.seed,
        "num_questions": Counter(question.kind for question in questions),
        "wall_s": wall_s,
        "generator": generator,
        "num_degraded": num_degraded,
        "area_under_roc": area,
        "trials": [asdict(trial) for trial in trials],
        "rows": [row.to_json() for row in rows],
    }


def _draw(options: argparse.Namespace) -> list[Question]:
    if options.beir.resolve() == options.unanswerable_beir.resolve():
        raise ExperimentError("--beir and --unanswerable-beir are the same folder, whose questions can be answered")
    limit, seed = options.limit, options.seed
    return [
        *read_questions(options.beir, options.split, "answerable", limit, seed),
        *read_questions(options.unanswerable_beir, options.unanswerable_split, "unanswerable", limit, seed),
    ]


def _relevant(judged: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(document_id for document_id, relevance in judged.items() if relevance > 0)


def _only_generator(rows: Sequence[Row]) -> str:
    """Return who wrote the answers. Raises ExperimentError for several, whose confidences are of different scales."""
    answers = Counter(row.reply.generator for row in rows)
    if len(answers) > 1:
        counts = ", ".join(f"{count} by {name}" for name, count in answers.most_common())
        raise ExperimentError(f"one threshold can't serve several generators, but there were answers {counts}")
    return next(iter(answers))


def _warn(console: Console, rows: Sequence[Row], num_degraded: int) -> None:
    """Say what makes the figures doubtful."""
    if num_degraded:
        stages = Counter(stage for row in rows for stage in row.reply.degraded)
        left_out = ", ".join(f"{stage}: {count}" for stage, count in stages.most_common())
        console.print(
            f"{num_degraded} of {len(rows)} answers are degraded ({left_out}): is the server overloaded?",
            style="yellow",
            highlight=False,
        )
    if not any(row.cites_support for row in rows):
        console.print(
            "no answer cites a document that supports it: does the collection hold the corpus of --beir, with its ids?",
            style="yellow",
            highlight=False,
        )


def _table(trials: Sequence[Trial]) -> Table:
    table = Table(title="at the threshold that one half chose, on the other half", title_justify="left")
    table.add_column("")
    for trial in trials:
        table.add_column(f"half {trial.chosen_on_half} chose", justify="right")
    table.add_row("threshold", *(f"{trial.threshold:.2f}" for trial in trials))
    measures = ("found_answerable", "supported", "cites_support_of_found", "refused", "balance")
    for name in measures:
        table.add_row(name, *(_share(getattr(trial.unseen, name)) for trial in trials))
    table.add_row("area_under_roc", *(_share(trial.area_under_roc) for trial in trials))
    return table


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--beir", type=Path, required=True, help="folder with queries.jsonl and qrels/SPLIT.tsv")
    parser.add_argument("--collection", required=True, help="the collection that holds the folder's corpus")
    parser.add_argument(
        "--unanswerable-beir", type=Path, required=True, help="such a folder about something else, asked of the same"
    )
    parser.add_argument("--split", default="test", help="which judgements (default: %(default)s)")
    parser.add_argument("--unanswerable-split", default="test", help="which judgements there (default: %(default)s)")
    parser.add_argument("--limit", metavar="N", type=_count, help="ask at most N questions of each folder")
    parser.add_argument("--seed", type=int, default=0, help="draws and halves the questions (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument(
        "--rewrite",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the server search sub-queries beside the question",
    )
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/answers-….json)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    """Read a number of questions."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 2, one question for each half")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
