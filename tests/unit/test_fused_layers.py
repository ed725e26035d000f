"""Fused layers say what the layers that they replace say, with a compiler and without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from deployments.fused_layers import fuse_layers


def transformer(activation: str = "gelu") -> Any:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_act=activation,
        initializer_range=0.3,
    )
    return BertModel(config).eval()


def mpnet() -> Any:
    """Its layers attend in a way of their own."""
    import torch
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    return MPNetModel(config).eval()


def hidden_states(model: Any, *shape: int) -> Any:
    import torch

    ids = torch.arange(3, 3 + shape[0] * shape[1]).reshape(shape)
    with torch.inference_mode():
        return model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("make", [transformer, partial(transformer, "relu"), mpnet], ids=["gelu", "relu", "mpnet"])
def test_without_a_compiler_fused_layers_say_the_same(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    def no_compiler(function: Any, **_: Any) -> Any:
        def raise_when_called(*_: Any) -> None:
            raise RuntimeError("no C compiler")

        return raise_when_called

    monkeypatch.setattr(torch, "compile", no_compiler)
    model = make()
    expected = hidden_states(model, 2, 9)
    fuse_layers(model)
    assert torch.allclose(hidden_states(model, 2, 9), expected, atol=1e-5)
    assert "can't compile" in caplog.text


def test_what_is_compiled_is_called_with_any_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls: list[tuple[int, ...]] = []

    def compiler(function: Any, *, dynamic: bool) -> Any:
        assert dynamic

        def compiled(summand: Any, *others: Any) -> Any:
            calls.append(tuple(summand.shape))
            return function(summand, *others)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    model = transformer()
    expected = [hidden_states(model, 1, length) for length in (1, 30)]
    fuse_layers(model)
    calls.clear()
    found = [hidden_states(model, 1, length) for length in (1, 30)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
    # Twice a layer.
    assert calls == [(1, 1, 16)] * 4 + [(1, 30, 16)] * 4
