"""`python -m benchmarks.plots RESULT.json...`: latency against rate, where each stage's time goes, batch sizes."""

from __future__ import annotations

import argparse
import io
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.knee import knee
from benchmarks.result_parts import Family, Load, Medians, Quantiles, StageMedians
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.tables import short
from benchmarks.throughput_result import ResultFileError, ThroughputResult, read_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# 1200 x 800 pixels.
SIZE_INCHES = (12.0, 8.0)
DOTS_PER_INCH = 100

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart, without its yellow.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":")

PERCENTILES = (("p50", "p50_s", BLUE), ("p90", "p90_s", ORANGE), ("p99", "p99_s", VERMILION))
PARTS = (
    ("queue", "queue_share", ORANGE),
    ("batch wait", "batch_wait_share", "#56B4E9"),
    ("compute", "compute_share", BLUE),
)
LOADS = {"closed": "closed loop", "open": "open loop"}
RATES = {
    "closed": "answered requests per second, each point labelled with its load",
    "open": "offered requests per second",
}
MAX_STACKS = 4
# A stage whose batches never hold more than this on average does not batch.
NO_BATCH = 1.05


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of a result. `name` goes into its file's name, `alt` says in words what it shows, `png` is the file."""

    name: str
    title: str
    alt: str
    png: bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        results = [(path, read_result(path)) for path in options.results]
    except ResultFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    for path, result in results:
        for written in write_plots(result, draw(result), options.out or path.parent):
            print(written)
    return EXIT_OK


def write_plots(result: ThroughputResult, plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Write each plot of the result as STEM-NAME.png into the folder and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in plots:
        path = folder / file_name(result, plot)
        path.write_bytes(plot.png)
        paths.append(path)
    return paths


def file_name(result: ThroughputResult, plot: Plot) -> str:
    """Return the name of the file in which a plot of the result is kept."""
    return f"{result.stem}-{plot.name}.png"


def draw(result: ThroughputResult) -> list[Plot]:
    """Return those of the plots `latency`, `stages` and `batches` for which the result has data."""
    plots = (_latency(result), _stages(result), _batches(result))
    return [plot for plot in plots if plot is not None]


def find_knee(result: ThroughputResult, family: Family, members: Sequence[Medians]) -> tuple[float, str] | None:
    """Return the rate at the knee of the p99 and in words how it was found; None where there is none.

    It is the highest rate that a saturation search let pass, if the result has one; of several searches the median, in
    which one that let none pass counts as 0. Else it is the point with the largest distance from the chord from the
    lightest load to the heaviest, see `benchmarks.knee`.
    """
    if family == "open":
        searched: defaultdict[Load, list[float]] = defaultdict(list)
        for found in result.saturation:
            searched[found.load].append(found.max_rate_per_s or 0.0)
        for highest in searched.values():
            if rate_per_s := median(highest):
                several = f", median of {len(highest)}" if len(highest) > 1 else ""
                return rate_per_s, f"highest rate that passed the saturation search{several}"
    points = _points(result, family, members)
    index = knee([rate for rate, _, _ in points], [latency.p99_s for _, _, latency in points])
    return None if index is None else (points[index][0], "knee of the p99: farthest from the chord")


def _points(result: ThroughputResult, family: Family, members: Sequence[Medians]) -> list[tuple[float, str, Quantiles]]:
    """Return rate, label and latency of the loads that were answered at all, from the lightest to the heaviest."""
    return [
        (one.requests_per_s if family == "closed" else result.weight_of(one), one.load.label, one.latency)
        for one in members
        if one.latency is not None
    ]


def _has_curve(result: ThroughputResult, family: Family, members: Sequence[Medians]) -> bool:
    """Whether there are two rates at least: loads at one rate have no latency against rate."""
    return len({rate for rate, _, _ in _points(result, family, members)}) > 1


def _latency(result: ThroughputResult) -> Plot | None:
    families = [(family, members) for family, members in result.families() if _has_curve(result, family, members)]
    if not families:
        return None
    figure, panels = _panels(1, len(families))
    told = []
    for panel, (family, members) in zip(panels, families, strict=True):
        told.append(_latency_panel(panel, result, family, members))
    title = f"{result.name}: latency against rate"
    return _finish(figure, "latency", title, f"{title}. {' '.join(told)}")


def _latency_panel(panel: Axes, result: ThroughputResult, family: Family, members: Sequence[Medians]) -> str:
    points = _points(result, family, members)
    rates = [rate for rate, _, _ in points]
    for (name, field, colour), marker in zip(PERCENTILES, MARKERS, strict=False):
        values = [getattr(latency, field) * 1e3 for _, _, latency in points]
        panel.plot(rates, values, color=colour, marker=marker, markersize=7, linewidth=2, label=name)
    if family == "closed":
        for rate, label, latency in points:
            panel.annotate(label, (rate, latency.p99_s * 1e3), xytext=(-8, 4), textcoords="offset points", ha="right")
    mark = find_knee(result, family, members)
    if mark is not None:
        panel.axvline(mark[0], color="#444444", linestyle="--", linewidth=1.5, label=f"{mark[1]}, {short(mark[0])}/s")
    panel.set(title=LOADS[family], xlabel=RATES[family], ylabel="latency, ms (log scale)", yscale="log")
    panel.margins(x=0.12, y=0.1)
    panel.set_xlim(left=max(0.0, panel.get_xlim()[0]))
    _legend_above(panel)
    _plain_log_ticks(panel)
    first, last = points[0], points[-1]
    ends = [f"{short(latency.p99_s * 1e3)} ms at {short(rate)}/s" for rate, _, latency in (first, last)]
    knee_words = "" if mark is None else f"; {mark[1]}, {short(mark[0])}/s"
    return f"{LOADS[family].capitalize()}: the p99 goes from {' to '.join(ends)}{knee_words}."


def _stages(result: ThroughputResult) -> Plot | None:
    with_stages = [one for _, members in result.families() for one in members if one.stages]
    if not with_stages:
        return None
    shown = _evenly(with_stages, MAX_STACKS)
    names = list(dict.fromkeys(stage.stage for one in shown for stage in one.stages))
    num_columns = 1 if len(shown) == 1 else 2
    figure, panels = _panels(-(-len(shown) // num_columns), num_columns)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, one in zip(panels, shown, strict=False):
        _stack_panel(panel, one, names)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
    title = f"{result.name}: mean time of a call of each stage"
    if len(shown) < len(with_stages):
        title += f" ({len(shown)} of {len(with_stages)} loads)"
    return _finish(figure, "stages", title, f"{title}. {' '.join(map(_slowest, shown))}")


def _stack_panel(panel: Axes, one: Medians, names: Sequence[str]) -> None:
    by_name = {stage.stage: stage for stage in one.stages}
    stages = [(row, by_name[name]) for row, name in enumerate(names) if name in by_name]
    rows = [row for row, _ in stages]
    left = [0.0] * len(stages)
    for label, field, colour in PARTS:
        widths = [stage.mean_s * getattr(stage, field) * 1e3 for _, stage in stages]
        panel.barh(rows, widths, left=left, color=colour, edgecolor="white", linewidth=0.5, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for (row, stage), end in zip(stages, left, strict=True):
        panel.annotate(short(stage.mean_s * 1e3), (end, row), xytext=(4, 0), textcoords="offset points", va="center")
    panel.set_yticks(range(len(names)), [_verbatim(name) for name in names])
    panel.invert_yaxis()
    panel.margins(x=0.15)
    panel.set(title=_verbatim(one.load.label), xlabel="ms for each call")


def _slowest(one: Medians) -> str:
    slowest = max(one.stages, key=lambda stage: stage.mean_s)
    return f"At {one.load.label} the longest stage is {slowest.stage} with {short(slowest.mean_s * 1e3)} ms."


def _batches(result: ThroughputResult) -> Plot | None:
    families = [
        (family, with_stages, names)
        for family, members in result.families()
        if (with_stages := [one for one in members if one.stages]) and (names := _batching_stages(with_stages))
    ]
    if not families:
        return None
    figure, panels = _panels(1, len(families))
    told = []
    for panel, (family, members, names) in zip(panels, families, strict=True):
        for index, name in enumerate(names):
            told.append(_batch_line(panel, members, name, index))
        panel.set(title=LOADS[family], xlabel="load", ylabel="mean batch size, items (log scale)", yscale="log")
        labels = [_verbatim(one.load.label) for one in members]
        crowded = len(labels) > 5
        panel.set_xticks(range(len(labels)), labels, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        _legend_above(panel, "stages that batch")
        _plain_log_ticks(panel)
    title = f"{result.name}: batch size against load"
    return _finish(figure, "batches", title, f"{title}. {' '.join(told)}")


def _batch_line(panel: Axes, members: Sequence[Medians], name: str, index: int) -> str:
    sizes = [(at, stage.mean_batch_size) for at, one in enumerate(members) if (stage := _stage(one, name)) is not None]
    panel.plot(
        [at for at, _ in sizes],
        [size for _, size in sizes],
        color=PALETTE[index % len(PALETTE)],
        marker=MARKERS[index % len(MARKERS)],
        # So that both of two lines that coincide are seen.
        linestyle=LINES[index % len(LINES)],
        markersize=7,
        linewidth=2,
        label=_verbatim(name),
    )
    return f"{name}: {short(sizes[0][1])} items in the lightest load, {short(sizes[-1][1])} in the heaviest."


def _batching_stages(members: Sequence[Medians]) -> list[str]:
    stages = (stage for one in members for stage in one.stages)
    return list(dict.fromkeys(stage.stage for stage in stages if stage.mean_batch_size > NO_BATCH))


def _stage(one: Medians, name: str) -> StageMedians | None:
    return next((stage for stage in one.stages if stage.stage == name), None)


def _evenly(members: Sequence[Medians], count: int) -> list[Medians]:
    """Return at most `count` of the loads, the first and the last among them."""
    if len(members) <= count:
        return list(members)
    return [members[round(index * (len(members) - 1) / (count - 1))] for index in range(count)]


def _panels(num_rows: int, num_columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own canvas, rather than pyplot's: nothing global, no window, nothing to close.
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel in panels:
        panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend_above(panel: Axes, title: str | None = None) -> None:
    """Make room above the curves of a log axis, and put the legend there.

    matplotlib can search for the best place: it differs with what is drawn, and takes seconds where there is much of
    it. Latencies and batches grow with the load, so the most room is above the lightest ones.
    """
    panel.set_ylim(top=panel.get_ylim()[1] * 2)
    panel.legend(title=title, loc="upper left")


def _plain_log_ticks(panel: Axes) -> None:
    """Label a log axis with plain numbers, also between powers of ten, where it spans few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    figure.suptitle(_verbatim(title), fontsize=15)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return Plot(name, title, alt, file.getvalue())


def _verbatim(text: str) -> str:
    """Keep matplotlib from reading a name between dollar signs as a formula."""
    return text.replace("$", r"\$")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="a result file of benchmarks.run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: each result's own)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
