"""What every torch engine needs: its device and dtype, and what a lost device means. Imports torch when called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deployments.errors import EngineDead

# A thread that launches kernels lets go of the interpreter at each of some hundred operations. With Python's own 5 ms
# it waits so long for it every time that the event loop is busy: 1.4 ms for an operation that takes 5 µs.
SWITCH_INTERVAL_S = 0.0002


def set_up(device: str, dtype: str, num_threads: int) -> tuple[str, Any]:
    """Set this process's threads; returns the device and the torch dtype that the config's names stand for."""
    import torch

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(num_threads)
    resolved = resolve_device(device)
    return resolved, resolve_dtype(dtype, resolved)


@contextmanager
def forward_pass(stage: str) -> Iterator[None]:
    """Inference mode; raises EngineDead when the device is lost."""
    import torch

    try:
        with torch.inference_mode():
            yield
    except torch.AcceleratorError as error:
        # A device error is sticky: every later call in this process would fail as well.
        raise EngineDead(f"the {stage} lost its device ({type(error).__name__})") from error


def resolve_device(device: str) -> str:
    """The device named in a config, with `auto` resolved to what this process has."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> Any:
    """The torch dtype named in a config; `auto` is bfloat16 where the hardware multiplies in it, else float32."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device == "cpu" and _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
