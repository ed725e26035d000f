"""The Grafana dashboard and the alerts: queries name what is exported, and the files hold together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from deployments.telemetry import LE_LABELS, REPLICA_STARTED, metric_names
from tests.promql import Use, matched_labels, uses

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/dashboards/raglane.json").read_text(encoding="utf-8"))
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yaml").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs/observability.md").read_text(encoding="utf-8")

PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]

OURS = metric_names()
# What Serve adds to a metric of a replica, and Ray to every metric.
ADDED_LABELS = frozenset({"deployment", "replica", "application", "NodeAddress", "SessionName"})

# Metrics of Ray Serve 2.60 and of vLLM 0.29 that a query may name, without those that come and go: Serve sets some
# gauges (serve_deployment_replica_healthy, serve_application_status, serve_proxy_status) every 10 s, and Ray forgets
# a gauge after two report intervals, which are 2 s under raglane.
SERVE_COUNTERS = {
    "serve_deployment_request_counter",
    "serve_deployment_error_counter",
    "serve_deployment_replica_starts",
    "serve_handle_request_counter",
    "serve_health_check_failures",
    "serve_num_http_requests",
    "serve_num_http_error_requests",
    "serve_num_router_requests",
}
SERVE_GAUGES = {
    "serve_autoscaling_target_replicas",
    "serve_deployment_queued_queries",
    "serve_deployment_status",
    "serve_num_ongoing_requests_at_replicas",
    "serve_replica_processing_queries",
}
SERVE_HISTOGRAMS = {
    "serve_deployment_processing_latency_ms",
    "serve_http_request_latency_ms",
    "serve_request_router_fulfillment_time_ms",
}
VLLM_COUNTERS = {
    "vllm_generation_tokens",
    "vllm_num_preemptions",
    "vllm_prefix_cache_hits",
    "vllm_prefix_cache_queries",
    "vllm_prompt_tokens",
    "vllm_request_success",
}
VLLM_GAUGES = {"vllm_kv_cache_usage_perc", "vllm_num_requests_running", "vllm_num_requests_waiting"}
VLLM_HISTOGRAMS = {
    "vllm_e2e_request_latency_seconds",
    "vllm_inter_token_latency_seconds",
    "vllm_request_decode_time_seconds",
    "vllm_request_inference_time_seconds",
    "vllm_request_prefill_time_seconds",
    "vllm_request_queue_time_seconds",
    "vllm_request_time_per_output_token_seconds",
    "vllm_time_to_first_token_seconds",
}
THEIRS = frozenset(
    f"ray_{name}{suffix}"
    for names, suffixes in (
        (SERVE_COUNTERS | VLLM_COUNTERS, ("_total",)),
        (SERVE_GAUGES | VLLM_GAUGES, ("",)),
        (SERVE_HISTOGRAMS | VLLM_HISTOGRAMS, ("_bucket", "_count", "_sum")),
    )
    for name in names
    for suffix in suffixes
)
# Of every target, from Prometheus itself.
PROMETHEUS_OWN = frozenset({"up"})


def problems(query: str) -> list[str]:
    """What a query names that nobody exports."""
    found = []
    labels_here: set[str] = set()
    for use in uses(query):
        if use.metric in THEIRS | PROMETHEUS_OWN:
            labels_here |= use.labels
        elif use.metric in OURS:
            known = ADDED_LABELS.union(OURS[use.metric])
            labels_here |= known
            found += [f"{use.metric} has no label {label}" for label in sorted(use.labels - known)]
        else:
            found.append(f"nobody exports {use.metric}")
    return found + [f"no metric has the label {label}" for label in sorted(matched_labels(query) - labels_here)]


def _panel_queries() -> Iterator[tuple[str, str]]:
    for panel in GRAPHS:
        for target in panel["targets"]:
            yield f"{panel['title']}:{target['refId']}", target["expr"]


def _variable_queries() -> Iterator[tuple[str, str]]:
    """The query behind each variable, with the label whose values it offers as a grouping."""
    for variable in VARIABLES:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found is not None, variable["name"]
            yield f"${variable['name']}", f"group by ({found[2]}) ({found[1]})"


def _params(*named: tuple[str, str]) -> list[Any]:
    return [pytest.param(query, id=name) for name, query in named]


PANEL_QUERIES = list(_panel_queries())
ALERT_QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES]
QUERIES = [*PANEL_QUERIES, *_variable_queries(), *ALERT_QUERIES]


class TestReadingQueries:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("up", [("up", "")]),
            ('rate(a_total{x="y"}[5m])', [("a_total", "x")]),
            ('a{x=~"$x", y!~"{b}(c)", z!="d \\" e"}', [("a", "x y z")]),
            ("sum by (le, s) (rate(a[$__rate_interval])) / sum(b)", [("a", "le s"), ("b", "")]),
            ("histogram_quantile(0.99, sum by (le) (rate(a[5m]))) > 1e3", [("a", "le")]),
            ("max by (x) (a - min by (y) (b))", [("a", "x"), ("b", "x y")]),
            ("a / on (x) group_left () b and on () c or vector(0)", [("a", ""), ("b", ""), ("c", "")]),
            ("a / ignoring (x) group_left b unless c offset 15m", [("a", ""), ("b", ""), ("c", "")]),
            ("clamp_min(1 - a, 0) > bool 3", [("a", "")]),
            ("count by (x)\n(a unless\na)", [("a", "x"), ("a", "x")]),
        ],
    )
    def test_metrics_are_found_with_their_labels(self, query: str, expected: list[tuple[str, str]]) -> None:
        assert uses(query) == [Use(metric, frozenset(labels.split())) for metric, labels in expected]

    @pytest.mark.parametrize("query", ["a ? b", 'a{x="y', "sum(a) by (x)", "sum(a) without (x)"])
    def test_what_the_reader_does_not_know_is_refused_rather_than_passed_over(self, query: str) -> None:
        with pytest.raises(ValueError, match=r"not PromQL|labels behind"):
            uses(query)

    @pytest.mark.parametrize(
        ("query", "problem"),
        [
            ("rate(ray_raglane_requests[5m])", "nobody exports ray_raglane_requests"),
            ("sum(raglane_requests_total)", "nobody exports raglane_requests_total"),
            ("ray_serve_deployment_replica_healthy", "nobody exports ray_serve_deployment_replica_healthy"),
            ('ray_raglane_requests_total{endpont="/v1/answers"}', "ray_raglane_requests_total has no label endpont"),
            ("sum by (stage) (ray_raglane_requests_total)", "ray_raglane_requests_total has no label stage"),
            ("up / on (stag) ray_raglane_waiting", "no metric has the label stag"),
        ],
    )
    def test_a_name_that_nobody_exports_is_a_problem(self, query: str, problem: str) -> None:
        assert problems(query) == [problem]


class TestQueries:
    @pytest.mark.parametrize("query", _params(*QUERIES))
    def test_every_query_names_exported_metrics_and_their_labels(self, query: str) -> None:
        assert uses(query) != []
        assert problems(query) == []

    def test_every_exported_metric_is_on_a_panel(self) -> None:
        shown = {use.metric for _, query in PANEL_QUERIES for use in uses(query)}
        # A moment can neither be added up nor turned into a rate: the latency report alone reads it.
        assert set(OURS) - shown == {REPLICA_STARTED.exported}

    @pytest.mark.parametrize("query", _params(*PANEL_QUERIES, *ALERT_QUERIES))
    def test_buckets_are_read_by_their_bound(self, query: str) -> None:
        buckets = [use for use in uses(query) if "_bucket" in use.metric]
        assert all("le" in use.labels for use in buckets)
        assert ("histogram_quantile(" in query) <= bool(buckets)

    @pytest.mark.parametrize("query", _params(*PANEL_QUERIES))
    def test_counters_are_turned_into_rates_before_they_are_added(self, query: str) -> None:
        counters = [use.metric for use in uses(query) if re.search(r"_(total|bucket|count|sum)$", use.metric)]
        rated = re.findall(r"\b(?:rate|increase)\((\w+)", query)
        assert counters == rated


class TestDashboard:
    def test_panels_have_ids_of_their_own(self) -> None:
        ids = [panel["id"] for panel in PANELS]
        assert len(set(ids)) == len(ids)

    def test_no_panel_covers_another(self) -> None:
        cells = {panel["title"]: _cells(panel["gridPos"]) for panel in PANELS}
        assert len(cells) == len(PANELS)
        assert [(a, b) for a, b in combinations(cells, 2) if cells[a] & cells[b]] == []

    def test_every_panel_is_within_the_grid(self) -> None:
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)

    @pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in GRAPHS])
    def test_a_panel_says_what_it_shows_and_in_which_unit(self, panel: dict[str, Any]) -> None:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        ids = [target["refId"] for target in panel["targets"]]
        assert ids
        assert len(set(ids)) == len(ids)

    def test_every_variable_that_is_used_is_defined(self) -> None:
        # Grafana's own begin with two underscores.
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
        assert {name for name in used if not name.startswith("__")} <= {variable["name"] for variable in VARIABLES}

    def test_the_objective_that_is_shown_at_first_is_the_first_bound_above_three_seconds(self) -> None:
        (slo,) = [variable for variable in VARIABLES if variable["name"] == "slo"]
        bounds = [le for le in LE_LABELS if le != "+Inf" and float(le) >= 3]
        assert slo["current"]["value"] == min(bounds, key=float)

    @pytest.mark.parametrize("title", [panel["title"] for panel in PANELS])
    def test_every_row_and_panel_is_in_the_guide(self, title: str) -> None:
        assert re.search(rf"^(### {title}$|\| {title} \|)", GUIDE, flags=re.M)


class TestAlerts:
    def test_names_are_unique(self) -> None:
        names = [rule["alert"] for rule in RULES]
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in RULES])
    def test_an_alert_says_how_bad_it_is_and_what_it_means(self, rule: dict[str, Any]) -> None:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]

    @pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in RULES])
    def test_its_text_names_only_labels_that_its_query_keeps(self, rule: dict[str, Any]) -> None:
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        first = uses(rule["expr"])[0]
        assert named <= first.labels

    @pytest.mark.parametrize("name", [rule["alert"] for rule in RULES])
    def test_the_guide_says_what_to_do(self, name: str) -> None:
        assert re.search(rf"^\| `{name}` \|[^|]+\|[^|]+\|$", GUIDE, flags=re.M)


class TestPrometheus:
    def test_it_evaluates_the_alerts(self) -> None:
        assert PROMETHEUS["rule_files"] == ["alerts.yaml"]

    def test_it_finds_the_nodes_in_the_file_that_ray_writes(self) -> None:
        (scrape,) = PROMETHEUS["scrape_configs"]
        (source,) = scrape["file_sd_configs"]
        assert source["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def _cells(place: dict[str, int]) -> set[tuple[int, int]]:
    rows = range(place["y"], place["y"] + place["h"])
    columns = range(place["x"], place["x"] + place["w"])
    return {(row, column) for row in rows for column in columns}
