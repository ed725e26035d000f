"""The generator's replica: vLLM behind ray.serve.llm, speaking our contract. Importing this module imports vLLM."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.core.configs.openai_api_models import TokenizeChatRequest
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from deployments.contracts import (
    Delta,
    Generated,
    GenerateRequest,
    GenerationEvent,
    GenerationOptions,
    StageTiming,
    Usage,
)
from deployments.errors import ConfigError, DeadlineExceeded, EngineDead, EngineFailed, InvalidInput, StageError
from deployments.exporter import ENABLED, TelemetryConfig, export
from deployments.pacing import CPU_MESSAGES_PER_S, MESSAGES_PER_S, PaceConfig, Pacer
from deployments.replica import settle
from deployments.tally import BusyClock
from deployments.vllm_protocol import (
    Chunk,
    as_error,
    fold_system,
    is_too_long,
    parse_events,
    to_chat_fields,
    to_finish_reason,
    to_stage_error,
    too_long,
)

# Of the same roles as every prompt: some chat templates refuse a system message.
_PROBE = ({"role": "system", "content": "Answer shortly."}, {"role": "user", "content": "ping"})
_PROBE_BUDGET_S = 120.0
_READY_TIMEOUT_S = 5.0


class LocalModel(CallbackBase):  # type: ignore[misc]
    """Skips the download of a model that is a folder already: its task imports vLLM only to find nothing to do."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class _Engine(VLLMEngine):  # type: ignore[misc]
    """ray.serve.llm's engine with the executor that the configuration names: on a CPU Ray 2.60 puts another there."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        configured = self.llm_config.engine_kwargs.get("distributed_executor_backend")
        if configured is not None and self.llm_config.accelerator_config.kind == "cpu":
            vllm_engine_config.parallel_config.distributed_executor_backend = configured
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class VllmGenerator(LLMServer):  # type: ignore[misc]
    """Streams answers from one vLLM engine. Closing a stream, or its budget running out, aborts the engine's request.

    A replica that has started has answered once: model, chat template and sampling are known to work. Where the
    template refuses a system message, what it says begins the user's.
    """

    async def __init__(  # type: ignore[misc]
        self,
        llm_config: Any,
        *,
        telemetry: TelemetryConfig = ENABLED,
        pace: PaceConfig = PaceConfig(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        # The constructor above this one ends with a call of `start`.
        self._telemetry = telemetry
        on_cpu = llm_config.accelerator_config.kind == "cpu"
        self._pacer = Pacer(pace, CPU_MESSAGES_PER_S if on_cpu else MESSAGES_PER_S)
        await super().__init__(llm_config, engine_cls=_Engine, **options)

    async def start(self) -> None:
        self._busy = BusyClock("generate")
        self._folds_system = False
        self._refuse_missing_folder()
        self._choose_thread_count()
        await super().start()
        self._restore_tokenization()
        self._pace_the_engine()
        await self._prove_that_it_answers()
        export(self._telemetry, "generate", self._busy.read)
        settle()

    async def _prove_that_it_answers(self) -> None:
        try:
            await self._answer_probe()
            return
        except InvalidInput:
            self._folds_system = True
        try:
            await self._answer_probe()
        except InvalidInput as error:
            raise ConfigError(
                f"{self._model_id} can't answer a chat message; if it has no chat template, name one in "
                f"engine_kwargs.chat_template (a path or the template itself). The engine said: {error}"
            ) from error

    async def _answer_probe(self) -> None:
        request = GenerateRequest("", (), _PROBE, GenerationOptions(max_tokens=1), budget_s=_PROBE_BUDGET_S)
        async for _ in self.generate(request):
            pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Raises InputTooLong, InvalidInput, Overloaded, DeadlineExceeded, EngineFailed or EngineDead."""
        with self._busy:
            async with aclosing(self._generate(request)) as events:
                async for event in events:
                    yield event

    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent, None]:
        started = time.monotonic()
        if self._folds_system:
            request = replace(request, messages=fold_system(request.messages))
        finish_reason, usage, queue_s = None, Usage(), 0.0
        async with aclosing(self._chunks(request, deadline=started + request.budget_s)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    yield Delta(chunk.text)
                finish_reason = chunk.finish_reason or finish_reason
                usage = chunk.usage or usage
                queue_s = chunk.queue_s or queue_s
        if finish_reason is None:
            raise EngineFailed("the generator ended its answer without saying why")
        total_s = time.monotonic() - started
        timing = StageTiming(batch_wait_s=min(queue_s, total_s), compute_s=max(total_s - queue_s, 0.0))
        yield Generated(to_finish_reason(finish_reason), usage, timing, generator=self._model_id)

    async def describe(self) -> str:
        """The model's name; raises EngineDead when its engine does not answer."""
        if not await self.ready():
            raise EngineDead(f"the engine of {self._model_id} does not answer")
        return self._model_id

    async def ready(self) -> bool:
        """Whether the engine's own process answers, not merely whether this one does."""
        try:
            await self.check_health()
            return not await asyncio.wait_for(self.is_sleeping(), _READY_TIMEOUT_S)
        except Exception:  # noqa: BLE001 (whatever stops the engine from answering, it is not ready)
            return False

    def _refuse_missing_folder(self) -> None:
        source = self._llm_config.model_loading_config.model_source
        if isinstance(source, str) and Path(source).is_absolute() and not Path(source).is_dir():
            raise ConfigError(f"there is no model folder {source} on this machine; check model_source")

    def _choose_thread_count(self) -> None:
        """Give the CPU engine's processes, which inherit it, all cores but one, unless the configuration chose."""
        configured = (self._llm_config.runtime_env or {}).get("env_vars", {})
        if self._llm_config.accelerator_config.kind == "cpu" and "OMP_NUM_THREADS" not in configured:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) - 1))

    async def _start_engine(self) -> None:
        # The parent also reports usage, from an actor of its own that stays: one more process with vLLM in it.
        await self.engine.start()

    def _restore_tokenization(self) -> None:
        # Ray 2.60 looks for it under a name that vLLM has given up, and so calls it unsupported.
        tokenization = getattr(getattr(self.engine, "_app_state", None), "serving_tokenization", None)
        if tokenization is not None and self.engine._oai_serving_tokenization is None:
            self.engine._oai_serving_tokenization = tokenization

    def _pace_the_engine(self) -> None:
        # Between the engine and what makes a chat message of its every output: that costs more than the message does.
        chat = self.engine._oai_serving_chat
        chat.engine_client = PacedEngine(chat.engine_client, self._pacer)

    @property
    def _model_id(self) -> str:
        return cast(str, self._llm_config.model_id)

    async def _chunks(self, request: GenerateRequest, deadline: float) -> AsyncGenerator[Chunk, None]:
        """The engine's events until the deadline; every failure, yielded or raised, becomes one of our errors."""
        # Straight to the engine: LLMServer.chat would hold chunks back in its batcher.
        async with aclosing(self.engine.chat(self._chat_request(request), None)) as stream:
            while True:
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        item = await anext(stream)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise DeadlineExceeded(f"no complete answer within {request.budget_s:g} s") from error
                except Exception as error:
                    raise await self._diagnose({"message": str(error)}, request) from error
                if refusal := as_error(item):
                    raise await self._diagnose(refusal, request)
                for chunk in parse_events(item):
                    if chunk.error:
                        raise await self._diagnose(chunk.error, request)
                    yield chunk

    def _chat_request(self, request: GenerateRequest) -> ChatCompletionRequest:
        try:
            return ChatCompletionRequest(**to_chat_fields(request, self._model_id))
        except Exception as error:
            raise InvalidInput(f"the generator refused the request: {error}") from error

    async def _diagnose(self, error: Mapping[str, Any], request: GenerateRequest) -> StageError:
        """vLLM reports a dead engine as a failed request, so ask the engine itself first."""
        try:
            await self.check_health()
        except Exception as dead:  # noqa: BLE001 (any failed health check means the engine is gone)
            return EngineDead(f"the generator's engine is gone: {dead}")
        if is_too_long(error):
            return await self._too_long(error, request)
        return to_stage_error(error)

    async def _too_long(self, error: Mapping[str, Any], request: GenerateRequest) -> StageError:
        """vLLM stops counting just above the limit; tokenise again for the length that the caller has to shorten."""
        messages = [dict(message) for message in request.messages]
        probe = TokenizeChatRequest(model=self._model_id, messages=messages)
        async for counted in self.engine.tokenize(probe, None):
            if as_error(counted) is None:
                return too_long(self._model_id, counted.count, request.options.max_tokens, counted.max_model_len)
        return to_stage_error(error)


class PacedEngine:
    """vLLM's engine client, whose outputs of one request are joined where they come faster than they may travel."""

    def __init__(self, client: Any, pacer: Pacer) -> None:
        self._client = client
        self._pacer = pacer

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return self._pacer.pace(self._client.generate(*args, **kwargs), _join)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _join(earlier: Any, later: Any) -> Any:
    """Two outputs of one request as vLLM itself joins them where nobody has taken the first; both are deltas."""
    earlier.add(later, aggregate=True)
    return earlier
