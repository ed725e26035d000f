"""The prefix cache benchmark against a small server that answers and exports vLLM's counters, late as Ray does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from benchmarks.experiment import ExperimentError
from benchmarks.prefix_cache import (
    Counters,
    MetricsPages,
    choose_questions,
    find_metrics_pages,
    main,
    parse_counters,
)
from benchmarks.run import EXIT_OK, EXIT_USAGE
from tests.http_server import listening_in_thread

PROMPT_TOKENS = 100
SPARED_TOKENS = 40
QUESTIONS = {str(number): f"question {number}" for number in range(10)}

COUNTER = "# HELP {name} Tokens.\n# TYPE {name} counter\n"

# A process tree like Ray's: of the raylet's children one is an agent, the other a replica whose child listens.
LISTEN = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(sys.argv[1], listener.getsockname()[1], flush=True)
input()
"""
REPLICA = f"""
import subprocess, sys
subprocess.call([sys.executable, "-c", {LISTEN!r}, "replica"])
"""
RAYLET = f"""
import subprocess, sys
agent = subprocess.Popen([sys.executable, "-c", {LISTEN!r}, "agent"], stdin=subprocess.PIPE)
replica = subprocess.Popen([sys.executable, "-c", {REPLICA!r}], stdin=subprocess.PIPE)
input()
for child in (agent, replica):
    child.communicate(b"\\n")
"""


def page(**values: float) -> str:
    """A metrics page with a sample of each counter for each of two engines; the second has counted nothing."""
    lines = ["# HELP ray_other_total Other.\n# TYPE ray_other_total counter\nray_other_total 7.0\n"]
    for short, value in values.items():
        name = f"ray_vllm_prefix_cache_{short}_total"
        lines.append(COUNTER.format(name=name))
        lines.append(f'{name}{{model_name="tiny",engine="0"}} {value}\n{name}{{model_name="tiny",engine="1"}} 0.0\n')
    return "".join(lines)


@dataclass
class Server:
    """Every prompt has 100 tokens, of which all but the very first find 40 in the cache.

    The metrics page is `lag` readings old. Without `counts` the engine has no prefix cache.
    """

    lag: int = 0
    counts: bool = True
    degraded: tuple[str, ...] = ()
    sheds: int = 0
    looked_up: int = 15
    found: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    _exports: deque[str] = field(default_factory=deque)

    async def answer(self, request: Request) -> Response:
        if self.sheds:
            self.sheds -= 1
            return JSONResponse({"error": {"message": "too many"}}, 429, {"Retry-After": "0"})
        if self.counts:
            self.looked_up += PROMPT_TOKENS
            self.found += SPARED_TOKENS if self.bodies else 0
        self.bodies.append(await request.json())
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 8}
        return JSONResponse({"answer": "a", "generator": "tiny", "usage": usage, "degraded": self.degraded})

    async def metrics(self, _: Request) -> Response:
        self._exports.append(
            page(queries=self.looked_up, hits=self.found) if self.found else page(queries=self.looked_up)
        )
        return PlainTextResponse(self._exports.popleft() if len(self._exports) > self.lag else self._exports[0])

    async def nothing(self, _: Request) -> Response:
        return PlainTextResponse("not here")


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    routes = [
        Route("/v1/answers", served.answer, methods=["POST"]),
        Route("/metrics", served.metrics),
        Route("/nothing", served.nothing),
    ]
    with listening_in_thread(Starlette(routes=routes)) as served.url:
        yield served


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    path.write_text("\n".join(json.dumps({"_id": key, "text": text}) for key, text in QUESTIONS.items()))
    return path


def arguments(server: Server, queries: Path, *more: str) -> list[str]:
    pages = ["--metrics-url", f"{server.url}/nothing", "--metrics-url", f"{server.url}/metrics"]
    quickly = ["--export-interval-s", "0.001"]
    return ["--queries", str(queries), "--collection", "notes", "--url", server.url, *pages, *quickly, *more]


@pytest.mark.parametrize("lag", [0, 7])
def test_the_hit_rate_is_that_of_the_questions_asked_however_late_the_counters_are(
    server: Server, queries: Path, tmp_path: Path, lag: int
) -> None:
    server.lag = lag
    out = tmp_path / "result.json"
    more = ["--limit", "5", "--clients", "2", "--label", "share_prefix=true", "--out", str(out)]
    assert main(arguments(server, queries, *more)) == EXIT_OK
    result = json.loads(out.read_text(encoding="utf-8"))
    cache = result["prefix_cache"]
    assert cache["before"] == {"queries": 15, "hits": 0}
    assert (cache["queries"], cache["hits"]) == (5 * PROMPT_TOKENS, 4 * SPARED_TOKENS)
    assert cache["hit_rate"] == pytest.approx(0.32)
    assert result["prompt_tokens"] == 5 * PROMPT_TOKENS
    assert result["requests_per_s"] > 0
    assert result["label"] == "share_prefix=true"
    assert result["generators"] == ["tiny"]
    assert {"commit", "versions", "hardware", "command", "started_at"} <= result.keys()
    assert {answer["query_id"] for answer in result["answers"]} == choose_questions(QUESTIONS, 5, 0).keys()


def test_every_question_reaches_the_model_once_and_asks_for_little(
    server: Server, queries: Path, tmp_path: Path
) -> None:
    main(arguments(server, queries, "--out", str(tmp_path / "result.json")))
    assert sorted(body.pop("question") for body in server.bodies) == sorted(QUESTIONS.values())
    assert all(
        body == {"collection": "notes", "max_tokens": 8, "temperature": 0, "cache": False} for body in server.bodies
    )


def test_a_question_that_is_shed_is_asked_again(server: Server, queries: Path, tmp_path: Path) -> None:
    server.sheds = 3
    assert main(arguments(server, queries, "--out", str(tmp_path / "result.json"))) == EXIT_OK
    assert len(server.bodies) == len(QUESTIONS)


def test_the_order_of_the_questions_depends_on_the_seed_alone() -> None:
    backwards = dict(reversed(QUESTIONS.items()))
    assert list(choose_questions(QUESTIONS, 8, 3)) == list(choose_questions(backwards, 8, 3))
    assert list(choose_questions(QUESTIONS, 8, 3)) != list(choose_questions(QUESTIONS, 8, 4))
    assert choose_questions(QUESTIONS, 99, 3) == QUESTIONS


def test_an_engine_that_knows_prompts_already_is_told_of(
    server: Server, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.looked_up = 5000
    assert main(arguments(server, queries, "--out", str(tmp_path / "result.json"))) == EXIT_OK
    assert "5000 tokens before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": False}, "enable_prefix_caching"),
        ({"degraded": ("generate",)}, "the model did not write the answer"),
        ({"sheds": 1000}, "was answered 429"),
    ],
)
def test_a_run_whose_hit_rate_would_mean_nothing_ends_without_a_result(
    server: Server, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any, message: str
) -> None:
    for name, value in changes.items():
        setattr(server, name, value)
    out = tmp_path / "result.json"
    assert main(arguments(server, queries, "--out", str(out))) == EXIT_USAGE
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_server_without_vllm_is_told_of_before_anything_is_asked(
    server: Server, queries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = ["--metrics-url", f"{server.url}/nothing", "--metrics-url", "http://127.0.0.1:1/metrics"]
    assert main(["--queries", str(queries), "--url", server.url, *pages]) == EXIT_USAGE
    assert "--metrics-url" in capsys.readouterr().err
    assert not server.bodies


def test_another_machine_is_not_loaded_unless_it_is_allowed(queries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--queries", str(queries), "--url", "http://rag.invalid:8000"]) == EXIT_USAGE
    assert "--allow-remote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "counters"),
    [
        (page(queries=120.0, hits=30.0), Counters(120, 30)),
        (page(queries=15.0), Counters(15, 0)),
        (page(hits=30.0), None),
        (page(), None),
        ("<html>404</html>", None),
        ("", None),
    ],
    ids=["both", "nothing found yet", "only hits", "another page of Ray's", "no metrics", "nothing"],
)
def test_a_page_counts_if_it_says_how_many_tokens_were_looked_up(text: str, counters: Counters | None) -> None:
    assert parse_counters(text) == counters


async def test_the_engines_of_all_nodes_are_added_up(server: Server) -> None:
    server.looked_up, server.found = 120, 30
    async with httpx.AsyncClient(trust_env=False) as http:
        assert await MetricsPages(http, [f"{server.url}/metrics"] * 2).read() == Counters(240, 60)


async def test_no_page_at_all_is_an_error() -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(ExperimentError, match="--metrics-url"):
            await MetricsPages(http, []).read()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names a process after the link it was started by")
def test_the_metrics_page_is_at_the_agent_of_the_node_whose_descendant_listens(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet"
    raylet.symlink_to(os.path.realpath(sys.executable))
    command = [str(raylet), "-I", "-S", "-c", RAYLET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2)]
        ports = {name: int(port) for name, port in lines}
        found = {name: find_metrics_pages(f"http://127.0.0.1:{port}") for name, port in ports.items()}
        process.communicate("\n")
    page_of_the_node = f"http://127.0.0.1:{ports['agent']}/metrics"
    assert found["replica"] == [page_of_the_node]
    assert found["agent"] == [page_of_the_node]


def test_a_port_that_nobody_listens_on_has_no_metrics_page() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert find_metrics_pages(f"http://127.0.0.1:{unused.getsockname()[1]}") == []


def test_two_results_stand_side_by_side(
    server: Server, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {label: tmp_path / f"{label}.json" for label in ("on", "off")}
    for label, path in paths.items():
        main(arguments(server, queries, "--label", label, "--out", str(path)))
    capsys.readouterr()
    assert main(["--compare", *map(str, paths.values())]) == EXIT_OK
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert table["hit rate"] == ["36.0%", "40.0%"], "the second run finds the first one's prompts"
    assert table["tokens left to compute"] == ["640", "600"]


@pytest.mark.parametrize(("limits", "told"), [(("4", "4"), False), (("4", "5"), True)])
def test_results_of_different_workloads_are_not_compared_in_silence(
    server: Server, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: Any, told: bool
) -> None:
    paths = []
    for number, limit in enumerate(limits):
        paths.append(str(tmp_path / f"{number}.json"))
        main(arguments(server, queries, "--limit", limit, "--out", paths[-1]))
    capsys.readouterr()
    assert main(["--compare", *paths]) == EXIT_OK
    assert ("not asked the same" in capsys.readouterr().out) is told


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", '{"prefix_cache": {}}', None])
def test_what_is_no_result_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["--compare", str(path), str(path)]) == EXIT_USAGE
    assert "other.json" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--limit", "0"], ["--clients", "-1"], ["--compare", "a"], []])
def test_options_that_make_no_sense_are_wrong_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == EXIT_USAGE
