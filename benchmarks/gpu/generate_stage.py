"""raglane's generate stage on Ray Serve, asked from within an ingress: one side of benchmarks.vllm_stream.

Deployed by `raglane up`, so that Ray and its flags are those of raglane. The stage is called the way raglane's ingress
calls it, by handle, and by the ingress itself, which sends a whole load at a time: neither HTTP nor retrieval is part
of what is measured.
"""

# No `from __future__ import annotations` here: FastAPI and Serve read the annotations at run time.

from typing import Any

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from benchmarks.experiment import Section
from benchmarks.gpu.lane_plan import MODEL_ID, GenerationPlan
from benchmarks.gpu.loop import closed_loop
from benchmarks.gpu.stage_client import StageClient
from deployments.remote import RemoteGenerator
from deployments.vllm_generator import VllmConfig, build_vllm_generator

# Whoever is in the largest load is let in.
MAX_REQUESTS = 512

app = FastAPI()


class StageArgs(Section):
    """The `args` of the application."""

    plan: GenerationPlan


class StageLoad(Section):
    """Prompts as chat messages, `clients` of them at a time."""

    clients: int = Field(ge=1, le=MAX_REQUESTS)
    prompts: list[list[dict[str, str]]] = Field(min_length=1)


@serve.ingress(app)
class Ingress:
    """The deployment that takes whole loads by HTTP and asks the stage by handle."""

    def __init__(self, plan: GenerationPlan, generator: DeploymentHandle) -> None:
        self._client = StageClient(RemoteGenerator(generator), plan.max_tokens, plan.temperature)

    @app.post("/loads")
    async def load(self, load: StageLoad) -> list[dict[str, Any]]:
        """The exchanges of a closed loop over the prompts, in their order."""
        exchanges = await closed_loop(load.prompts, load.clients, self._client.generate)
        return [exchange.to_json() for exchange in exchanges]

    @app.get("/health/ready")
    async def ready(self) -> dict[str, str]:
        # Serve makes an ingress only after the stages that it is given, and a generator has then answered once.
        return {"status": "ready"}


def build_app(args: StageArgs) -> Application:
    """Build the application: `import_path: benchmarks.gpu.generate_stage:build_app` in a Serve config file."""
    generator = build_vllm_generator(vllm_config(args.plan))
    return serve.deployment(Ingress).bind(args.plan, generator)


def vllm_config(plan: GenerationPlan) -> VllmConfig:
    """The stage's configuration: the plan's engine on the CPU, everything else as raglane has it by itself."""
    return VllmConfig(
        model_id=MODEL_ID,
        model_source=plan.generator,
        engine_kwargs=dict(plan.engine_args),
        runtime_env={"env_vars": dict(plan.engine_env)},
        deployment={"max_ongoing_requests": MAX_REQUESTS, "max_queued_requests": MAX_REQUESTS},
    )
