"""Who is asked: raglane's generate stage and the engine alone, each in processes of its own that end with its turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks import result_file
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError
from benchmarks.gpu.exchange import Exchange
from benchmarks.gpu.lane_plan import GenerationPlan
from benchmarks.gpu.lane_server import LaneServer
from benchmarks.streaming.inputs import StreamInputs
from benchmarks.systems import check_ports_are_free, stop

STAGE = "raglane"
BARE = "bare vLLM"
HOST = "127.0.0.1"

# The exchanges of one turn, by load and request; the warm-up is the first load.
Turn = list[list[Exchange]]
Contender = Callable[[], Turn]


def contenders(inputs: StreamInputs, work: Path, port: int, turn_timeout_s: float) -> dict[str, Contender]:
    """Both sides. Calling one starts it, runs every load and stops it; ExperimentError where that fails.

    `work` is the folder where they find what they are asked and leave what they say.
    """
    result_file.write(work / "plan.json", inputs.plan.model_dump(mode="json"))
    result_file.write(work / "prompts.json", {"loads": inputs.prompts})
    (work / "serve.yaml").write_text(yaml.safe_dump(serve_document(inputs.plan, port), sort_keys=False))
    server = LaneServer(work / "serve.yaml", work / "data", port, inputs.plan.engine_env)
    return {
        STAGE: lambda: _ask_stage(server, inputs, turn_timeout_s),
        BARE: lambda: _run_bare(work, inputs.plan, turn_timeout_s),
    }


def serve_document(plan: GenerationPlan, port: int) -> dict[str, Any]:
    """The Serve config file of raglane's side."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": HOST, "port": port},
        "applications": [
            {
                "name": "generation",
                "route_prefix": "/",
                "import_path": "benchmarks.gpu.generate_stage:build_app",
                "args": {"plan": plan.model_dump(mode="json")},
                "deployments": [{"name": "Ingress", "ray_actor_options": {"num_cpus": 0.2}}],
            }
        ],
    }


def _ask_stage(server: LaneServer, inputs: StreamInputs, timeout_s: float) -> Turn:
    check_ports_are_free(STAGE, [server.port])
    with server.running() as url, httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as http:
        return [
            _send(http, {"clients": load.clients, "prompts": prompts})
            for load, prompts in zip(inputs.plan.loads, inputs.prompts, strict=True)
        ]


def _send(http: httpx.Client, load: Mapping[str, Any]) -> list[Exchange]:
    try:
        response = http.post("/loads", json=load)
        response.raise_for_status()
        return [Exchange.from_json(exchange) for exchange in response.json()]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{STAGE} does not answer a load of {load['clients']} clients: {error!r}") from error


def _run_bare(work: Path, plan: GenerationPlan, timeout_s: float) -> Turn:
    out, log = work / "bare.json", work / "bare.log"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.bare_engine", "--out", str(out)]
    command += ["--plan", str(work / "plan.json"), "--prompts", str(work / "prompts.json")]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **plan.engine_env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, which is stopped as a whole.
            start_new_session=True,
        )
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ExperimentError(f"{BARE} was not done within {timeout_s:g} s; its log is {log}") from error
    finally:
        stop(process)
    # vLLM may end with a complaint of its own after the results were written.
    if not out.is_file():
        raise ExperimentError(f"{BARE} ended with code {process.returncode}; its log is {log}")
    loads = json.loads(out.read_bytes())["loads"]
    return [[Exchange.from_json(exchange) for exchange in load] for load in loads]
