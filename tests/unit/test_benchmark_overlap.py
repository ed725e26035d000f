"""How long an answer takes over engines with known delays, as the overlap benchmark works it out."""

from __future__ import annotations

import pytest

from benchmarks.overlap import COMPARISON, SHAPES, SIMPLE, Delays, Measured, Shape, main
from benchmarks.run import EXIT_USAGE
from deployments.parsing import parse_question
from deployments.rewriting import sub_queries

DELAYS = Delays(embed=3, vector=2, text=4, rerank=1, generate=6, rewrite=5)


@pytest.mark.parametrize(
    ("shape", "longest_s", "in_a_row_s"),
    [
        (Shape("vector", SIMPLE, False), 5 + 7, 5 + 7),
        (Shape("text", SIMPLE, False), 4 + 7, 4 + 7),
        (Shape("hybrid", SIMPLE, False), 5 + 7, 9 + 7),
        (Shape("hybrid", SIMPLE, True), 10 + 7, 9 + 5 + 9 + 7),
        (Shape("hybrid", COMPARISON, True), 10 + 7, 3 + 3 * 6 + 5 + 9 + 7),
        (Shape("text", COMPARISON, True), 9 + 7, 12 + 5 + 4 + 7),
    ],
)
def test_the_longest_path_and_the_sum_of_all_calls(shape: Shape, longest_s: float, in_a_row_s: float) -> None:
    assert shape.longest_path_s(DELAYS) == longest_s
    assert shape.in_a_row_s(DELAYS) == in_a_row_s


def test_the_questions_have_as_many_sub_queries_as_the_benchmark_counts_on() -> None:
    assert sub_queries(parse_question(SIMPLE)) == ()
    assert len(sub_queries(parse_question(COMPARISON))) == 2


def test_every_shape_has_a_name_of_its_own() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)


def test_what_the_lane_adds_is_a_share_of_the_longest_path() -> None:
    assert Measured("vector", 2.0, 3.0, 2.2, (2.2,)).over_longest_path == pytest.approx(1.1)


def test_without_delays_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAGLANE_DELAY_EMBED", raising=False)
    assert main([]) == EXIT_USAGE
    assert "RAGLANE_DELAY_EMBED" in capsys.readouterr().err
