"""raglane as a process of its own: brought up with a config file, given documents, taken down again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError

# A model of 8B parameters is read and vLLM's kernels are made within minutes; what takes longer hangs.
UP_TIMEOUT_S = 1800.0
DOWN_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class LaneServer:
    """The command line of the server under test. `environ` goes to it besides this process's own."""

    config: Path
    data: Path
    port: int
    environ: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """A server that is ready, and its URL; down again when the block is left. Raises ExperimentError."""
        config, data = str(self.config.absolute()), str(self.data.absolute())
        try:
            up = ("up", "--detach", "--config", config, "--data", data, "--port", str(self.port))
            self._raglane(*up, timeout_s=UP_TIMEOUT_S)
            yield self.url
        finally:
            self._raglane("down", "--data", data, timeout_s=DOWN_TIMEOUT_S)

    def ingest(self, documents: Path, collection: str) -> None:
        """Index a file of documents. Raises ExperimentError where any of them is refused."""
        self._raglane("ingest", str(documents.absolute()), "--collection", collection, "--url", self.url)

    def _raglane(self, *arguments: str, timeout_s: float | None = None) -> None:
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "serve_app.cli.main", *arguments]
        environ = {**os.environ, **self.environ, "PYTHONPATH": path}
        try:
            done = subprocess.run(command, cwd=REPOSITORY, env=environ, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise ExperimentError(f"`raglane {arguments[0]}` was not done within {timeout_s:g} s") from error
        if done.returncode != 0:
            raise ExperimentError(f"`raglane {' '.join(arguments)}` ended with code {done.returncode}")
