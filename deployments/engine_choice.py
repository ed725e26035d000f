"""Which of two engines runs a small model: OpenVINO's on CPUs where it can, torch's everywhere else."""

from __future__ import annotations

import importlib.util
import logging
import platform
from typing import Any

from deployments.errors import ConfigError
from deployments.section import load_engine
from deployments.torch_runtime import resolve_device

logger = logging.getLogger(__name__)

AUTO = "auto"
# What it was measured on; elsewhere it has to be named.
_MEASURED_ON = ("x86_64", "AMD64")


def load_model_engine(named: str, device: str, torch_engine: str, openvino_engine: str, config: Any) -> Any:
    """The engine that a config names. For `auto` OpenVINO's where it is installed, the machine is an x86 and the device
    its CPU, and where it can run the model; else torch's."""
    if named != AUTO:
        return load_engine(named, config)
    if openvino_may_run(device):
        try:
            return load_engine(openvino_engine, config)
        except ConfigError as error:
            logger.warning("computing with torch: %s", error.message)
    return load_engine(torch_engine, config)


def openvino_may_run(device: str) -> bool:
    """Whether OpenVINO is there and meant for this device."""
    if platform.machine() not in _MEASURED_ON or importlib.util.find_spec("openvino") is None:
        return False
    return resolve_device(device) == "cpu"
