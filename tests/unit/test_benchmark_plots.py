"""Where the knee of a curve is, and that the plots are pictures of what the result holds."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.knee import knee
from benchmarks.plots import Plot, draw, find_knee, main
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.throughput_result import ThroughputResult, read_result
from tests import throughput_results as made

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read(folder: Path, content: dict[str, Any]) -> ThroughputResult:
    return read_result(made.write(folder / "small.json", content))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> list[Plot]:
    """The plots of four closed loads."""
    return draw(read(tmp_path_factory.mktemp("closed"), made.closed_result()))


def ramp(latencies_s: list[float], **changes: Any) -> dict[str, Any]:
    """Open loads of 10, 20, … requests/s, each a step with this median latency."""
    loads = [
        made.measured(made.offered(10 * (step + 1)), p50_s, 10 * (step + 1), step=step)
        for step, p50_s in enumerate(latencies_s)
    ]
    return made.result(*loads, name="docs_ramp", **changes)


@pytest.mark.parametrize(
    ("rates", "latencies", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5], [1, 1, 1, 1, 9], 3, id="a hockey stick"),
        pytest.param([10, 20, 30, 40], [1, 1.1, 5, 9], 1, id="two straight lines"),
        pytest.param([12, 38, 45, 46], [0.1, 0.2, 0.4, 1.6], 2, id="throughput that levels off"),
        pytest.param([12, 38, 45, 40], [0.1, 0.2, 0.4, 1.6], 2, id="throughput that falls back"),
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], None, id="a straight line"),
        pytest.param([1, 2, 3, 4], [1, 5, 6, 6.5], None, id="a curve that flattens"),
        pytest.param([1, 2, 3], [2, 2, 2], None, id="a flat line"),
        pytest.param([1, 2], [1, 9], None, id="two points"),
        pytest.param([], [], None, id="no points"),
    ],
)
def test_the_knee_lies_farthest_below_the_chord(
    rates: list[float], latencies: list[float], expected: int | None
) -> None:
    assert knee(rates, latencies) == expected


@given(latencies=st.lists(st.integers(1, 10_000), min_size=3, max_size=12), unit=st.integers(-6, 6))
def test_the_knee_does_not_depend_on_the_units(latencies: list[int], unit: int) -> None:
    rates = range(len(latencies))
    # Powers of two, which change no rounding.
    scaled = knee([rate * 2.0**unit for rate in rates], [latency * 2.0**-unit for latency in latencies])
    assert scaled == knee(rates, latencies)


def test_the_knee_of_a_ramp_is_found_in_its_p99(tmp_path: Path) -> None:
    result = read(tmp_path, ramp([0.1, 0.11, 0.13, 0.9, 2.0]))
    ((family, members),) = result.families()
    found = find_knee(result, family, members)
    assert found is not None
    assert found[0] == 30
    assert "chord" in found[1]


def test_a_saturation_search_knows_the_knee_better(tmp_path: Path) -> None:
    result = read(tmp_path, ramp([0.1, 0.11, 0.13, 0.9, 2.0], saturation=[made.saturation()]))
    ((family, members),) = result.families()
    found = find_knee(result, family, members)
    assert found is not None
    assert found[0] == 20
    assert "saturation" in found[1]


@pytest.mark.parametrize(("highest", "expected"), [([16.0, 20.0, 40.0], 20), ([20.0, None, 12.0], 12)])
def test_several_searches_know_the_knee_by_their_median(
    tmp_path: Path, highest: list[float | None], expected: float
) -> None:
    searches = [made.saturation(repeat=repeat, max_rate_per_s=rate) for repeat, rate in enumerate(highest)]
    result = read(tmp_path, ramp([0.1, 0.11, 0.13, 0.9, 2.0], saturation=searches))
    ((family, members),) = result.families()
    assert find_knee(result, family, members) == (
        expected,
        "highest rate that passed the saturation search, median of 3",
    )


def test_searches_of_different_loads_are_not_mixed(tmp_path: Path) -> None:
    searches = [
        made.saturation(load={**made.saturation()["load"], "with_ingest": with_ingest}, max_rate_per_s=rate)
        for with_ingest, rate in ((True, 20.0), (False, 40.0))
    ]
    result = read(tmp_path, ramp([0.1, 0.11, 0.13, 0.9, 2.0], saturation=searches))
    ((family, members),) = result.families()
    found = find_knee(result, family, members)
    assert found is not None
    assert found[0] == 20


@pytest.mark.parametrize("sustained", [None, 0.0])
def test_a_search_in_which_no_rate_passed_leaves_the_knee_to_the_curve(tmp_path: Path, sustained: float | None) -> None:
    searched = made.saturation(max_rate_per_s=sustained)
    result = read(tmp_path, ramp([0.1, 0.11, 0.13, 0.9, 2.0], saturation=[searched]))
    ((family, members),) = result.families()
    found = find_knee(result, family, members)
    assert found is not None
    assert found[0] == 30


def test_every_plot_is_a_png_of_1200_by_800(closed: list[Plot]) -> None:
    assert [plot.name for plot in closed] == ["latency", "stages", "batches"]
    for plot in closed:
        assert plot.png.startswith(PNG_SIGNATURE)
        assert struct.unpack(">II", plot.png[16:24]) == (1200, 800)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path, closed: list[Plot]) -> None:
    assert draw(read(tmp_path, made.closed_result())) == closed


def test_the_alternative_texts_say_what_the_pictures_show(closed: list[Plot]) -> None:
    latency, stages, batches = closed
    assert "p99 goes from 240 ms at 12/s to 4,200 ms at 46/s" in latency.alt
    assert "chord, 45/s" in latency.alt
    assert "At 64 clients the longest stage is parse" in stages.alt
    assert "generate: 5.2 items in the lightest load, 8.6 in the heaviest" in batches.alt
    assert "parse" not in batches.alt, "a stage that never batches is left out"


def test_closed_and_open_loads_of_one_file_are_both_told_of(tmp_path: Path) -> None:
    loads = (made.closed(4), 20.0), (made.closed(8), 30.0), (made.offered(9), 9.0), (made.offered(30), 29.0)
    both = made.result(*[made.measured(load, 0.2, answered_per_s) for load, answered_per_s in loads])
    latency = draw(read(tmp_path, both))[0]
    assert "Closed loop: " in latency.alt
    assert "Open loop: " in latency.alt


def test_the_probes_of_a_saturation_search_are_drawn_though_they_have_no_medians(tmp_path: Path) -> None:
    latency, stages, _ = draw(read(tmp_path, made.saturation_result()))
    assert "the p99 goes from 300 ms at 10/s to 1,200 ms at 40/s" in latency.alt
    assert "saturation search, 20/s" in latency.alt
    assert "At 40/s poisson" in stages.alt


def test_of_many_loads_the_stages_of_four_are_shown_with_the_lightest_and_the_heaviest(tmp_path: Path) -> None:
    _, stages, _ = draw(read(tmp_path, ramp([0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9])))
    assert "(4 of 7 loads)" in stages.title
    assert "At 10/s poisson" in stages.alt
    assert "At 70/s poisson" in stages.alt


def test_a_result_without_stages_has_its_latency_alone(tmp_path: Path) -> None:
    loads = [made.measured(made.closed(clients), 0.1 * clients, 9.0 + clients, stages=()) for clients in (1, 2, 4)]
    assert [plot.name for plot in draw(read(tmp_path, made.result(*loads)))] == ["latency"]


def test_a_result_in_which_nothing_succeeded_has_no_plots(tmp_path: Path) -> None:
    assert draw(read(tmp_path, made.result(made.measured(made.closed(1), None, 0.0)))) == []


def test_loads_that_differ_in_something_else_have_no_latency_against_rate(tmp_path: Path) -> None:
    loads = [made.measured(made.offered(10, with_ingest=ingest), 0.1, 10.0) for ingest in (False, True)]
    assert [plot.name for plot in draw(read(tmp_path, made.result(*loads)))] == ["stages", "batches"]


def test_a_load_that_failed_does_not_hide_the_others(tmp_path: Path) -> None:
    loads = [made.measured(made.offered(rate), None if rate > 50 else 0.1, rate) for rate in (10.0, 20.0, 90.0)]
    latency = draw(read(tmp_path, made.result(*loads)))[0]
    assert "from 300 ms at 10/s to 300 ms at 20/s" in latency.alt


def test_a_replayed_trace_stands_at_the_rate_that_it_offered(tmp_path: Path) -> None:
    loads = [
        made.measured(
            {"kind": "replay", "trace": "traces/day.jsonl", "speed": speed}, 0.2, 7.0, offered_per_s=4 * speed
        )
        for speed in (1.0, 2.0)
    ]
    result = read(tmp_path, made.result(*loads))
    assert "to 600 ms at 8/s" in draw(result)[0].alt
    assert result.medians[1].load.label == "replay day.jsonl × 2"


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    names = [r"$\frac{1}{2}$", "$broken", "_hidden"]
    content = made.result(*[made.measured(made.closed(n), 0.1 * n, 10.0 * n, stages=["a", *names]) for n in (1, 2)])
    assert len(draw(read(tmp_path, content))) == 3


def test_the_command_names_the_files_by_result_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = made.result(*[made.measured(made.closed(n), 0.1, 9.0 * n, stages=()) for n in (1, 2)])
    paths = [made.write(tmp_path / f"{name}.json", content) for name in ("one", "two")]
    assert main([*map(str, paths), "--out", str(tmp_path / "pictures")]) == EXIT_OK
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["one-latency.png", "two-latency.png"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "pictures").iterdir())


def test_the_command_refuses_results_of_the_first_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made.write(tmp_path / "old.json", made.closed_result(schema_version=1))
    assert main([str(path)]) == EXIT_USAGE
    assert "schema_version 1" in capsys.readouterr().err
