"""What the lane benchmark decides before it starts anything: sizes, loads, memory, and the Serve config file. Pure."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from benchmarks.experiment import ExperimentError, Section, Slo
from benchmarks.gpu.shapes import BYTES_PER_BFLOAT16, DecoderShape, EncoderShape

GIB = 2**30
# A CUDA context, and the activations of a batch of 65,536 tokens.
SMALL_MODEL_WORK_BYTES = 7 * GIB
# A CUDA context, CUDA graphs, and the activations of a step of 8,192 tokens.
GENERATOR_WORK_BYTES = 8 * GIB
SPARE_SHARE = 0.05

GPU_CONTEXT_TOKENS = 16384
CPU_CONTEXT_TOKENS = 8192
CPU_KV_CACHE_BYTES = 256 * 2**20
CPU_PER_STAGE = 0.2

MODEL_ID = "benchmarked"
MIN_REQUESTS = 24

Device = Literal["cuda", "cpu"]


class PlannedLoad(Section):
    """`num_requests` questions, `clients` of them at a time; the warm-up is a load that is not reported."""

    clients: int = Field(ge=1)
    num_requests: int = Field(ge=2)
    is_warmup: bool = False


class GenerationPlan(Section):
    """What a generator is asked, however it is run: a file, since whoever runs it is a process of its own.

    `generator` is a model folder, `engine_args` are vLLM's own names, `engine_env` is the environment of its processes.
    """

    generator: str
    engine_args: dict[str, Any]
    engine_env: dict[str, str]
    loads: tuple[PlannedLoad, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=2)
    temperature: float = Field(ge=0)


class LanePlan(GenerationPlan):
    """What the steps of the lane benchmark have in common. The server and the engine alone get the same engine."""

    device: Device
    embedder: str
    reranker: str
    slo: Slo

    def generation(self) -> GenerationPlan:
        """The part that is about the generator."""
        return GenerationPlan.model_validate({name: getattr(self, name) for name in GenerationPlan.model_fields})


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The generator's share of a GPU: its key-value cache, and the share of all memory that it takes."""

    kv_cache_bytes: int
    utilization: float


def plan_loads(
    clients: Sequence[int], requests_per_client: int, min_requests: int = MIN_REQUESTS
) -> tuple[PlannedLoad, ...]:
    """A warm-up with as many clients as the largest load has, then every load in the order given."""
    if requests_per_client < 2:
        raise ExperimentError("a load needs two requests of each client, or it has no steady part")
    warmup = PlannedLoad(clients=max(clients), num_requests=2 * max(clients), is_warmup=True)
    return (
        warmup,
        *(PlannedLoad(clients=each, num_requests=max(min_requests, each * requests_per_client)) for each in clients),
    )


def divide_memory(total_bytes: int, generator: DecoderShape, small: Sequence[EncoderShape]) -> GpuMemory:
    """Give the generator what the small models leave. Raises ExperimentError where its longest prompt does not fit."""
    for_small = sum(shape.num_params * BYTES_PER_BFLOAT16 + SMALL_MODEL_WORK_BYTES for shape in small)
    for_generator = generator.num_params * BYTES_PER_BFLOAT16 + GENERATOR_WORK_BYTES
    kv_cache_bytes = int(total_bytes * (1 - SPARE_SHARE)) - for_small - for_generator
    if kv_cache_bytes < GPU_CONTEXT_TOKENS * generator.kv_bytes_per_token:
        raise ExperimentError(
            f"{total_bytes / GIB:.0f} GiB do not hold three models: the small ones take {for_small / GIB:.0f}, "
            f"{generator.name} {for_generator / GIB:.0f} and its cache more; choose a smaller shape"
        )
    return GpuMemory(kv_cache_bytes, math.floor(100 * (for_generator + kv_cache_bytes) / total_bytes) / 100)


def engine_arguments(device: Device, memory: GpuMemory | None) -> dict[str, Any]:
    """vLLM's arguments, the same for the server and the engine alone.

    What vLLM would choose by who starts it (how many sequences and tokens in a step) or by what is free at that moment
    (the cache) stands here in numbers. `memory` is for a GPU.
    """
    common = {"load_format": "dummy", "enable_prefix_caching": True, "seed": 0}
    if device == "cpu":
        return common | {
            "dtype": "float32",
            "max_model_len": CPU_CONTEXT_TOKENS,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 2048,
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            # As raglane has it by itself: engine and worker in one process, where neither spins waiting for the other.
            "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        }
    if memory is None:
        raise ExperimentError("a GPU's memory has to be divided first")
    return common | {
        "dtype": "bfloat16",
        "max_model_len": GPU_CONTEXT_TOKENS,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": memory.utilization,
        "kv_cache_memory_bytes": memory.kv_cache_bytes,
    }


def engine_environment(device: Device, num_cores: int) -> dict[str, str]:
    """The environment of both engines; on a CPU all cores but one, not bound, as raglane itself sets it."""
    common = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if device == "cuda":
        return common
    return common | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, num_cores - 1))}


def serve_document(profile: Mapping[str, Any], plan: LanePlan, rerank_candidates: int) -> dict[str, Any]:
    """The Serve config file: the shipped gpu profile with the plan's models, without autoscaling, on one machine.

    `profile` is the content of deploy/gpu.yaml. On a CPU the same stages run in small.
    """
    document = copy.deepcopy(dict(profile))
    document["http_options"]["host"] = "127.0.0.1"
    application = document["applications"][0]
    _set_arguments(application["args"], plan, rerank_candidates)
    for deployment in application["deployments"]:
        _fix_replicas(deployment)
        if deployment["name"] == "Generator":
            # Whoever is in the largest load is let in.
            deployment |= {"max_ongoing_requests": 512, "max_queued_requests": 512}
        elif plan.device == "cpu":
            deployment["num_replicas"] = 1
            deployment["ray_actor_options"] = {"num_cpus": CPU_PER_STAGE}
    return document


def _set_arguments(arguments: dict[str, Any], plan: LanePlan, rerank_candidates: int) -> None:
    # The command line names the store.
    del arguments["store"]["uri"]
    lane: dict[str, Any] = arguments.setdefault("lane", {})
    lane |= {"rerank_candidates": rerank_candidates, "default_timeout_s": 120.0}
    context = arguments["context"]
    context["max_context_tokens"] = min(context["max_context_tokens"], plan.engine_args["max_model_len"] // 2)
    arguments["embedder"] |= {"model": plan.embedder}
    arguments["reranker"] |= {"model": plan.reranker}
    vllm: dict[str, Any] = arguments["generator"]["vllm"]
    vllm |= {
        "model_id": MODEL_ID,
        "model_source": plan.generator,
        "engine_kwargs": dict(plan.engine_args),
        "runtime_env": {"env_vars": dict(plan.engine_env)},
    }
    if plan.device == "cpu":
        vllm["accelerator"] = "cpu"
        del vllm["placement_bundles"], vllm["deployment"]["ray_actor_options"]
        for stage in ("embedder", "reranker"):
            arguments[stage] |= {"device": "cpu"}
            del arguments[stage]["batching"]
        arguments["reranker"]["max_length_tokens"] = 512


def _fix_replicas(deployment: dict[str, Any]) -> None:
    autoscaling = deployment.pop("autoscaling_config", None)
    if autoscaling is not None:
        deployment["num_replicas"] = autoscaling["min_replicas"]


def model_folder(work: Path, name: str) -> str:
    """Where a model of the benchmark stands, absolute: the server is started elsewhere."""
    return str((work / "models" / name).absolute())
