"""What every OpenVINO engine needs: a torch module compiled for this machine's CPU. Imports OpenVINO when called."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import ConfigError

# (rows, tokens): what a module is traced with, and what the compiled model is then tried on. Each length is another,
# so that a trace that holds for one shape alone is found out.
TRACED_SHAPE = (2, 16)
TRIED_SHAPES = ((1, 8), (3, 40))
# bfloat16 moves a sound model's output by a few percent of its norm, a trace that does not fit by all of it.
MAX_RELATIVE_ERROR = 0.25
# Scores next to zero may differ by more than their size.
MAX_ABSOLUTE_ERROR = 0.01

# Rows are not padded beyond the longest: unlike torch, OpenVINO keeps little for a shape, and each token that is padded
# is computed. Batches of questions took 8 to 15 % less CPU time than with lengths rounded up to 8.
LENGTH_MULTIPLE = 1

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}


class CompiledModule:
    """A torch module compiled by OpenVINO for any number of rows of any length. One thread may call it.

    `forward` takes an int64 tensor (rows, tokens) for each of `input_names`, by name, runs `module` on them and returns
    a float tensor with a row for each row. The module holds its weights in float32: OpenVINO makes the copy that it
    computes with, and the caller may forget the module then. Raises ConfigError where OpenVINO is not installed, where
    it can't convert the module, or where what it made of the module answers differently.
    """

    def __init__(
        self,
        module: Any,
        forward: Callable[[dict[str, Any]], Any],
        input_names: Sequence[str],
        dtype: str,
        num_threads: int,
    ) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        self._input_names = tuple(input_names)
        self.precision = resolve_precision(dtype, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": num_threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            # A pinned thread can't make way for the other processes of a machine of few cores.
            "ENABLE_CPU_PINNING": False,
        }
        with _quietly():
            model = _convert(openvino, module, forward, self._input_names)
            self._compiled = core.compile_model(model, "CPU", settings)
        self._compare(forward)

    def __call__(self, features: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """One forward pass: the output's rows in the order of the features' rows."""
        output: NDArray[np.float32] = self._compiled([features[name] for name in self._input_names])[0]
        return output

    def _compare(self, forward: Callable[[dict[str, Any]], Any]) -> None:
        import torch

        for shape in TRIED_SHAPES:
            features = _example(self._input_names, shape)
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


def _convert(openvino: Any, module: Any, forward: Callable[[dict[str, Any]], Any], input_names: tuple[str, ...]) -> Any:
    """The openvino.Model of `forward`; every dimension of its inputs is dynamic."""
    import torch

    class Positional(torch.nn.Module):
        """Tracing takes tensors by position; a weight is only forgotten with a trace that found it in a submodule."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: Any) -> Any:
            return forward(dict(zip(input_names, tensors, strict=True)))

    trace: Callable[..., Any] = torch.jit.trace
    example = tuple(torch.from_numpy(array) for array in _example(input_names, TRACED_SHAPE).values())
    try:
        with torch.no_grad():
            traced = trace(Positional().eval(), example, check_trace=False)
        return openvino.convert_model(traced)
    except Exception as error:
        message = f"OpenVINO can't convert this model ({type(error).__name__}); use the torch engine for it"
        raise ConfigError(message) from error


def _example(input_names: tuple[str, ...], shape: tuple[int, int]) -> dict[str, NDArray[np.int64]]:
    """Small token ids in rows that are one token shorter from row to row; other inputs than ids and mask are zero."""
    rows, tokens = shape
    mask = (np.arange(tokens) < tokens - np.arange(rows)[:, None]).astype(np.int64)
    ids = (np.arange(1, rows * tokens + 1, dtype=np.int64).reshape(shape) % 64) * mask
    known = {"input_ids": ids, "attention_mask": mask}
    return {name: known.get(name, np.zeros(shape, np.int64)) for name in input_names}


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
