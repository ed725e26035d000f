"""The import rules of pyproject.toml: they hold, and each of them notices what it forbids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An import that each rule forbids, and words of the rule's name.
FORBIDDEN = [
    ("deployments.hop", "serve_app.trace", "never the reverse"),
    ("deployments.embedder", "deployments.retriever", "never imports another stage"),
    ("serve_app.pipeline", "ray", "know nothing of Ray"),
    ("serve_app.api.search", "deployments.remote", "by their verbs alone"),
    ("serve_app.pipeline", "starlette", "The lane knows nothing of HTTP"),
    ("deployments.indexer", "fastapi", "The kitchen knows nothing of HTTP"),
    ("deployments.contracts", "pydantic", "needs no framework"),
    ("deployments.errors", "deployments.contracts", "from the stages down"),
    ("serve_app.api.wire", "serve_app.cli.exits", "from the command line down"),
    ("deployments.batching", "torch", "run without Ray"),
    ("benchmarks.measure", "deployments.contracts", "from outside"),
]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("lint-imports")
    environ = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [str(linter), "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def report_on_a_broken_tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of this tree with every forbidden import in it."""
    folder = tmp_path_factory.mktemp("broken")
    for package in ("serve_app", "deployments", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for importer, imported, _ in FORBIDDEN:
        path = folder / f"{importer.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\nimport {imported}\n")
    return _lint(folder).stdout


def test_every_import_rule_is_kept() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("importer", "imported", "rule"), FORBIDDEN)
def test_a_forbidden_import_is_named_under_its_rule(
    report_on_a_broken_tree: str, importer: str, imported: str, rule: str
) -> None:
    summary, _, details = report_on_a_broken_tree.partition("Broken contracts")
    # A rule with exceptions counts them behind the verdict.
    verdicts = [line.partition(" (")[0] for line in summary.splitlines() if rule in line]
    assert [verdict for verdict in verdicts if verdict.endswith("BROKEN")], summary
    assert f"{importer} -> {imported}" in _section(details, rule)


def _section(details: str, rule: str) -> str:
    """The part of the report below the rule's heading: a name underlined with dashes."""
    lines = details.splitlines()
    headings = [i for i, line in enumerate(lines[:-1]) if line and set(lines[i + 1]) == {"-"}]
    start = next(i for i in headings if rule in lines[i])
    end = next((i for i in headings if i > start), len(lines))
    return "\n".join(lines[start:end])
