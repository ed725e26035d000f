"""The baselines answer over HTTP what raglane answers, with the same models on the same store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.baselines import plain_fastapi, plain_serve, sequential
from benchmarks.baselines.settings import BaselineConfig
from deployments.store import StoreConfig
from tests.serving import StartApp, serving

TEXTS = {
    "Tides": "Tides are the rise and fall of the sea. The gravity of the moon causes them.",
    "Rust": "Rust is a programming language. Its borrow checker rejects dangling references.",
    "Bread": "Bread is baked from flour and water. Yeast makes the dough rise.",
    "Honey": "Bees make honey from nectar. A litre of honey weighs more than a litre of water.",
    "Iron": "Iron is a metal that rusts in moist air. A litre of iron weighs eight kilograms.",
}
DOCUMENTS = [{"id": title.lower(), "title": title, "text": text} for title, text in TEXTS.items()]
QUESTIONS = [
    "What causes the tides?",
    "Which is heavier, iron or honey?",
    "What makes bread rise?",
    "Who won the game?",
]

Replies = list[dict[str, Any]]


@dataclass(frozen=True)
class Raglane:
    """Where raglane ran, and what it answered."""

    start: StartApp
    store: StoreConfig
    replies: Replies


def replies(http: httpx.Client) -> Replies:
    """A search and an answer for each question."""
    taken = []
    for question in QUESTIONS:
        search = {"query": question, "collection": "notes", "k": 4}
        taken.append(http.post("/v1/search", json=search).raise_for_status().json())
        answer = {"question": question, "collection": "notes", "k": 4, "cache": False}
        taken.append(http.post("/v1/answers", json=answer).raise_for_status().json())
    return taken


@pytest.fixture(scope="module")
def raglane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raglane]:
    folder: Path = tmp_path_factory.mktemp("store")
    with serving(folder) as start:
        url = start({})
        with httpx.Client(base_url=url, timeout=60) as http:
            http.post("/v1/documents", json={"collection": "notes", "documents": DOCUMENTS}).raise_for_status()
            yield Raglane(start, StoreConfig(uri=str(folder)), replies(http))


def check_same(found: Replies, expected: Replies) -> None:
    for own, raglanes in zip(found, expected, strict=True):
        for name in own.keys() & {"answer", "found", "generator"}:
            assert own[name] == raglanes[name]
        for name in own.keys() & {"results", "citations"}:
            identity = [(one["document_id"], one["text"]) for one in raglanes[name]]
            assert [(one["document_id"], one["text"]) for one in own[name]] == identity
            scores = [one["score"] for one in raglanes[name]]
            # Embedded in bfloat16, in batches of other shapes.
            assert [one["score"] for one in own[name]] == pytest.approx(scores, abs=0.01)


def test_the_questions_tell_answers_apart(raglane: Raglane) -> None:
    answers = [reply["answer"] for reply in raglane.replies if "answer" in reply]
    assert len(set(answers)) == len(QUESTIONS)


@pytest.mark.parametrize("baseline", [plain_serve, sequential], ids=["plain_serve", "sequential"])
def test_the_other_compositions_on_serve_answer_the_same(raglane: Raglane, baseline: Any) -> None:
    url = raglane.start({}, build=lambda config: baseline.build_app(BaselineConfig(store=config.store)))
    with httpx.Client(base_url=url, timeout=60) as http:
        found = replies(http)
    assert "timings" not in found[0], "raglane itself still answers"
    check_same(found, raglane.replies)


async def test_the_single_process_answers_the_same(raglane: Raglane) -> None:
    app = plain_fastapi.create_app(BaselineConfig(store=raglane.store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://baseline", timeout=60) as http:
        for question, expected in zip(QUESTIONS, raglane.replies[1::2], strict=True):
            body = {"question": question, "collection": "notes", "k": 4, "cache": False}
            check_same([(await http.post("/v1/answers", json=body)).json()], [expected])
