"""The quality of answers: what a threshold makes of them, how it is chosen, and the whole command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks import answers
from benchmarks.answers import (
    THRESHOLDS,
    Kind,
    Question,
    Reply,
    Row,
    area_under_roc,
    choose,
    measure,
    measure_all,
    read_questions,
    read_reply,
    refuse_threshold_of_server,
    try_halves,
)
from benchmarks.experiment import ExperimentError
from benchmarks.run import EXIT_OK, EXIT_USAGE
from tests.http_server import listening_in_thread


def row(kind: Kind, confidence: float, cited: str = "", *, found: bool = True, half: int = 0) -> Row:
    supporting = ("gold", "also gold") if kind == "answerable" else ()
    question = Question("q", kind, half, "?", supporting)
    return Row(question, Reply(found, confidence, tuple(cited.split(",")) if cited else (), (), "extractive"))


def answerable(confidence: float, cited: str = "gold", **changes: Any) -> Row:
    return row("answerable", confidence, cited, **changes)


def unanswerable(confidence: float, **changes: Any) -> Row:
    return row("unanswerable", confidence, "other", **changes)


def test_a_threshold_is_judged_by_what_it_answers_supports_and_refuses() -> None:
    rows = [
        answerable(0.9, "other,also gold"),
        answerable(0.7, "other"),
        answerable(0.5),
        answerable(0.2),
        *map(unanswerable, (0.6, 0.4, 0.1)),
    ]
    quality = measure(rows, 0.5)
    assert quality.threshold == 0.5
    assert quality.found_answerable == pytest.approx(3 / 4)
    assert quality.supported == pytest.approx(2 / 4)
    assert quality.cites_support_of_found == pytest.approx(2 / 3)
    assert quality.refused == pytest.approx(2 / 3)
    assert quality.balance == pytest.approx(2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3))


def test_at_threshold_zero_only_what_the_server_itself_refused_is_not_found() -> None:
    quality = measure([answerable(0.0), answerable(0.0, "", found=False), unanswerable(0.0, found=False)], 0.0)
    assert (quality.found_answerable, quality.refused) == (0.5, 1.0)


def test_what_the_server_refused_is_found_at_no_threshold_whatever_its_confidence() -> None:
    rows = [answerable(0.04, "", found=False), unanswerable(0.04, found=False)]
    assert {(quality.found_answerable, quality.refused) for quality in measure_all(rows)} == {(0.0, 1.0)}


def test_where_nothing_was_found_there_is_no_share_of_it_that_cites_support() -> None:
    quality = measure([answerable(0.3), unanswerable(0.3)], 0.31)
    assert quality.cites_support_of_found is None
    assert (quality.supported, quality.balance) == (0.0, 0.0)


rows_of_both_kinds = st.tuples(
    st.lists(st.builds(answerable, st.floats(0, 1), st.sampled_from(["gold", "other", ""])), min_size=1),
    st.lists(st.builds(unanswerable, st.floats(0, 1), found=st.booleans()), min_size=1),
).map(lambda kinds: kinds[0] + kinds[1])


@given(rows_of_both_kinds)
def test_a_higher_threshold_answers_no_more_and_refuses_no_less(rows: list[Row]) -> None:
    curve = measure_all(rows)
    assert [quality.threshold for quality in curve] == sorted(THRESHOLDS)
    for lower, higher in pairwise(curve):
        assert higher.found_answerable <= lower.found_answerable
        assert higher.supported <= lower.supported
        assert higher.refused >= lower.refused


@given(rows_of_both_kinds)
def test_no_threshold_has_a_better_balance_than_the_chosen_one_and_no_lower_one_is_as_good(rows: list[Row]) -> None:
    curve = measure_all(rows)
    threshold = choose(curve)
    best = measure(rows, threshold).balance
    assert all(quality.balance <= best for quality in curve)
    assert all(quality.balance < best for quality in curve if quality.threshold < threshold)


def test_of_equally_good_thresholds_the_lowest_is_chosen() -> None:
    assert choose(measure_all([answerable(0.8), unanswerable(0.3)])) == 0.31


def test_being_good_at_both_is_better_than_a_greater_sum_of_the_shares() -> None:
    # At 0.5: 6 of 10 answered, 7 of 10 refused, together 1.3. At 0.2: 10 of 10 and 4 of 10, together 1.4.
    rows = [answerable(0.6)] * 6 + [answerable(0.2)] * 4 + [unanswerable(0.9)] * 3
    rows += [unanswerable(0.2)] * 3 + [unanswerable(0.1)] * 4
    assert choose(measure_all(rows)) == pytest.approx(0.21)
    assert measure(rows, 0.2).refused + measure(rows, 0.2).found_answerable == pytest.approx(1.4)
    assert measure(rows, 0.21).refused + measure(rows, 0.21).found_answerable == pytest.approx(1.3)


def test_how_many_questions_there_are_of_a_kind_does_not_move_the_choice() -> None:
    few, many = [answerable(0.4), answerable(0.7)], [unanswerable(0.3), unanswerable(0.5)]
    assert choose(measure_all(few + many)) == choose(measure_all(few + many * 20))


@pytest.mark.parametrize(
    ("scores", "others", "expected"),
    [
        ([0.8, 0.9], [0.1, 0.7], 1.0),
        ([0.1, 0.2], [0.3], 0.0),
        ([0.5, 0.5], [0.5], 0.5),
        ([0.9, 0.4], [0.6, 0.4, 0.2], (3 + 1.5) / 6),
    ],
)
def test_the_area_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves(
    scores: list[float], others: list[float], expected: float
) -> None:
    rows = [*map(unanswerable, others), *map(answerable, scores)]
    assert area_under_roc(rows) == pytest.approx(expected)


def test_refused_questions_rank_below_all_answers_and_tie_with_each_other() -> None:
    rows = [answerable(0.0), answerable(0.03, "", found=False), unanswerable(0.05, found=False)]
    assert area_under_roc(rows) == pytest.approx((1 + 0.5) / 2)


def test_each_half_is_judged_at_the_threshold_of_the_other() -> None:
    first = [answerable(0.8, half=0), unanswerable(0.3, half=0)]
    second = [answerable(0.5, "other", half=1), unanswerable(0.4, half=1)]
    on_first, on_second = try_halves(first + second)
    assert (on_first.chosen_on_half, on_first.threshold) == (0, 0.31)
    assert (on_second.chosen_on_half, on_second.threshold) == (1, 0.41)
    assert on_first.seen == measure(first, 0.31)
    assert on_first.unseen == measure(second, 0.31)
    assert (on_first.unseen.found_answerable, on_first.unseen.supported, on_first.unseen.refused) == (1.0, 0.0, 0.0)
    assert on_second.unseen == measure(first, 0.41)
    assert on_second.curve == measure_all(first)
    assert on_first.area_under_roc == on_second.area_under_roc == 1.0


def beir(folder: Path, judgements: Mapping[str, Mapping[str, int]], split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = [json.dumps({"_id": query_id, "text": f"question {query_id}"}) for query_id in judgements]
    (folder / "queries.jsonl").write_text("\n".join(texts), encoding="utf-8")
    lines = [
        f"{query_id}\t{id_}\t{score}\n" for query_id, judged in judgements.items() for id_, score in judged.items()
    ]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return folder


def many(count: int) -> dict[str, dict[str, int]]:
    return {str(number): {f"d{number}": 1} for number in range(count)}


def halves_of(questions: list[Question]) -> dict[str, int]:
    return {question.id: question.half for question in questions}


def test_only_documents_judged_above_zero_support_and_questions_without_any_are_not_answerable(tmp_path: Path) -> None:
    folder = beir(tmp_path, {"1": {"a": 1, "b": 0, "c": 2}, "2": {"a": 0}, "3": {"b": 1}})
    questions = {question.id: question for question in read_questions(folder, "test", "answerable", None, 0)}
    assert {id_: question.supporting for id_, question in questions.items()} == {"1": ("a", "c"), "3": ("b",)}
    assert questions["3"].text == "question 3"


def test_of_another_folder_every_judged_question_is_taken_and_nothing_supports_it(tmp_path: Path) -> None:
    folder = beir(tmp_path, {"1": {"a": 1}, "2": {"a": 0}})
    questions = read_questions(folder, "test", "unanswerable", None, 0)
    assert {(question.id, question.supporting, question.kind) for question in questions} == {
        ("1", (), "unanswerable"),
        ("2", (), "unanswerable"),
    }


@pytest.mark.parametrize("count", [2, 7, 40])
def test_the_halves_are_as_large_as_each_other(tmp_path: Path, count: int) -> None:
    sizes = Counter(halves_of(read_questions(beir(tmp_path, many(count)), "test", "answerable", None, 3)).values())
    assert sizes[0] + sizes[1] == count
    assert 0 <= sizes[0] - sizes[1] <= 1


def test_the_seed_alone_decides_the_halves_and_the_draw(tmp_path: Path) -> None:
    folder = beir(tmp_path / "a", many(40))
    reversed_folder = beir(tmp_path / "b", dict(reversed(many(40).items())))
    draws = [read_questions(source, "test", "answerable", 20, 3) for source in (folder, folder, reversed_folder)]
    assert draws[0] == draws[1] == draws[2]
    other = read_questions(folder, "test", "answerable", 20, 4)
    assert halves_of(other).keys() != halves_of(draws[0]).keys()


def test_a_limit_draws_some_of_the_same_questions_into_the_same_halves(tmp_path: Path) -> None:
    folder = beir(tmp_path, many(40))
    whole, some = (halves_of(read_questions(folder, "test", "answerable", limit, 3)) for limit in (None, 9))
    assert len(some) == 9
    assert some.items() <= whole.items()


def test_a_single_question_can_not_be_halved(tmp_path: Path) -> None:
    folder = beir(tmp_path, {"1": {"a": 1}, "2": {"a": 0}})
    with pytest.raises(ExperimentError, match="1 answerable question"):
        read_questions(folder, "test", "answerable", None, 0)


def test_a_judged_question_without_a_text_is_refused(tmp_path: Path) -> None:
    folder = beir(tmp_path, many(2))
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as judgements:
        judgements.write("lost\ta\t1\n")
    with pytest.raises(ExperimentError, match="'lost'"):
        read_questions(folder, "test", "answerable", None, 0)


def reply_body(confidence: float | None, *cited: str, found: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "answer": "It is so [1]." if found else "Not found in the documents.",
        "citations": [{"number": number, "document_id": document_id} for number, document_id in enumerate(cited, 1)],
        "found": found,
        "confidence": confidence,
        "degraded": [],
        "generator": "extractive",
        **changes,
    }


def test_a_document_cited_twice_counts_once_and_its_id_is_text() -> None:
    body = reply_body(0.5, "b", "a", "b", degraded=["rerank"])
    body["citations"].append({"number": 4, "document_id": 7})
    assert read_reply(body) == Reply(True, 0.5, ("b", "a", "7"), ("rerank",), "extractive")


@pytest.mark.parametrize("confidence", [None, 1.5, -0.1, float("nan")])
def test_a_generator_that_tells_no_confidence_is_refused_by_name(confidence: float | None) -> None:
    with pytest.raises(ExperimentError, match=r"'small-llm' gives .* for its confidence"):
        read_reply(reply_body(confidence, generator="small-llm"))


@pytest.mark.parametrize("body", [{}, [], None, "text", {"found": True}, reply_body(0.5) | {"citations": [{}]}])
def test_what_is_no_answer_is_refused(body: Any) -> None:
    with pytest.raises(ExperimentError, match="this is no answer"):
        read_reply(body)


def test_an_answer_held_back_by_the_server_s_own_threshold_is_refused_with_the_setting_s_name() -> None:
    with pytest.raises(ExperimentError, match=r"confidence 0\.30 .*generator\.extractive\.min_score"):
        refuse_threshold_of_server(read_reply(reply_body(0.3, found=False)))


@pytest.mark.parametrize(("confidence", "found"), [(0.0, False), (0.05, False), (0.3, True), (0.0, True)])
def test_a_server_without_a_threshold_may_find_nothing_at_no_confidence(confidence: float, found: bool) -> None:
    refuse_threshold_of_server(read_reply(reply_body(confidence, found=found)))


class Server:
    """Answers each question with what stands in `replies`; the first `num_shed` requests are told to come back."""

    def __init__(self) -> None:
        self.replies: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.num_shed = 0
        self.app = Starlette(routes=[Route("/v1/answers", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if len(self.asked) <= self.num_shed:
            return JSONResponse({"error": {"message": "too much"}}, 429, {"Retry-After": "0"})
        if body["question"] not in self.replies:
            return JSONResponse({"error": {"message": f"no reply to {body['question']}"}}, 404)
        return JSONResponse(self.replies[body["question"]])


class Command:
    """The command line on two folders of four questions, against a server that tells them apart."""

    def __init__(self, folder: Path) -> None:
        self.server = Server()
        beir(folder / "known", {f"k{number}": {"gold": 1} for number in range(4)})
        beir(folder / "alien", {f"a{number}": {"x": 1} for number in range(4)}, "train")
        for number in range(4):
            self.server.replies[f"question k{number}"] = reply_body(0.6, "gold" if number else "other")
            self.server.replies[f"question a{number}"] = reply_body(0.2, "other")
        self._folder = folder

    def run(self, *more: str) -> int:
        with listening_in_thread(self.server.app) as url:
            return answers.main([*self.options("alien"), "--url", url, *more])

    def options(self, unanswerable: str) -> list[str]:
        folders = ["--beir", f"{self._folder}/known", "--unanswerable-beir", f"{self._folder}/{unanswerable}"]
        out = ["--out", f"{self._folder}/result.json"]
        return [*folders, "--unanswerable-split", "train", "--collection", "known", *out]

    def result(self) -> Any:
        return json.loads((self._folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_the_command_leaves_every_row_and_what_each_half_chose(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run("--seed", "5") == EXIT_OK
    result = command.result()
    assert {"schema_version", "commit", "versions", "hardware", "started_at"} <= result.keys()
    assert result["command"].startswith("python -m benchmarks.answers --beir ")
    assert (result["seed"], result["generator"], result["area_under_roc"]) == (5, "extractive", 1.0)
    assert result["num_questions"] == {"answerable": 4, "unanswerable": 4}
    assert [trial["threshold"] for trial in result["trials"]] == [0.21, 0.21]
    assert [trial["unseen"]["refused"] for trial in result["trials"]] == [1.0, 1.0]
    assert sorted(trial["unseen"]["supported"] for trial in result["trials"]) == [0.5, 1.0]
    rows = {(row["kind"], row["question_id"]): row for row in result["rows"]}
    assert len(rows) == 8
    assert rows["answerable", "k0"].items() >= {
        "supporting": ["gold"], "cited": ["other"], "found": True, "confidence": 0.6,
    }.items()  # fmt: skip
    assert rows["unanswerable", "a1"]["supporting"] == []
    printed = capsys.readouterr().err
    assert "cites_support_of_found" in printed
    assert "0.21" in printed


@pytest.mark.parametrize(("option", "rewrite"), [((), True), (("--no-rewrite",), False)])
def test_every_question_is_asked_of_the_collection_and_not_of_the_cache(
    command: Command, option: tuple[str, ...], rewrite: bool
) -> None:
    assert command.run("--limit", "2", *option) == EXIT_OK
    fields = {"collection": "known", "rewrite": rewrite, "cache": False}
    assert len(command.server.asked) == 4
    assert all(body == {"question": body["question"], **fields} for body in command.server.asked)
    assert command.result()["asked"] == fields


def test_a_server_that_is_busy_is_asked_again(command: Command) -> None:
    command.server.num_shed = 3
    assert command.run() == EXIT_OK
    assert len(command.server.asked) == 8 + 3
    assert len(command.result()["rows"]) == 8


def test_a_server_that_stays_busy_ends_the_benchmark(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.server.num_shed = 1_000
    assert command.run() == EXIT_USAGE
    assert "429" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (reply_body(0.3, found=False), "min_score"),
        (reply_body(None), "confidence"),
        (reply_body(0.7, generator="fallback"), "several generators"),
        ({"answer": "yes"}, "this is no answer"),
    ],
)
def test_an_answer_that_would_spoil_the_result_ends_the_benchmark_without_one(
    command: Command, capsys: pytest.CaptureFixture[str], reply: dict[str, Any], message: str
) -> None:
    command.server.replies["question a3"] = reply
    assert command.run() == EXIT_USAGE
    assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(FileNotFoundError):
        command.result()


def test_an_error_of_the_server_ends_the_benchmark_with_its_message(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    del command.server.replies["question k2"]
    assert command.run() == EXIT_USAGE
    assert "no reply to question k2" in " ".join(capsys.readouterr().err.split())


def test_a_server_that_is_not_there_is_told_of(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert answers.main([*command.options("alien"), "--url", "http://127.0.0.1:1"]) == EXIT_USAGE
    assert "is the server up?" in " ".join(capsys.readouterr().err.split())


def test_degraded_answers_are_counted_and_told_of(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command.server.replies["question k1"]["degraded"] = ["rerank"]
    assert command.run() == EXIT_OK
    assert command.result()["num_degraded"] == 1
    assert "1 of 8 answers are degraded (rerank: 1)" in " ".join(capsys.readouterr().err.split())


def test_a_collection_that_holds_something_else_is_suspected(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        command.server.replies[f"question k{number}"] = reply_body(0.6, "other")
    assert command.run() == EXIT_OK
    assert "does the collection hold the corpus" in " ".join(capsys.readouterr().err.split())


def test_questions_that_can_be_answered_are_not_taken_for_unanswerable(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answers.main(command.options("alien/../known")) == EXIT_USAGE
    assert "the same folder" in " ".join(capsys.readouterr().err.split())


def test_another_machine_is_not_asked_unless_it_is_allowed(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answers.main([*command.options("alien"), "--url", "http://rag.invalid:8000"]) == EXIT_USAGE
    assert "--allow-remote" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["1", "0", "-3", "many"])
def test_a_limit_that_leaves_a_half_without_questions_is_wrong_usage(command: Command, limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        answers.main([*command.options("alien"), f"--limit={limit}"])
    assert ended.value.code == EXIT_USAGE
