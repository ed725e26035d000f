"""Which of three engines runs a small model: OpenVINO's on a CPU, the packing one on a GPU, plain torch's elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import platform
from dataclasses import dataclass
from typing import Any

from deployments.errors import ConfigError
from deployments.section import load_engine
from deployments.torch_runtime import resolve_device

logger = logging.getLogger(__name__)

AUTO = "auto"
# What it was measured on; elsewhere it has to be named.
_MEASURED_ON = ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True)
class ModelEngines:
    """The engines of one stage that run the same models, by import path."""

    torch: str
    openvino: str
    packed: str


def load_model_engine(named: str, device: str, engines: ModelEngines, config: Any) -> Any:
    """The engine that a config names. `auto` is OpenVINO's on the CPU of an x86 machine where it is installed, the
    packing one on a CUDA device, and torch's on others, and for models that the first two can't run."""
    if named != AUTO:
        return load_engine(named, config)
    preferred = _preferred(device, engines)
    if preferred is not None:
        try:
            return load_engine(preferred, config)
        except ConfigError as error:
            logger.warning("computing with plain torch: %s", error.message)
    return load_engine(engines.torch, config)


def _preferred(device: str, engines: ModelEngines) -> str | None:
    if openvino_may_run(device):
        return engines.openvino
    return engines.packed if resolve_device(device).startswith("cuda") else None


def openvino_may_run(device: str) -> bool:
    """Whether OpenVINO is there and meant for this device."""
    if platform.machine() not in _MEASURED_ON or importlib.util.find_spec("openvino") is None:
        return False
    return resolve_device(device) == "cpu"
