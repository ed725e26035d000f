"""The standard set: its time, its server, what is made from its results, and the part of the docs that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError, read_experiment
from benchmarks.own_server import serving
from benchmarks.plots import Plot
from benchmarks.standard import (
    FINISH_S,
    STANDARD_SET,
    START_LIMIT_S,
    TOTAL_S,
    Budget,
    StandardExperiment,
    publish,
    run_experiment,
)
from benchmarks.standard_page import BEGIN, END, PageError, Part, replace_section, section, write_section
from benchmarks.tables import Table, to_markdown
from benchmarks.throughput_result import ResultFileError, read_result
from tests import throughput_results as made
from tests.ports import free_port
from tests.stub_server import StubServer

PAGE = f"# Figures\n\nBy hand.\n\n{BEGIN}\nold\n{END}\n\n## Also by hand\n"

PICTURE = Plot("stages", "stages", "Bars.", b"\x89PNG")

# Keeps a record of how it was called, and of a server whether it runs.
STAND_IN = """
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls.jsonl").open("a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1] == "up":
    pathlib.Path(sys.argv[sys.argv.index("--data") + 1], "state").touch()
sys.exit(int((folder / sys.argv[1]).read_text()))
"""


class StandIn:
    """A program in place of `raglane`, whose `up` and `down` end with the codes that a test chooses."""

    def __init__(self, folder: Path, up: int = 0, down: int = 0) -> None:
        (folder / "raglane.py").write_text(STAND_IN, encoding="utf-8")
        (folder / "up").write_text(str(up), encoding="utf-8")
        (folder / "down").write_text(str(down), encoding="utf-8")
        self._folder = folder
        self.command = [sys.executable, str(folder / "raglane.py")]

    def calls(self) -> list[list[str]]:
        path = self._folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def data(self) -> Path:
        """The folder that the server was given."""
        up = self.calls()[0]
        return Path(up[up.index("--data") + 1])


@pytest.fixture(autouse=True)
def _temporary_folders_end_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture
def port() -> int:
    return free_port()


@dataclass(frozen=True, slots=True)
class Published:
    """What was made from the results of a whole set, and the page that it was written into."""

    results: Path
    docs: Path


def write_results(folder: Path) -> None:
    """A result of each experiment of the set."""
    loads = [made.measured(made.closed(clients), 0.1, 9.0 * clients, stages=("parse", "embed")) for clients in (1, 2)]
    for experiment in STANDARD_SET:
        content = made.result(*loads, name=experiment.name)
        made.write(folder / f"{experiment.name}.json", content)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    write_results(folder)
    docs = folder / "docs" / "figures.md"
    docs.parent.mkdir()
    docs.write_text(PAGE, encoding="utf-8")
    publish(folder, docs)
    return Published(folder, docs)


def part(folder: Path, content: dict[str, Any] | None = None, **changes: Any) -> Part:
    result = read_result(made.write(folder / "docs_closed.json", content or made.closed_result(**changes)))
    return Part("Closed loop", "python -m benchmarks.run a.yaml", result, [PICTURE], with_stages=True)


# The set


def test_the_set_fits_into_its_time_with_start_and_end() -> None:
    planned_s = START_LIMIT_S + sum(experiment.planned_s for experiment in STANDARD_SET) + FINISH_S
    assert planned_s <= TOTAL_S <= 15 * 60


@pytest.mark.parametrize("standard", STANDARD_SET, ids=lambda standard: standard.name)
def test_every_experiment_of_the_set_is_there_and_needs_nobody_elses_data(
    standard: StandardExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    experiment = read_experiment(Path(standard.path))
    assert experiment.name == standard.name
    assert experiment.query_texts()
    assert not str(experiment.queries).startswith("data/")


def test_an_experiment_gets_the_time_that_the_later_ones_do_not_need() -> None:
    later = [StandardExperiment("a", "A", planned_s=100), StandardExperiment("b", "B", planned_s=50)]
    budget = Budget(time.monotonic() + FINISH_S + 400)
    assert 200 < budget.limit_s(later) <= 250
    assert 250 < budget.limit_s(later[:1]) <= 300
    assert 350 < budget.limit_s([]) <= 400


def test_no_experiment_is_begun_when_the_time_is_used_up() -> None:
    with pytest.raises(ExperimentError, match="used up"):
        Budget(time.monotonic() + FINISH_S - 1).limit_s([])


def test_an_experiment_that_fails_is_named(tmp_path: Path, port: int) -> None:
    experiment = StandardExperiment("not_there", "Not there", planned_s=60)
    with pytest.raises(ExperimentError, match="not_there ended with code 2"):
        run_experiment(experiment, f"http://127.0.0.1:{port}", tmp_path, limit_s=60)


def test_an_experiment_that_is_not_done_in_time_is_ended(tmp_path: Path, port: int) -> None:
    experiment = StandardExperiment("not_there", "Not there", planned_s=60)
    with pytest.raises(ExperimentError, match="was not done after 0 s"):
        run_experiment(experiment, f"http://127.0.0.1:{port}", tmp_path, limit_s=0.01)


# The server


def test_a_server_is_started_with_the_docs_and_ended(tmp_path: Path, console: Console, port: int) -> None:
    raglane = StandIn(tmp_path)
    with serving(f"http://127.0.0.1:{port}", console, 60, raglane.command):
        assert raglane.data().is_dir()
    up, down = raglane.calls()
    data = str(raglane.data())
    assert up[:6] == ["up", "--detach", "--port", str(port), "--data", data]
    assert up[6:] == ["--ingest-if-empty", "docs", "--collection", "docs"]
    assert down == ["down", "--data", data]
    assert not raglane.data().exists()


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_the_server_is_ended_whatever_happens(
    tmp_path: Path, console: Console, port: int, error: BaseException
) -> None:
    raglane = StandIn(tmp_path)
    with pytest.raises(type(error)):
        with serving(f"http://127.0.0.1:{port}", console, 60, raglane.command):
            raise error
    assert [call[0] for call in raglane.calls()] == ["up", "down"]


def test_what_a_failed_start_left_is_ended(tmp_path: Path, console: Console, port: int) -> None:
    raglane = StandIn(tmp_path, up=1)
    with pytest.raises(ExperimentError, match="code 1"):
        with serving(f"http://127.0.0.1:{port}", console, 60, raglane.command):
            pytest.fail("there is no server to measure")
    assert [call[0] for call in raglane.calls()] == ["up", "down"]


def test_the_data_of_a_server_that_would_not_end_stay_so_that_it_can_be_ended(
    tmp_path: Path, console: Console, port: int
) -> None:
    raglane = StandIn(tmp_path, down=1)
    with serving(f"http://127.0.0.1:{port}", console, 60, raglane.command):
        pass
    assert (raglane.data() / "state").exists()


def test_a_server_that_runs_is_used_and_left_alone(tmp_path: Path, console: Console) -> None:
    raglane = StandIn(tmp_path)
    with StubServer() as server, serving(server.url, console, 60, raglane.command):
        pass
    assert raglane.calls() == []


def test_a_server_elsewhere_is_not_loaded(tmp_path: Path, console: Console) -> None:
    raglane = StandIn(tmp_path)
    with pytest.raises(ExperimentError, match="is not on this machine"):
        with serving("http://raglane.invalid:8000", console, 60, raglane.command):
            pytest.fail("there is no server to measure")
    assert raglane.calls() == []


def test_a_missing_program_is_named(tmp_path: Path, console: Console, port: int) -> None:
    with pytest.raises(ExperimentError, match=r"there is no .*not-there"):
        with serving(f"http://127.0.0.1:{port}", console, 60, [str(tmp_path / "not-there")]):
            pytest.fail("there is no server to measure")


def test_the_command_says_why_it_did_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.standard", "--url", "http://192.0.2.1:8000", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "6 experiments, 15:00 at most" in done.stderr
    assert "http://192.0.2.1:8000 is not on this machine" in " ".join(done.stderr.split())


# What is made from the results


def test_everything_is_made_from_the_results(published: Published) -> None:
    names = {path.name for path in published.results.iterdir()}
    for experiment in STANDARD_SET:
        ends = (".json", ".samples.jsonl", ".runs.csv", ".stages.csv", "-latency.png", "-stages.png", "-batches.png")
        assert names.issuperset({f"{experiment.name}{end}" for end in ends})
    assert "page.html" in names


def test_the_docs_show_plots_that_lie_where_they_say(published: Published) -> None:
    page = published.docs.read_text(encoding="utf-8")
    links = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert any(link.endswith("/docs_closed-latency.png") for link in links)
    assert all((published.docs.parent / link).read_bytes().startswith(PICTURE.png) for link in links)


def test_the_docs_have_a_chapter_and_a_command_for_each_experiment(published: Published) -> None:
    page = published.docs.read_text(encoding="utf-8")
    assert page.startswith("# Figures\n\nBy hand.\n")
    assert page.endswith("\n## Also by hand\n")
    for experiment in STANDARD_SET:
        assert f"### {experiment.title}" in page
        assert f"python -m benchmarks.run benchmarks/experiments/{experiment.name}.yaml" in page


def test_a_missing_result_leaves_the_docs_as_they_are(tmp_path: Path) -> None:
    docs = tmp_path / "figures.md"
    docs.write_text(PAGE, encoding="utf-8")
    with pytest.raises(ResultFileError, match=STANDARD_SET[0].name):
        publish(tmp_path, docs)
    assert docs.read_text(encoding="utf-8") == PAGE


# The part of the docs


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    after = replace_section(PAGE, "new\n\nlines")
    assert after == PAGE.replace("old", "new\n\nlines")
    assert replace_section(after, "new\n\nlines") == after


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "figures.md"
    page.write_text(PAGE, encoding="utf-8")
    write_section(page, [part(tmp_path)], tmp_path / "figures")
    first = page.read_text(encoding="utf-8")
    assert "](figures/docs_closed-stages.png)" in first
    write_section(page, [part(tmp_path)], tmp_path / "figures")
    assert page.read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    "page",
    [
        "no markers",
        f"{BEGIN}\nwithout an end",
        f"without a begin\n{END}",
        f"{END}\n{BEGIN}",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}",
    ],
)
def test_a_page_without_one_pair_of_markers_is_refused(page: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.md"
    path.write_text(page, encoding="utf-8")
    with pytest.raises(PageError, match=r"figures\.md needs the line"):
        write_section(path, [part(tmp_path)], tmp_path / "pictures")
    assert path.read_text(encoding="utf-8") == page
    assert not (tmp_path / "pictures").exists()


def test_the_docs_page_of_this_repository_has_the_markers() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "new" in replace_section(page, "new")
    assert "Written by `make bench`" in page


def test_the_section_tells_machine_commands_loads_stages_and_bottleneck(tmp_path: Path) -> None:
    text = section([part(tmp_path)], "benchmarks")
    assert text.startswith("Written by `make bench`")
    for told in (
        "AMD EPYC 9R14, 2 cores, 24 GiB, no GPU; commit 0123456789ab; raglane 0.1.0, python 3.11.9, ray 2.60.0",
        "raglane up --detach --ingest-if-empty docs --collection docs",
        "python -m benchmarks.run a.yaml",
        "### Closed loop",
        "| 64 clients | 2 | 200 | 46 |",
        "| embed | 513 | 467 | 1,400 | 50% | 20% | 30% | 5.6 |",
        "**Bottleneck at 64 clients: parse,",
    ):
        assert told in text
    assert "](benchmarks/docs_closed-stages.png)" in text


def test_a_saturation_search_shows_what_it_found_and_tried(tmp_path: Path) -> None:
    text = section([part(tmp_path, made.saturation_result())], "benchmarks")
    assert "Highest rate sustained: 20 requests/s." in text
    assert "| 40/s | failed | 33 | – | fell behind |" in text


def test_the_section_does_not_tell_where_files_lie(tmp_path: Path) -> None:
    command = "python -m benchmarks.run /some/where/a.yaml --out /some/where/b.json"
    text = section([part(tmp_path, command=command, url="http://10.1.2.3:8000")], "benchmarks")
    assert "/some/where" not in text
    assert str(tmp_path) not in text
    assert "10.1.2.3" not in text


def test_names_cannot_break_out_of_a_table() -> None:
    lines = to_markdown(Table("", ("stage", "ms"), (("a|b\n<b>*c*</b>", "1"),))).splitlines()
    assert len(lines) == 3
    assert lines[2] == r"| a\|b &lt;b>\*c\*&lt;/b> | 1 |"
