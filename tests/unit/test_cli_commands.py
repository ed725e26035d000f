"""The commands as a user or a script sees them: output, errors and exit codes, against a stub server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from serve_app.cli.exits import Failure
from serve_app.cli.main import main
from serve_app.cli.processes import ProcessId
from serve_app.cli.server import ServerPlan
from serve_app.cli.state import ServerState, StateFile
from tests.ports import free_port
from tests.stub_server import Reply, StubServer, error_reply, json_reply

TIMINGS = [
    {
        "stage": "embed",
        "total_s": 0.0123,
        "queue_s": 0.001,
        "batch_wait_s": 0.002,
        "compute_s": 0.0093,
        "batch_size": 4,
    },
    {"stage": "generate", "total_s": 1.5, "queue_s": 0.0, "batch_wait_s": 0.0, "compute_s": 1.5, "batch_size": 1},
]
ANSWER = {
    "answer": "Water [boils] at 100 °C [1].",
    "citations": [{"number": 1, "title": "Water", "source": "w.md", "text": "Water\n boils at 100 °C."}],
    "generator": "extractive",
    "degraded": ["rerank"],
    "timings": TIMINGS,
    "request_id": "r-1",
}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """The server that commands find by default, in an environment without any other."""
    monkeypatch.setenv("RAGLANE_DATA", str(tmp_path / "data"))
    with StubServer() as server:
        monkeypatch.setenv("RAGLANE_URL", server.url)
        yield server


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def index_all(body: Any) -> Reply:
    ids = [document["id"] for document in body["documents"]]
    return json_reply({"indexed": ids, "replaced": 0, "chunks": len(ids), "sentences": 3, "tokens": 9, "rejected": []})


def events(*frames: tuple[str, Any]) -> Reply:
    payload = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in frames)
    return 200, {"content-type": "text/event-stream"}, payload.encode()


def test_ask_prints_the_answer_its_citations_and_where_the_time_went(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["POST /v1/answers"] = lambda _: json_reply(ANSWER)
    assert run("ask", "When does water boil?", "-k", "3", "--timeout", "5") == 0
    out = capsys.readouterr().out
    assert "Water [boils] at 100 °C [1]." in out
    assert "[1] Water — w.md" in out
    assert "Water boils at 100 °C." in out
    assert "generator: extractive" in out
    assert "degraded: rerank" in out
    row = next(line for line in out.splitlines() if line.startswith("embed"))
    assert row.split() == ["embed", "12.3", "1.0", "2.0", "9.3", "4"]
    question = {"question": "When does water boil?", "collection": "docs", "k": 3, "timeout_s": 5.0}
    assert stub.requests == [("POST /v1/answers", question)]


def test_ask_json_prints_the_servers_answer_and_nothing_else(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["POST /v1/answers"] = lambda _: json_reply(ANSWER)
    assert run("ask", "?", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_what_looks_like_markup_or_an_emoji_code_is_printed_as_it_is(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "A :key: on line 1:100:2 of [bold]doc:id:7[/bold]."
    answer = ANSWER | {"answer": text}
    stub.routes["POST /v1/answers"] = lambda _: json_reply(answer)
    assert run("ask", "?", "--json") == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert run("ask", "?") == 0
    assert text in capsys.readouterr().out


HOSTILE = "\x1b]52;c;bWluZQ==\x1b\\ \x1b[2J \x9b31m \x7f\x00 end"
HARMLESS = "\ufffd]52;c;bWluZQ==\ufffd\\ \ufffd[2J \ufffd31m \ufffd\ufffd end"
HOSTILE_RESULT = {"number": 1, "title": HOSTILE, "source": HOSTILE, "document_id": HOSTILE, "text": HOSTILE}


def controls(text: str) -> set[str]:
    return {character for character in text if unicodedata.category(character) == "Cc"} - {"\n", "\t"}


@pytest.mark.parametrize(
    ("route", "reply", "arguments"),
    [
        (
            "POST /v1/answers",
            json_reply(ANSWER | {"answer": HOSTILE, "citations": [HOSTILE_RESULT], "degraded": [HOSTILE]}),
            ("ask", "?"),
        ),
        ("POST /v1/answers", json_reply(ANSWER | {"timings": [TIMINGS[0] | {"stage": HOSTILE}]}), ("ask", "?")),
        (
            "POST /v1/answers",
            events(("sources", {"sources": [HOSTILE_RESULT]}), ("token", {"text": HOSTILE}), ("done", {})),
            ("ask", "?", "--stream"),
        ),
        ("POST /v1/answers", events(("error", {"error": {"message": HOSTILE}})), ("ask", "?", "--stream")),
        ("POST /v1/answers", error_reply(400, HOSTILE), ("ask", "?")),
        ("POST /v1/search", json_reply({"results": [HOSTILE_RESULT]}), ("search", "?")),
        (
            "POST /v1/documents",
            json_reply({"indexed": [], "rejected": [{"id": HOSTILE, "reason": HOSTILE}]}),
            ("ingest", "a.txt"),
        ),
    ],
    ids=["answer", "timings", "stream", "broken stream", "error", "search", "ingest"],
)
def test_control_characters_of_documents_and_servers_never_reach_the_terminal(
    stub: StubServer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    reply: Reply,
    arguments: tuple[str, ...],
) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    monkeypatch.chdir(tmp_path)
    stub.routes[route] = lambda _: reply
    run(*arguments)
    printed = "".join(capsys.readouterr())
    assert "]52;c" in printed
    assert controls(printed) == set()


def test_control_characters_are_replaced_one_by_one_and_lines_stay(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["POST /v1/answers"] = lambda _: json_reply(ANSWER | {"answer": f"{HOSTILE}\nÜber 😀"})
    assert run("ask", "?") == 0
    assert f"{HARMLESS}\nÜber 😀\n" in capsys.readouterr().out


def test_json_escapes_every_control_character_and_says_the_same(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ANSWER | {"answer": f"{HOSTILE} Über 😀\t\r\n"}
    stub.routes["POST /v1/answers"] = lambda _: json_reply(answer)
    assert run("ask", "?", "--json") == 0
    printed = capsys.readouterr().out
    assert controls(printed) == set()
    assert "Über 😀" in printed
    assert json.loads(printed) == answer


def test_ask_stream_prints_the_tokens_then_what_they_rest_on(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {name: value for name, value in ANSWER.items() if name != "answer"}
    stub.routes["POST /v1/answers"] = lambda _: events(
        ("sources", {"sources": ANSWER["citations"]}),
        ("token", {"text": "Water boils "}),
        ("token", {"text": "at 100 °C [1]."}),
        ("done", done),
    )
    assert run("ask", "?", "--stream") == 0
    out = capsys.readouterr().out
    assert "Water boils at 100 °C [1].\n" in out
    assert out.index("at 100 °C [1].") < out.index("[1] Water — w.md") < out.index("generate")


def test_ask_stream_json_prints_one_line_for_each_event(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["POST /v1/answers"] = lambda _: events(("token", {"text": "a\nb"}), ("done", {"timings": []}))
    assert run("ask", "?", "--stream", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"event": "token", "data": {"text": "a\nb"}}, {"event": "done", "data": {"timings": []}}]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([("token", {"text": "a"}), ("error", {"error": {"message": "the engine died"}})], "the engine died"),
        ([("token", {"text": "a"})], "closed the stream"),
    ],
)
def test_a_stream_that_breaks_off_fails(
    stub: StubServer, capsys: pytest.CaptureFixture[str], frames: list[tuple[str, Any]], message: str
) -> None:
    stub.routes["POST /v1/answers"] = lambda _: events(*frames)
    assert run("ask", "?", "--stream") == 1
    assert message in capsys.readouterr().err


def test_search_lists_what_was_found_and_can_leave_out_the_reranking(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        {"title": "Water", "score": 0.87654, "text": "boils"},
        {"document_id": "ice.md", "score": 0.5, "text": "x"},
    ]
    stub.routes["POST /v1/search"] = lambda _: json_reply({"results": results, "timings": TIMINGS})
    assert run("search", "boiling", "--no-rerank", "--collection", "physics") == 0
    out = capsys.readouterr().out
    assert "1. 0.8765  Water" in out
    assert "2. 0.5000  ice.md" in out
    assert stub.requests[0][1] == {"query": "boiling", "collection": "physics", "rerank": False}


def test_ingest_takes_files_and_reports_what_became_of_them(
    stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("# Water\n\nWater boils at 100 degrees.")
    (tmp_path / "b.txt").write_text("Ice melts at 0 degrees.")
    stub.routes["POST /v1/documents"] = index_all
    assert run("ingest", str(tmp_path / "a.md"), str(tmp_path / "b.txt"), "--collection", "physics") == 0
    assert "2 documents (0 replaced), 2 chunks, 3 sentences" in capsys.readouterr().out
    assert {body["collection"] for _, body in stub.requests} == {"physics"}


def test_ingest_with_rejected_documents_exits_as_partly_done_and_names_the_first_twenty(
    stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text("Some text.")
    rejected = [{"id": f"d{number}", "reason": "too long"} for number in range(25)]
    stub.routes["POST /v1/documents"] = lambda _: json_reply({"indexed": ["a"], "chunks": 1, "rejected": rejected})
    assert run("ingest", str(tmp_path / "a.md")) == 5
    out = capsys.readouterr().out
    assert "25 rejected" in out
    assert "d19: too long" in out
    assert "d20: too long" not in out
    assert "5 more" in out


def test_ingest_json_is_the_whole_report(stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Some text.")
    stub.routes["POST /v1/documents"] = lambda _: json_reply({"indexed": [], "rejected": [{"id": "a", "reason": "no"}]})
    assert run("ingest", str(tmp_path / "a.md"), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["documents"], report["rejected"]) == (0, [{"id": "a", "reason": "no"}])


def test_ingest_without_documents_says_so(stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("ingest", str(tmp_path / "empty")) == 1
    assert run("ingest", str(tmp_path / "missing.md")) == 1
    err = capsys.readouterr().err
    assert "no documents found" in err
    assert "missing.md" in err
    assert stub.requests == []


def test_status_of_a_ready_server_lists_its_collections(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["GET /health/ready"] = lambda _: json_reply({"status": "ready", "stages": {"embed": "ready"}})
    collections = [{"name": "docs", "num_documents": 3, "num_chunks": 12}]
    stub.routes["GET /v1/collections"] = lambda _: json_reply({"collections": collections})
    assert run("status") == 0
    out = capsys.readouterr().out
    assert f"ready  {stub.url}" in out
    assert "embed: ready" in out
    assert "collection docs: 3 documents, 12 chunks" in out


def test_status_of_a_server_that_is_not_ready_names_the_stage(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /health/ready"] = lambda _: json_reply({"stages": {"embed": "loading the model"}}, 503)
    assert run("status", "--json") == 4
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["stages"]) == ("not ready", {"embed": "loading the model"})


def test_status_finds_the_server_by_its_state_file(
    stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGLANE_URL")
    (tmp_path / "data").mkdir()
    state = ServerState(ProcessId.current(), "ready", stub.url, 1, "local", "0.1.0", started_at=0.0)
    StateFile(tmp_path / "data").write(state)
    stub.routes["GET /health/ready"] = lambda _: json_reply({"stages": {}})
    stub.routes["GET /v1/collections"] = lambda _: json_reply({"collections": []})
    assert run("status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["url"], status["profile"], status["pid"]) == (stub.url, "local", ProcessId.current().pid)


def test_status_with_a_data_directory_reports_no_other_server(
    stub: StubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stub.routes["GET /health/ready"] = lambda _: json_reply({"status": "ready", "stages": {}})
    stub.routes["GET /v1/collections"] = lambda _: json_reply({"collections": []})
    other = str(tmp_path / "other")
    assert run("status", "--data", other) == 3
    assert f"raglane up --data {other}" in capsys.readouterr().err
    assert run("status", "--data", other, "--json") == 3
    assert json.loads(capsys.readouterr().out)["url"] is None
    assert stub.requests == []
    assert run("status", "--data", other, "--url", stub.url) == 0


def test_without_a_server_status_and_ask_exit_with_the_same_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer() as gone:
        monkeypatch.setenv("RAGLANE_URL", gone.url)
    monkeypatch.setenv("RAGLANE_DATA", str(tmp_path))
    assert run("status") == 3
    assert run("ask", "?") == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("raglane up") == 2


def test_down_with_nothing_running_says_so_and_succeeds(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("down") == 0
    assert "nothing is running" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["POST /v1/search"] = lambda _: error_reply(404, "there is no collection 'x'")
    assert run("search", "q", "-c", "x") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: there is no collection 'x' (HTTP 404, request r-1)\n"


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ServerPlan]]:
    """What each `raglane up` would serve; none serves. HAProxy and its fixed ports are left out."""
    planned: list[ServerPlan] = []

    def serving(plan: ServerPlan) -> None:
        planned.append(plan)
        raise Failure("no server in this test")

    monkeypatch.setattr("serve_app.cli.server_commands.serving", serving)
    # `up` sets Ray's variables for good.
    with mock.patch.dict(os.environ, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}):
        yield planned


@pytest.mark.parametrize("data", [[], ["--data", "mine"]])
def test_a_detached_server_has_the_store_and_the_state_that_it_would_have_in_the_foreground(
    stub: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[ServerPlan], data: list[str]
) -> None:
    application = {"import_path": "serve_app:build_app", "args": {"store": {"uri": "s3://bucket/x"}}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    monkeypatch.chdir(tmp_path)
    started = tmp_path / "started"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$RAGLANE_DATA" "$@" >{started}\nexit 1\n')
    python.chmod(0o755)
    up = ["up", "--config", "my.yaml", "--port", str(free_port()), *data]

    assert run(*up) == 1
    with mock.patch.object(sys, "executable", str(python)):
        assert run(*up, "--detach") == 1
    directory, _, _, *command = started.read_text().splitlines()
    monkeypatch.setenv("RAGLANE_DATA", directory)
    assert run(*command) == 1

    foreground, detached = plans
    assert detached.document == foreground.document
    assert detached.state_file.data_dir == foreground.state_file.data_dir == tmp_path / (data[1] if data else "data")
    uri = foreground.document["applications"][0]["args"]["store"]["uri"]
    assert uri == (str(tmp_path / "mine" / "lancedb") if data else "s3://bucket/x")


def test_a_data_directory_is_named_as_the_user_wrote_it(
    stub: StubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plans: list[ServerPlan],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serve_app.cli.server_commands.start_detached", lambda *_: None)
    assert run("up", "--detach", "--port", str(free_port()), "--data", ":key:[bold]") == 0
    assert "`raglane down --data :key:[bold]`" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["up", "--profile", "nope"], ["up", "--config", "/no/file"], ["ask"], ["nope"]])
def test_wrong_usage_exits_with_two(stub: StubServer, arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_a_profile_and_a_config_file_together_are_refused_by_both_names(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("up", "--profile", "local", "--config", "my.yaml") == 2
    assert "--profile local and --config my.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "down", "status", "ingest", "search", "ask"])
def test_every_command_explains_itself_and_its_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"raglane {command}" in out
    assert "Exit codes: 0 done" in out


def test_client_commands_never_import_ray_or_a_model_library() -> None:
    code = (
        "import sys\n"
        "from serve_app.cli.main import main\n"
        "try:\n    main(['ask', '?', '--url', 'http://127.0.0.1:1'])\nexcept SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'transformers', 'sentence_transformers', 'lancedb', 'vllm', 'pyarrow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
