"""The accelerator: its name, its memory and what it computes at most. Imports torch when called."""

from __future__ import annotations

import re
from collections.abc import Callable

TERA = 1e12

# Dense bfloat16 tensor-core peaks in TFLOP/s, from NVIDIA's data sheets (their bold figures are for sparse matrices,
# twice as high). The first pattern that is found in the device's name counts.
_PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    (r"B200", 2250.0),
    (r"H200 NVL", 835.5),
    (r"H200|GH200", 989.4),
    (r"H100 NVL", 835.5),
    (r"H100 PCIe", 756.5),
    (r"H100", 989.4),
    (r"A100|A800", 312.0),
    (r"L40S", 362.05),
    (r"L40", 181.05),
    (r"L4\b", 121.0),
    (r"A10G", 70.0),
    (r"A10\b", 125.0),
)


def peak_flops(device_name: str) -> float | None:
    """Floating-point operations a second that the device does at most in bfloat16; None where that is not known."""
    for pattern, tflops in _PEAK_TFLOPS:
        if re.search(pattern, device_name):
            return tflops * TERA
    return None


def device_name(device: str) -> str:
    """The GPU's own name, or `cpu`."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def gpu_memory_bytes() -> int:
    """The memory of the first GPU. Raises RuntimeError where torch sees none."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def synchroniser(device: str) -> Callable[[], None]:
    """What waits until the device has done all that it was given; nothing on a CPU, which works as it is called."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)
