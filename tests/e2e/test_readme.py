"""The README does what it says: its commands are run against a server of the local profile, HAProxy included."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine, command_line

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def title(block: str) -> str:
    return block.splitlines()[0].lstrip("# ")[:40]


def make_run_arguments(port: int, data: Path) -> list[str]:
    """The arguments of `raglane` in the last command that `make run` would run."""
    command = ["make", "--dry-run", "--no-print-directory", "run", f"PORT={port}", f"DATA={data}"]
    commands = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    program, *arguments = shlex.split(commands[-1])
    assert program == ".venv/bin/raglane"
    return arguments


@pytest.fixture(scope="module")
def raglane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The server that `make run` starts, with its first steps, but in the background and on ports of its own."""
    with command_line(tmp_path_factory.mktemp("readme")) as raglane:
        data = raglane.state_file.data_dir
        command = raglane.command(*make_run_arguments(raglane.port, data), "--detach")
        up = subprocess.run(
            command, cwd=ROOT, env=raglane.environ, capture_output=True, text=True, check=False, timeout=300
        )
        assert up.returncode == 0, up.stderr
        for promised in ("generator: extractive", "generate", raglane.url):
            assert promised in up.stdout
        # Which sources a quoting answer cites is up to the documents; each is listed under its number.
        cited = set(re.findall(r"[.!?] \[(\d+)\]", up.stdout))
        assert cited
        assert cited <= set(re.findall(r"^\[(\d+)\] ", up.stdout, re.MULTILINE))
        yield raglane


@pytest.mark.parametrize("block", blocks(), ids=title)
def test_the_commands_of_the_readme_work(raglane: CommandLine, block: str) -> None:
    script = block.replace("http://127.0.0.1:8000", raglane.url)
    script = script.replace(".venv/bin/python", sys.executable)
    script = script.replace(".venv/bin/raglane", f"{sys.executable} -m serve_app.cli.main")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=raglane.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (ran.stdout + ran.stderr).strip()


def test_make_run_starts_the_default_profile_and_takes_its_first_steps(tmp_path: Path) -> None:
    command, *arguments = make_run_arguments(8123, tmp_path)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert command == "up"
    assert options.pop("--ask").endswith("?")
    first_steps = {"--ingest-if-empty": "docs", "--collection": "docs"}
    assert options == {"--data": str(tmp_path), "--port": "8123", **first_steps}


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [README, (ROOT / "CONTRIBUTING.md").read_text(), *(p.read_text() for p in (ROOT / "docs").rglob("*.md"))]
    named = {name for page in pages for name in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page, re.MULTILINE)}
    assert {name for pair in named for name in pair if name} <= targets


def test_every_file_that_the_documents_name_exists() -> None:
    pages = [README, *(p.read_text() for p in (ROOT / "docs").rglob("*.md"))]
    named = {name for page in pages for name in re.findall(r"`((?:\w+/)+[\w.-]+\.(?:py|yaml|md|json|lock|in))`", page)}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
