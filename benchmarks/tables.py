"""The tables of a throughput result, as text in cells: what the HTML page and docs/benchmarks.md both show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.result_parts import Medians, Quantiles, Run
from benchmarks.throughput_result import ThroughputResult

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below named columns; the first column names its row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def short(value: float) -> str:
    """Write a number with three digits or, from 100 on, without a fraction: 0.0123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def loads_table(result: ThroughputResult) -> Table:
    """A row for each load: medians of what was measured, sums of what failed. Columns without a value are left out."""
    columns: dict[str, Callable[[Medians], str]] = {
        "load": lambda one: one.load.label,
        "runs": lambda one: str(one.repeats),
        "requests": lambda one: f"{sum(run.summary.num_requests for run in result.runs_of(one)):,}",
        "requests/s": lambda one: short(one.requests_per_s),
        "good/s": lambda one: NOTHING if one.good_per_s is None else short(one.good_per_s),
        "good": lambda one: _good_share(result.runs_of(one)),
        "SLO met": lambda one: _slo_met(result.runs_of(one)),
        **{f"{name}, ms": _time("latency", name) for name in ("p50", "p90", "p99")},
        **{f"TTFT {name}, ms": _time("ttft", name) for name in ("p50", "p99")},
        **{f"ITL {name}, ms": _time("inter_token", name) for name in ("p50", "p99")},
        "failed": lambda one: str(sum(run.summary.num_failed for run in result.runs_of(one))),
        "shed": lambda one: str(sum(run.summary.shed for run in result.runs_of(one))),
        "timeouts": lambda one: str(sum(run.summary.timeouts for run in result.runs_of(one))),
        "degraded": lambda one: _degraded(result.runs_of(one)),
        "documents/s": lambda one: _documents_per_s(result.runs_of(one)),
    }
    members = [one for _, members in result.families() for one in members]
    rows = [tuple(cell(one) for cell in columns.values()) for one in members]
    caption = "Loads: medians over the runs, requests and failures summed over them"
    return _without_empty_columns(Table(caption, tuple(columns), tuple(rows)))


def stages_table(one: Medians) -> Table:
    """A row for each stage of one load: time of a call, its shares, and how many items were computed together."""
    rows = tuple(
        (
            stage.stage,
            *(short(value * 1e3) for value in (stage.mean_s, stage.p50_s, stage.p99_s)),
            *(f"{share:.0%}" for share in (stage.queue_share, stage.batch_wait_share, stage.compute_share)),
            short(stage.mean_batch_size),
        )
        for stage in one.stages
    )
    columns = ("stage", "mean, ms", "p50, ms", "p99, ms", "queue", "batch wait", "compute", "batch size")
    return Table(f"Stages at {one.load.label}: one call, medians over the runs", columns, rows)


def saturation_table(result: ThroughputResult) -> Table:
    """A row for each rate that the saturation searches of the result tried, in their order."""
    rows = tuple(
        (
            f"{short(probe.rate_per_s)}/s",
            "passed" if probe.passed else "failed",
            NOTHING if probe.requests_per_s is None else short(probe.requests_per_s),
            NOTHING if probe.p99_s is None else short(probe.p99_s * 1e3),
            probe.reason or NOTHING,
        )
        for found in result.saturation
        for probe in found.probes
    )
    columns = ("offered", "outcome", "requests/s", "p99, ms", "why")
    return Table("Saturation search: the rates that it tried", columns, rows)


def bottleneck_sentence(one: Medians) -> str:
    """Say where the calls of a load wait longest; nothing where no stage reports."""
    stage = one.bottleneck
    if stage is None:
        return ""
    waited, computed = short(stage.wait_s * 1e3), short(stage.mean_s * stage.compute_share * 1e3)
    return (
        f"Bottleneck at {one.load.label}: {stage.stage}, whose calls wait longest, "
        f"{waited} ms on average before {computed} ms of computing."
    )


def saturation_sentences(result: ThroughputResult) -> list[str]:
    """Say what each saturation search of the result found."""
    sentences = []
    for found in result.saturation:
        rate = f"{short(found.max_rate_per_s)} requests/s" if found.max_rate_per_s else "none of the rates tried"
        limit = f" Limit: {found.limit.rstrip('.')}." if found.limit else ""
        sentences.append(f"Highest rate sustained: {rate}.{limit}")
    return sentences


def hardware_phrase(result: ThroughputResult) -> str:
    """Name the machine: processor, cores, memory, GPUs."""
    hardware = result.hardware
    memory = hardware.get("memory_bytes")
    parts = (
        str(hardware.get("cpu") or "unknown processor"),
        f"{hardware.get('num_cores') or '?'} cores",
        f"{memory / 2**30:.0f} GiB" if memory else "",
        ", ".join(hardware.get("gpus") or ()) or "no GPU",
    )
    return ", ".join(part for part in parts if part)


def commit_phrase(result: ThroughputResult) -> str:
    """Name the code: its commit, and whether there were changes on top of it."""
    if result.commit is None:
        return "unknown commit"
    return f"commit {result.commit[:12]}{' with changes that are not committed' if result.dirty else ''}"


def versions_phrase(result: ThroughputResult, names: Sequence[str] | None = None) -> str:
    """List all versions, or those of `names` that there are, as `ray 2.60.0, torch 2.13.0`."""
    shown = result.versions if names is None else [name for name in names if name in result.versions]
    return ", ".join(f"{name} {result.versions[name]}" for name in shown)


def to_markdown(table: Table) -> str:
    """Write a table in GitHub's Markdown, its cells without any meaning for Markdown or HTML."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(escape_markdown, line))} |" for line in lines)


def escape_markdown(text: str) -> str:
    """Take the meaning from the characters of a name that Markdown or HTML would read as their own."""
    one_line = " ".join(text.split())
    for character, written in (("&", "&amp;"), ("<", "&lt;"), ("\\", "\\\\"), *((c, f"\\{c}") for c in "|`*_[]")):
        one_line = one_line.replace(character, written)
    return one_line


def _time(field: str, quantile: str) -> Callable[[Medians], str]:
    def cell(one: Medians) -> str:
        values: Quantiles | None = getattr(one, field)
        return NOTHING if values is None else short(getattr(values, f"{quantile}_s") * 1e3)

    return cell


def _good_share(runs: Iterable[Run]) -> str:
    judged = [(run.summary.goodput.good, run.summary.num_requests) for run in runs if run.summary.goodput is not None]
    num_requests = sum(count for _, count in judged)
    return f"{sum(good for good, _ in judged) / num_requests:.1%}" if num_requests else NOTHING


def _slo_met(runs: Iterable[Run]) -> str:
    judged = [run.summary.goodput.met for run in runs if run.summary.goodput is not None]
    if not judged:
        return NOTHING
    return "yes" if all(judged) else "no" if not any(judged) else f"in {sum(judged)} of {len(judged)}"


def _degraded(runs: Iterable[Run]) -> str:
    """How many answers did without which stages; an answer counts for each of them."""
    known = [run.summary.degraded for run in runs if run.summary.degraded is not None]
    counts: Counter[str] = Counter()
    for degraded in known:
        counts.update(degraded)
    return ", ".join(f"{stage} {count}" for stage, count in counts.items()) or ("0" if known else NOTHING)


def _documents_per_s(runs: Iterable[Run]) -> str:
    rates = [run.ingest.documents_per_s for run in runs if run.ingest is not None]
    return short(median(rates)) if rates else NOTHING


def _without_empty_columns(table: Table) -> Table:
    kept = [
        index
        for index in range(len(table.columns))
        if not table.rows or any(row[index] != NOTHING for row in table.rows)
    ]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return Table(table.caption, tuple(table.columns[index] for index in kept), rows)
