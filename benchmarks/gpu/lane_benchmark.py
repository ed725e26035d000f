"""The steps of the lane benchmark: write the models, measure the lane, measure its generator alone, report."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks import result_file
from benchmarks.connections import Connections
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError, Slo
from benchmarks.gpu.exchange import Exchange
from benchmarks.gpu.hardware import device_name, gpu_memory_bytes
from benchmarks.gpu.lane_analysis import compare, share_of_same_prompts, summarise, ttft_by_stage
from benchmarks.gpu.lane_client import LaneClient
from benchmarks.gpu.lane_plan import (
    GIB,
    Device,
    LanePlan,
    PlannedLoad,
    divide_memory,
    engine_arguments,
    engine_environment,
    model_folder,
    plan_loads,
    serve_document,
)
from benchmarks.gpu.lane_server import LaneServer
from benchmarks.gpu.loop import closed_loop
from benchmarks.gpu.model_folders import make_decoder, make_encoder
from benchmarks.gpu.prompts import rebuild
from benchmarks.gpu.shapes import BGE_LARGE, BGE_RERANKER_V2_M3, DECODERS, TINY_DECODER, TINY_EMBEDDER, TINY_RERANKER
from benchmarks.gpu.texts import load_corpus

STEPS = ("models", "lane", "alone", "report")
TARGET = 0.9
COLLECTION = "benchmark"
REQUEST_TIMEOUT_S = 120.0
PROFILE = REPOSITORY / "deploy" / "gpu.yaml"


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """What is measured, where, and in which of the steps; `work` is the folder that they share."""

    shape: str
    device: Device
    steps: tuple[str, ...]
    work: Path
    corpus: Path
    num_documents: int
    clients: tuple[int, ...]
    requests_per_client: int
    max_tokens: int
    temperature: float
    rerank_candidates: int
    slo: Slo
    gpu_memory_gib: float | None
    engine_args: Mapping[str, Any]
    port: int
    seed: int


class LaneBenchmark:
    """The steps, over one folder. Raises ExperimentError where a step lacks what an earlier one leaves."""

    def __init__(self, options: LaneOptions, console: Console) -> None:
        self._options = options
        self._console = console
        self._work: Path = options.work
        is_tiny = options.shape == TINY_DECODER.name
        self._decoder = DECODERS[options.shape]
        self._small = (TINY_EMBEDDER, TINY_RERANKER) if is_tiny else (BGE_LARGE, BGE_RERANKER_V2_M3)

    def run(self) -> dict[str, Any]:
        """Run the chosen steps and return the result file's own part; without `report`, there are no figures in it."""
        steps = {"models": self._make_models, "lane": self._measure_lane, "alone": self._measure_alone}
        for name, step in steps.items():
            if name in self._options.steps:
                self._console.rule(name)
                step()
        return self._report() if "report" in self._options.steps else {"steps": list(self._options.steps)}

    def _make_models(self) -> None:
        options = self._options
        loads = plan_loads(options.clients, options.requests_per_client)
        corpus = load_corpus(
            options.corpus, options.num_documents, sum(load.num_requests for load in loads), options.seed
        )
        documents = self._work / "documents.jsonl"
        documents.parent.mkdir(parents=True, exist_ok=True)
        documents.write_text("".join(f"{json.dumps(document.to_json())}\n" for document in corpus.documents))
        result_file.write(self._work / "questions.json", {"questions": corpus.questions, "source": corpus.source})
        texts = [document.whole for document in corpus.documents] + list(corpus.questions)
        dtype = "bfloat16" if options.device == "cuda" else "float32"
        embedder, reranker = (
            str(make_encoder(shape, Path(model_folder(self._work, shape.name)), texts, options.device, dtype))
            for shape in self._small
        )
        generator = str(make_decoder(self._decoder, Path(model_folder(self._work, self._decoder.name)), texts))
        memory = divide_memory(_memory_bytes(options), self._decoder, self._small) if options.device == "cuda" else None
        plan = LanePlan(
            device=options.device,
            embedder=embedder,
            reranker=reranker,
            generator=generator,
            engine_args=engine_arguments(options.device, memory) | dict(options.engine_args),
            engine_env=engine_environment(options.device, os.cpu_count() or 1),
            loads=loads,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            slo=options.slo,
        )
        result_file.write(self._work / "plan.json", plan.model_dump(mode="json"))
        profile = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
        document = serve_document(profile, plan, options.rerank_candidates)
        (self._work / "serve.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def _measure_lane(self) -> None:
        plan = self._plan()
        questions = self._read("questions.json", "models")["questions"]
        server = LaneServer(self._work / "serve.yaml", self._work / "data", self._options.port, plan.engine_env)
        with server.running() as url:
            server.ingest(self._work / "documents.jsonl", COLLECTION)
            loads = asyncio.run(self._ask(url, plan, questions))
        prompts = [[rebuild(exchange.question, exchange.sources) for exchange in load] for load in loads]
        result_file.write(self._work / "lane.json", {"loads": _to_json(loads)})
        result_file.write(self._work / "prompts.json", {"loads": prompts})

    async def _ask(self, url: str, plan: LanePlan, questions: Sequence[str]) -> list[list[Exchange]]:
        fields = {"collection": COLLECTION, "max_tokens": plan.max_tokens, "temperature": plan.temperature}
        upcoming = itertools.cycle(questions)
        answered = []
        async with Connections(url) as connections:
            client = LaneClient(connections, fields, REQUEST_TIMEOUT_S)
            for load in plan.loads:
                jobs = list(itertools.islice(upcoming, load.num_requests))
                answered.append(await closed_loop(jobs, load.clients, client.ask))
                self._console.print(f"{load.clients} clients: {load.num_requests} answers", highlight=False)
        return answered

    def _measure_alone(self) -> None:
        plan = self._plan()
        self._read("prompts.json", "lane")
        out = self._work / "alone.json"
        out.unlink(missing_ok=True)
        alone_plan = self._work / "alone-plan.json"
        result_file.write(alone_plan, plan.generation().model_dump(mode="json"))
        command = [sys.executable, "-m", "benchmarks.gpu.bare_engine", "--out", str(out)]
        command += ["--plan", str(alone_plan), "--prompts", str(self._work / "prompts.json")]
        done = subprocess.run(command, env={**os.environ, **plan.engine_env}, check=False)
        # vLLM may end with a complaint of its own after the results were written.
        if not out.is_file():
            raise ExperimentError(f"the engine alone ended with code {done.returncode}")

    def _report(self) -> dict[str, Any]:
        plan = self._plan()
        lane = _from_json(self._read("lane.json", "lane"))
        alone = _from_json(self._read("alone.json", "alone"))
        measured = zip(plan.loads, lane, alone, strict=True)
        loads = [_load(plan, *each) for each in measured if not each[0].is_warmup]
        return {
            "device": device_name(plan.device),
            "plan": self._without_place(plan.model_dump(mode="json")),
            "texts": self._read("questions.json", "models")["source"],
            "serve_config": self._without_place(yaml.safe_load((self._work / "serve.yaml").read_text("utf-8"))),
            "loads": loads,
            "summary": compare(loads, TARGET),
        }

    def _without_place(self, content: Any) -> Any:
        """`content` with the work folder's files named from there: where that folder lies is nobody's concern."""
        return json.loads(json.dumps(content).replace(json.dumps(f"{self._work.absolute()}/")[1:-1], ""))

    def _plan(self) -> LanePlan:
        return LanePlan.model_validate(self._read("plan.json", "models"))

    def _read(self, name: str, step: str) -> Any:
        try:
            return json.loads((self._work / name).read_bytes())
        except OSError as error:
            raise ExperimentError(f"there is no {name} in {self._work}; run the step `{step}` first") from error


def _memory_bytes(options: LaneOptions) -> int:
    if options.gpu_memory_gib:
        return int(options.gpu_memory_gib * GIB)
    try:
        return gpu_memory_bytes()
    except (RuntimeError, AssertionError) as error:
        raise ExperimentError(f"torch sees no GPU ({error}); try --device cpu --shape tiny") from error


def _load(plan: LanePlan, load: PlannedLoad, lane: Sequence[Exchange], alone: Sequence[Exchange]) -> dict[str, Any]:
    return {
        "clients": load.clients,
        "same_prompts": share_of_same_prompts(lane, alone),
        "lane": {**summarise(lane, load.clients, plan.slo), "ttft_by_stage_s": ttft_by_stage(lane, load.clients)},
        "generator_alone": summarise(alone, load.clients, plan.slo),
    }


def _to_json(loads: Sequence[Sequence[Exchange]]) -> list[list[dict[str, Any]]]:
    return [[exchange.to_json() for exchange in load] for load in loads]


def _from_json(content: dict[str, Any]) -> list[list[Exchange]]:
    return [[Exchange.from_json(exchange) for exchange in load] for load in content["loads"]]
