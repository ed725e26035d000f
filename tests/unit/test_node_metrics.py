"""Reading the metrics of live nodes: what is taken from a page, and what becomes of nodes that do not answer."""

from __future__ import annotations

import sys

from serve_app.node_metrics import Node, Snapshot, parse, scrape
from serve_app.stage_figures import NodeState
from tests.ports import free_port
from tests.stub_server import StubServer

PAGE = """# HELP ray_raglane_stage_count_total How often.
# TYPE ray_raglane_stage_count_total counter
ray_raglane_stage_count_total{stage="search",branch="language model",replica="a b"} 12.0
ray_serve_num_http_requests_total{route="/"} 99.0
ray_node_cpu_utilization{ip="127.0.0.1"} 42.5
ray_raglane_stage_seconds_bucket_total{stage="search",branch="",le="+Inf"} 1e+06
"""


def test_raglanes_series_and_the_nodes_load_are_taken_from_a_page() -> None:
    read = [(series.name, dict(series.labels), series.value) for series in parse(PAGE)]
    assert read == [
        ("ray_raglane_stage_count_total", {"stage": "search", "branch": "language model", "replica": "a b"}, 12.0),
        ("ray_node_cpu_utilization", {"ip": "127.0.0.1"}, 42.5),
        ("ray_raglane_stage_seconds_bucket_total", {"stage": "search", "branch": "", "le": "+Inf"}, 1e6),
    ]
    assert parse("") == []


def test_a_zero_that_was_written_as_the_smallest_number_is_read_as_zero() -> None:
    (series,) = parse(f'ray_raglane_dropped_total{{stage="embed",reason="expired"}} {sys.float_info.min}\n')
    assert series.value == 0


def port_of(server: StubServer) -> int:
    return int(server.url.rpartition(":")[2])


async def test_nodes_are_read_side_by_side_and_a_dead_one_is_named() -> None:
    with StubServer() as stub, StubServer() as failing:
        stub.routes["GET /metrics"] = lambda _: (200, {"content-type": "text/plain"}, PAGE.encode())
        failing.routes["GET /metrics"] = lambda _: (500, {}, b"no")
        nodes = [
            Node("here", "127.0.0.1", port_of(stub)),
            Node("dead", "127.0.0.1", free_port()),
            Node("ill", "127.0.0.1", port_of(failing)),
        ]
        snapshot = await scrape(nodes)
    here, dead, ill = snapshot.nodes
    assert (here.node_id, here.error, here.cpu_percent) == ("here", "", 42.5)
    assert (dead.node_id, dead.cpu_percent) == ("dead", None)
    assert dead.error
    assert "500" in ill.error
    assert [series.name for series in snapshot.series] == [
        "ray_raglane_stage_count_total",
        "ray_raglane_stage_seconds_bucket_total",
    ]


def test_another_application_of_the_same_cluster_is_left_out() -> None:
    page = "".join(
        f'ray_raglane_stage_count_total{{stage="search",branch="",application="{name}"}} {count}\n'
        for name, count in (("blue", 1), ("green", 2))
    )
    here = NodeState("here", "127.0.0.1", 1, "", None)
    snapshot = Snapshot(5.0, parse(page), (here,), 7.0).of_application("green")
    assert [series.value for series in snapshot.series] == [2]
    assert (snapshot.taken_at_s, snapshot.nodes, snapshot.taken_at_unix_s) == (5.0, (here,), 7.0)
