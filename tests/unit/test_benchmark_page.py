"""The HTML page: whole in itself, readable by everyone, and no place for a name to become markup."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import main, render
from benchmarks.plots import Plot
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.tables import short
from benchmarks.throughput_result import read_result
from tests import throughput_results as made

VOID = {"meta", "img", "link", "br", "hr", "input"}
# The page takes the pictures as they are.
PICTURE = Plot("latency", "latency against rate", "It rises.", b"\x89PNG")


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each table's rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are nested"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def column(self, name: str) -> list[str]:
        """The cells below a heading of the first table."""
        index = self.tables[0][0].index(name)
        return [row[index] for row in self.tables[0][1:]]


def rendered(folder: Path, *contents: dict[str, Any], picture: Plot = PICTURE) -> str:
    paths = [made.write(folder / f"{number}.json", content) for number, content in enumerate(contents)]
    return render([(read_result(path), [picture]) for path in paths])


def page(folder: Path, *contents: dict[str, Any]) -> Page:
    return Page(rendered(folder, *contents))


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    whole = rendered(tmp_path, made.closed_result(), made.result(made.measured(made.offered(9), 0.1, 9.0)))
    found = Page(whole)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found.elements}
    sources = [value for _, attributes in found.elements for name, value in attributes.items() if name == "src"]
    assert sources
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    links = [attributes["href"] for attributes in found.all("a")]
    anchors = {attributes.get("id") for _, attributes in found.elements}
    assert all(link is not None and link[0] == "#" and link[1:] in anchors for link in links)
    for forbidden in ("http://", "https://", "url(", "@import"):
        assert forbidden not in whole


def test_the_plots_are_in_the_page(tmp_path: Path) -> None:
    (picture,) = page(tmp_path, made.closed_result()).all("img")
    assert base64.b64decode((picture["src"] or "").partition(",")[2]) == PICTURE.png
    assert picture["alt"] == PICTURE.alt


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    content = made.result(
        *[made.measured(made.closed(clients), 0.1, 9.0, stages=[evil, "b"]) for clients in (1, 2)],
        name=evil,
        saturation=[made.saturation(limit=evil)],
        versions={evil: evil},
        hardware={"cpu": evil, "num_cores": 2, "gpus": [evil]},
        started_at=evil,
        command="python '<script>alert(1)</script>'",
    )
    whole = rendered(tmp_path, content, picture=Plot("latency", evil, evil, b""))
    found = Page(whole)
    assert "<script" not in whole
    assert all(name != "onerror" for _, attributes in found.elements for name in attributes)
    assert found.text.count(evil) >= 8
    assert any(evil in (attributes["alt"] or "") for attributes in found.all("img"))


def test_what_was_measured_is_told(tmp_path: Path) -> None:
    text = page(tmp_path, made.closed_result(dirty=True)).text
    for told in (
        "python -m benchmarks.run benchmarks/experiments/docs_closed.yaml",
        "commit 0123456789ab with changes that are not committed",
        "AMD EPYC 9R14, 2 cores, 24 GiB, no GPU",
        "ray 2.60.0",
        "2026-01-02T03:04:05+00:00",
    ):
        assert told in text


def test_the_page_does_not_tell_where_files_lie(tmp_path: Path) -> None:
    command = "python -m benchmarks.run /some/where/a.yaml --out /some/where/b.json"
    text = page(tmp_path, made.closed_result(command=command)).text
    assert "/some/where" not in text
    assert "python -m benchmarks.run a.yaml --out b.json" in text


def test_the_loads_stand_in_a_table_with_medians_and_sums(tmp_path: Path) -> None:
    failures: dict[str, Any] = {"num_failed": 6, "shed": 4, "timeouts": 2, "goodput": made.GOODPUT}
    content = made.result(
        made.measured(made.closed(64), 1.5, 46.0, repeats=2, **failures), made.measured(made.closed(1), 0.08, 12.34)
    )
    found = page(tmp_path, content)
    assert found.column("load") == ["1 client", "64 clients"], "from the lightest to the heaviest"
    assert found.column("requests") == ["100", "200"]
    assert found.column("requests/s") == ["12.3", "46"]
    assert found.column("good/s") == ["–", "9.5"]
    assert found.column("good") == ["–", "80.0%"]
    assert found.column("SLO met") == ["–", "no"]
    assert found.column("p99, ms") == ["240", "4,500"]
    assert [found.column(name) for name in ("failed", "shed", "timeouts")] == [["0", "12"], ["0", "8"], ["0", "4"]]
    assert "TTFT p50, ms" not in found.tables[0][0], "nothing was streamed"
    assert "whole request ≤ 3,000 ms, TTFT ≤ 300 ms, ITL ≤ 100 ms" in found.text


def test_answers_that_did_without_a_stage_are_told_of(tmp_path: Path) -> None:
    degraded = made.measured(made.closed(64), 1.5, 46.0, repeats=2, degraded={"rerank": 3, "rewrite": 1})
    found = page(tmp_path, made.result(made.measured(made.closed(1), 0.08, 12.34), degraded))
    assert found.column("degraded") == ["0", "rerank 6, rewrite 2"]


def test_limits_that_do_not_apply_are_not_named(tmp_path: Path) -> None:
    goodput = {**made.GOODPUT, "within": {"request_p99_s": 0.97}}
    found = page(tmp_path, made.result(made.measured(made.closed(1), 0.1, 9.0, goodput=goodput)))
    assert "whole request ≤ 3,000 ms" in found.text
    assert "TTFT ≤" not in found.text


def test_streams_have_their_times_between_tokens(tmp_path: Path) -> None:
    times: dict[str, Any] = {"ttft": made.distribution(0.05), "inter_token": made.distribution(0.01)}
    found = page(tmp_path, made.result(made.measured(made.closed(1), 0.5, 2.0, **times)))
    assert found.column("TTFT p50, ms") == ["50"]
    assert found.column("ITL p99, ms") == ["30"]


def test_ingest_beside_the_questions_is_told_apart_from_none(tmp_path: Path) -> None:
    ingest = {"documents": 40, "batches": 4, "documents_per_s": 3.5, "errors": {}}
    alone = made.measured(made.closed(8, with_ingest=False), 0.1, 9.0)
    beside = made.measured(made.closed(8), 0.2, 8.0, run={"ingest": ingest})
    found = page(tmp_path, made.result(alone, beside))
    assert found.column("load") == ["8 clients, without ingest", "8 clients"]
    assert found.column("documents/s") == ["–", "3.5"]


def test_the_documents_a_second_of_two_runs_are_their_median(tmp_path: Path) -> None:
    runs, medians = made.measured(made.closed(8), 0.2, 8.0, repeats=2)
    for run, documents_per_s in zip(runs, (3.0, 8.0), strict=True):
        run["ingest"] = {"documents": 40, "batches": 4, "documents_per_s": documents_per_s, "errors": {}}
    assert page(tmp_path, made.result((runs, medians))).column("documents/s") == ["5.5"]


def test_the_probes_of_a_saturation_search_are_listed(tmp_path: Path) -> None:
    found = page(tmp_path, made.saturation_result())
    assert "Highest rate sustained: 20 requests/s. Limit: 40 requests/s: 82 of 100 requests answered" in found.text
    assert found.column("load") == ["10/s poisson", "20/s poisson", "40/s poisson"]
    assert [row[:2] for row in found.tables[1][1:]] == [["10/s", "passed"], ["20/s", "passed"], ["40/s", "failed"]]
    assert "Bottleneck at 40/s poisson" in found.text


def test_a_rate_that_several_searches_probed_stands_with_its_medians(tmp_path: Path) -> None:
    found = page(tmp_path, made.searched_three_times())
    assert [found.column(name) for name in ("load", "runs", "requests")] == [["10/s poisson"], ["3"], ["300"]]
    assert [found.column(name) for name in ("requests/s", "good/s", "p50, ms")] == [["8"], ["7"], ["300"]]
    (stages,) = [table for table in found.tables if table[0][0] == "stage"]
    assert stages[2][:3] == ["embed", "110", "100"]


def test_the_stages_of_every_load_are_listed_and_the_bottleneck_named(tmp_path: Path) -> None:
    found = page(tmp_path, made.closed_result())
    stages = [table for table in found.tables if table[0][0] == "stage"]
    assert len(stages) == 4
    assert [row[0] for row in stages[0][1:]] == list(made.STAGES)
    embed = stages[-1][2]
    assert embed == ["embed", "513", "467", "1,400", "50%", "20%", "30%", "5.6"]
    assert "Bottleneck at 64 clients: parse, whose calls wait longest, 539 ms on average" in found.text


def test_everyone_can_read_it(tmp_path: Path) -> None:
    found = page(tmp_path, made.closed_result())
    assert found.all("html") == [{"lang": "en"}]
    assert found.all("title")
    assert all(attributes.get("alt") for attributes in found.all("img"))
    assert len(found.all("caption")) == len(found.tables)
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th"))
    assert "prefers-color-scheme: dark" in rendered(tmp_path, made.closed_result())


def test_several_results_have_a_chapter_each(tmp_path: Path) -> None:
    other = made.result(made.measured(made.closed(2), 0.1, 9.0), name="docs_stream")
    found = page(tmp_path, made.closed_result(), other)
    assert [attributes["id"] for attributes in found.all("h2")] == ["result-1", "result-2"]
    assert [attributes["href"] for attributes in found.all("a")] == ["#result-1", "#result-2"]


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    path = made.write(tmp_path / "small.json", made.closed_result())
    assert main([str(path), "--out", str(out)]) == EXIT_OK
    assert capsys.readouterr().out == f"{out}\n"
    assert Page(out.read_text(encoding="utf-8")).all("h1")


def test_the_command_refuses_results_of_the_first_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made.write(tmp_path / "old.json", made.closed_result(schema_version=1))
    assert main([str(path), "--out", str(tmp_path / "page.html")]) == EXIT_USAGE
    assert "schema_version 1" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0123456, "0.0123"), (1.234, "1.23"), (99.94, "99.9"), (1234.5, "1,234"), (0.0, "0"), (45.0, "45")],
)
def test_numbers_have_three_digits(value: float, written: str) -> None:
    assert short(value) == written
