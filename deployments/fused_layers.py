"""Layers of a BERT-like transformer in fewer passes over the GPU's memory. Imports torch when called.

A GPU multiplies matrices faster than it reads and writes what lies between them. Two such steps in each layer are
joined with their neighbours: the activation with the multiplication before it, and a residual with its normalisation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

logger = logging.getLogger(__name__)

AddNorm = Callable[[Any, Any, Any, Any, float], Any]

# transformers' names of the activation that the hardware's library has as the end of a multiplication. On CUDA that
# is its approximation by tanh, which is at most 0.0005 away: less than bfloat16 resolves above 0.06.
_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")


def fuse_layers(transformer: Any) -> None:
    """Replace what can be fused in each of `transformer.encoder.layer`, for inference; the rest stays as it is."""
    is_gelu = transformer.config.hidden_act in _GELU
    add_norm: AddNorm | None = None
    for layer in getattr(transformer.encoder, "layer", ()):
        if is_gelu and hasattr(layer.intermediate, "dense"):
            layer.intermediate.forward = partial(_dense_gelu, layer.intermediate.dense)
        parts: tuple[Any, ...] = (getattr(layer.attention, "output", None), layer.output)
        for part in parts:
            if hasattr(part, "dense") and hasattr(part, "LayerNorm"):
                add_norm = add_norm or _compiled_add_norm(part.LayerNorm)
                part.forward = partial(_dense_add_norm, add_norm, part.dense, part.LayerNorm)


def _dense_gelu(dense: Any, hidden_states: Any) -> Any:
    """(..., tokens, size) to (..., tokens, intermediate size)."""
    import torch

    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    activated = torch._addmm_activation(dense.bias, rows, dense.weight.t(), use_gelu=True)
    return activated.view(*hidden_states.shape[:-1], -1)


def _dense_add_norm(add_norm: AddNorm, dense: Any, norm: Any, hidden_states: Any, residual: Any) -> Any:
    """The normalised sum of a dense layer and what goes past it."""
    return add_norm(dense(hidden_states), residual, norm.weight, norm.bias, norm.eps)


def _add_norm(summand: Any, residual: Any, weight: Any, bias: Any, eps: float) -> Any:
    import torch

    return torch.nn.functional.layer_norm(summand + residual, weight.shape, weight, bias, eps)


def _compiled_add_norm(norm: Any) -> AddNorm:
    """One kernel for any number of tokens, tried on a layer's own normalisation; two where torch can't compile."""
    import torch

    compiled: AddNorm = torch.compile(_add_norm, dynamic=True)
    with torch.inference_mode():
        tokens = torch.zeros(1, 64, *norm.weight.shape, dtype=norm.weight.dtype, device=norm.weight.device)
        try:
            compiled(tokens, tokens, norm.weight, norm.bias, norm.eps)
        except Exception as error:  # noqa: BLE001 (whatever a compiler or its absence raises)
            logger.warning("layers are normalised in two steps: torch can't compile here (%s)", type(error).__name__)
            return _add_norm
    return compiled
