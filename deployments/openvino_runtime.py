"""What every OpenVINO engine needs: a torch module compiled for this machine's CPU. Imports OpenVINO when called."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ConfigError
from deployments.packed_rows import RowPackedModel
from deployments.row_packing import Row
from deployments.transformer_surgery import padded_features

logger = logging.getLogger(__name__)

# (rows, tokens): what a module is traced with, and what the compiled model is then tried on. Each length is another,
# so that a trace that holds for one shape alone is found out.
EXAMPLE_SHAPES = ((2, 16), (1, 8), (3, 40))
# The same in texts of so many tokens: in rows of their own, and several in a row.
EXAMPLE_LENGTHS = ((16, 9, 30), (8,), (40, 12, 5, 33, 60, 3, 7, 50))
# What a token of padding costs beside one of text where rows are packed: it is only attended to.
ROW_PADDING_COST = 0.05
# bfloat16 moves a sound model's output by a few percent of its norm, a trace that does not fit by all of it.
MAX_RELATIVE_ERROR = 0.25
# Scores next to zero may differ by more than their size.
MAX_ABSOLUTE_ERROR = 0.01

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}


class CompiledModule:
    """A torch module compiled by OpenVINO for inputs of any shape. One thread may call it.

    `forward` takes int64 tensors by name, runs `module` on them and returns a float tensor. It is traced with the first
    of `examples`, arrays by name in the order in which it takes them, and tried on all; their dimensions are dynamic.
    The module holds its weights in float32: OpenVINO makes the copy that it computes with, and the caller may forget
    the module then. Raises ConfigError where OpenVINO is not installed, where it can't convert the module, or where
    what it made of the module answers differently.
    """

    def __init__(
        self,
        module: Any,
        forward: Callable[[dict[str, Any]], Any],
        examples: Sequence[Mapping[str, NDArray[np.int64]]],
        dtype: str,
        num_threads: int,
    ) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        self._input_names = tuple(examples[0])
        self.precision = resolve_precision(dtype, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": num_threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            # A pinned thread can't make way for the other processes of a machine of few cores.
            "ENABLE_CPU_PINNING": False,
        }
        with _quietly():
            model = _convert(openvino, module, forward, examples[0])
            self._compiled = core.compile_model(model, "CPU", settings)
        self._compare(forward, examples)

    def __call__(self, features: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """One forward pass."""
        output: NDArray[np.float32] = self._compiled([features[name] for name in self._input_names])[0]
        return output

    def _compare(
        self, forward: Callable[[dict[str, Any]], Any], examples: Sequence[Mapping[str, NDArray[np.int64]]]
    ) -> None:
        import torch

        for features in examples:
            with torch.inference_mode():
                expected = forward({name: torch.from_numpy(array) for name, array in features.items()}).numpy()
            allowed = max(MAX_RELATIVE_ERROR * np.linalg.norm(expected), MAX_ABSOLUTE_ERROR * np.sqrt(len(expected)))
            if not np.linalg.norm(self(features) - expected) <= allowed:
                raise ConfigError(
                    "OpenVINO's conversion of this model answers differently; use the torch engine for it"
                )


def import_openvino() -> Any:
    """The package, with its telemetry kept from loading. Raises ConfigError where it is not installed."""
    # Reports to its makers on import wherever it is installed. Python takes None here for "there is no such module".
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        message = "this engine needs OpenVINO: pip install --no-deps openvino, or configure the torch engine"
        raise ConfigError(message) from error
    return openvino


def require_cpu(device: str) -> None:
    """Raises ConfigError for every device but `cpu` and `auto`."""
    if device not in ("cpu", "auto"):
        raise ConfigError(f"this engine computes on the CPU, not on {device!r}; set device to 'cpu' or 'auto'")


def resolve_precision(dtype: str, capabilities: Sequence[str]) -> str:
    """OpenVINO's name of a config's dtype; `auto` is bfloat16 where the hardware computes in it, else float32.

    Raises ConfigError for a dtype that the hardware does not compute in.
    """
    if dtype == "auto":
        return "bf16" if "BF16" in capabilities else "f32"
    precision = _PRECISIONS[dtype]
    if _CAPABILITIES.get(precision, "FP32") not in capabilities:
        raise ConfigError(f"this CPU does not compute in {dtype}; set dtype to 'auto' or 'float32'")
    return precision


def _convert(
    openvino: Any,
    module: Any,
    forward: Callable[[dict[str, Any]], Any],
    traced_with: Mapping[str, NDArray[np.int64]],
) -> Any:
    """The openvino.Model of `forward`; every dimension of its inputs is dynamic."""
    import torch

    input_names = tuple(traced_with)

    class Positional(torch.nn.Module):
        """Tracing takes tensors by position; a weight is only forgotten with a trace that found it in a submodule."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: Any) -> Any:
            return forward(dict(zip(input_names, tensors, strict=True)))

    trace: Callable[..., Any] = torch.jit.trace
    example = tuple(torch.from_numpy(array) for array in traced_with.values())
    try:
        with torch.no_grad():
            traced = trace(Positional().eval(), example, check_trace=False)
        return openvino.convert_model(traced)
    except Exception as error:
        message = f"OpenVINO can't convert this model ({type(error).__name__}); use the torch engine for it"
        raise ConfigError(message) from error


def padded_examples(input_names: Sequence[str]) -> list[dict[str, NDArray[np.int64]]]:
    """For a model of padded rows: small token ids in rows that are one token shorter from row to row."""

    def example(rows: int, tokens: int) -> dict[str, NDArray[np.int64]]:
        mask = (np.arange(tokens) < tokens - np.arange(rows)[:, None]).astype(np.int64)
        ids = (np.arange(1, rows * tokens + 1, dtype=np.int64).reshape(rows, tokens) % 64) * mask
        known = {"input_ids": ids, "attention_mask": mask}
        return {name: known.get(name, np.zeros((rows, tokens), np.int64)) for name in input_names}

    return [example(*shape) for shape in EXAMPLE_SHAPES]


class CompiledTexts:
    """A sentence-transformers model compiled for rows that hold several texts, or for padded ones where it can't be
    packed.

    `module` has its weights in float32, `load` makes the same once more, and `head` is what one says of padded
    features. `padding_cost` is what the batcher asks an engine for. Raises ConfigError where OpenVINO can't run the
    model either way.
    """

    def __init__(
        self,
        module: Any,
        load: Callable[[], Any],
        head: Callable[[Any, dict[str, Any]], Any],
        input_names: Sequence[str],
        length_limit: int,
        dtype: str,
        num_threads: int,
    ) -> None:
        import_openvino()
        try:
            model = RowPackedModel(module, partial(head, module), input_names, length_limit)
            examples = [model.inputs(_texts(lengths, length_limit)) for lengths in EXAMPLE_LENGTHS]
            self._features: Callable[[Sequence[Row]], dict[str, NDArray[np.int64]]] = model.inputs
            self._compiled = CompiledModule(module, model.forward, examples, dtype, num_threads)
            self.padding_cost = ROW_PADDING_COST
        except ConfigError as error:
            logger.warning("computing with padding: %s", error.message)
            module = load()
            self._features = partial(padded_features, input_names=input_names)
            examples = padded_examples(input_names)
            self._compiled = CompiledModule(module, partial(head, module), examples, dtype, num_threads)
            self.padding_cost = 1.0

    @property
    def precision(self) -> str:
        """OpenVINO's name of the number format."""
        return self._compiled.precision

    def __call__(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """One forward pass: a row for each text, in order."""
        return self._compiled(self._features(rows))


def _texts(lengths: Sequence[int], length_limit: int) -> list[Row]:
    """Small token ids, others in each text."""
    kept = [min(length, length_limit) for length in lengths]
    return [{"input_ids": 1 + (5 * text + 3 * np.arange(length)) % 62} for text, length in enumerate(kept)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of a trace, which looks at every attribute of a module, at deprecated ones too."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [noisy.level for noisy in loggers]
    try:
        for noisy in loggers:
            noisy.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)
