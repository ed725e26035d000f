"""The memory of a process tree, as sampled and summed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.memory import (
    MIB,
    MemorySample,
    main,
    measure,
    summarise,
    watch,
)
from benchmarks.run import EXIT_OK, EXIT_USAGE

HOLD_64_MIB = "held = bytearray(b'x') * (64 << 20); print('holding', flush=True); input()"


def test_the_memory_of_this_process_is_sampled_and_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "memory.json"
    assert main(["--pid", str(os.getpid()), "--seconds", "0.2", "--every", "0.1", "--out", str(out)]) == EXIT_OK
    result = json.loads(out.read_text(encoding="utf-8"))
    sizes = [sample["resident_bytes"] for sample in result["samples"]]
    assert len(sizes) == 3
    assert min(sizes) > 10 * MIB
    assert result["command"].startswith("python -m benchmarks.memory --pid ")
    assert {"schema_version", "commit", "versions", "hardware", "started_at"} <= result.keys()
    summary = result["summary"]
    assert (summary["first_bytes"], summary["last_bytes"]) == (sizes[0], sizes[-1])
    assert (summary["min_bytes"], summary["max_bytes"]) == (min(sizes), max(sizes))
    assert "per minute" in capsys.readouterr().err


def test_without_a_file_the_json_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pid", str(os.getpid()), "--seconds", "0.1", "--every", "1"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["summary"]["slope_bytes_per_min"] is None


def test_descendants_count_as_well() -> None:
    command = [sys.executable, "-c", HOLD_64_MIB]
    alone, num_alone = measure(psutil.Process())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together, num_together = measure(psutil.Process())
        child.communicate("\n")
    assert together - alone > 60 * MIB
    assert num_together == num_alone + 1


def test_the_slope_is_in_bytes_per_minute() -> None:
    sizes = (1000, 1300, 1200, 1500)
    summary = summarise([MemorySample(30.0 * number, size, 1) for number, size in enumerate(sizes)])
    assert (summary.first_bytes, summary.last_bytes, summary.min_bytes, summary.max_bytes) == (1000, 1500, 1000, 1500)
    # By hand, in half minutes: sum((x - 1.5) * (y - 1250)) / sum((x - 1.5)**2) = 700 / 5.
    assert summary.slope_bytes_per_min == pytest.approx(280.0)


def test_a_process_that_is_not_there_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert main(["--pid", str(ended.pid)]) == EXIT_USAGE
    assert str(ended.pid) in capsys.readouterr().err


def test_what_was_sampled_before_the_process_ended_is_kept() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as child:
        samples: list[MemorySample] = []

        def take(sample: MemorySample) -> None:
            samples.append(sample)
            child.communicate("\n")

        with pytest.raises(psutil.NoSuchProcess):
            watch(psutil.Process(child.pid), 60.0, 0.01, take)
    assert len(samples) == 1


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--every", "-1"], ["--every", "inf"]])
def test_times_that_make_no_sense_are_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--pid", str(os.getpid()), *arguments])
    assert ended.value.code == EXIT_USAGE
