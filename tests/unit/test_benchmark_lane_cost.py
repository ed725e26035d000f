"""The benchmark of what the lane itself costs: it asks the real lane, over stages that find and say something."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks.lane_cost import RECEIVED, REQUESTS, SENT, InstantStages, main, measure
from deployments.contracts import RerankRequest, Timed, Vector
from deployments.errors import InvalidInput

MEASURED = [*REQUESTS, SENT, RECEIVED]


def test_every_path_and_both_ends_of_a_hop_are_measured() -> None:
    costs = measure(InstantStages(num_candidates=3, passage_chars=80), seconds=0.0)
    assert [cost.what for cost in costs] == MEASURED
    for cost in costs:
        assert cost.num_times >= 2
        assert 0 < cost.p25_s <= cost.p50_s <= cost.p75_s


def test_a_request_that_fails_is_no_measurement() -> None:
    class Refusing(InstantStages):
        async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
            raise InvalidInput("nothing to read")

    with pytest.raises(RuntimeError, match=r"/v1/answers answered \[400\]"):
        measure(Refusing(3, 80), seconds=0.0)


def test_the_table_and_the_result_have_a_row_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    asked = ["--candidates", "2", "--chars", "70", "--seconds", "0", "--out", str(out)]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert all(what in printed for what in MEASURED)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [cost["what"] for cost in result["costs"]] == MEASURED
    assert all(cost["p50_s"] > 0 for cost in result["costs"])
    assert (result["candidates"], result["passage_chars"]) == (2, 70)
    assert result["command"] == shlex.join(["python", "-m", "benchmarks.lane_cost", *asked])
    assert {"schema_version", "commit", "versions", "hardware", "started_at"} <= result.keys()
