"""Texts end to end in one row: none reads its neighbour, and what can't be packed is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest

from benchmarks.gpu.model_folders import make_encoder
from benchmarks.gpu.shapes import TINY_EMBEDDER, TINY_RERANKER, EncoderShape
from deployments import packed_runtime
from deployments.embedder import EmbedderConfig, SentenceEncoder, Text
from deployments.errors import ConfigError
from deployments.packed_encoder import PackedEncoder
from deployments.packed_rows import RowPackedModel
from deployments.packed_runtime import PackedModule
from deployments.packed_scorer import PackedScorer
from deployments.reranker import CrossEncoderScorer, RerankerConfig
from deployments.transformer_surgery import PackableEncoder
from tests.models import make_tiny_embedder, prepared

TEXTS = ("moon", "The tides of the sea are made by the moon. " * 9, "", "iron and bees")


def model_of(shape: EncoderShape, folder: Path) -> str:
    return str(make_encoder(shape, folder / shape.name, ["the moon the sea iron bees"] * 20, "cpu", "float32"))


def test_an_embedder_with_cls_pooling_says_of_packed_texts_what_it_says_of_padded_ones(tmp_path: Path) -> None:
    config = EmbedderConfig(model=model_of(TINY_EMBEDDER, tmp_path), device="cpu", dtype="float32")
    items = [Text(text, "passage", truncate=True) for text in TEXTS]
    padded, packed = SentenceEncoder(config), PackedEncoder(config)
    expected = [result.vector for result in padded.run(prepared(padded, items))]
    results = packed.run(prepared(packed, items))
    assert np.allclose([result.vector for result in results], expected, atol=1e-5)
    assert [result.num_tokens for result in results] == [len(row) for row in prepared(packed, items)]


def test_a_reranker_that_counts_positions_from_its_padding_is_packed_from_there(tmp_path: Path) -> None:
    config = RerankerConfig(
        method="cross_encoder", model=model_of(TINY_RERANKER, tmp_path), device="cpu", dtype="float32"
    )
    items = [(TEXTS[0], text) for text in TEXTS]
    padded, packed = CrossEncoderScorer(config), PackedScorer(config)
    assert np.allclose(packed.run(prepared(packed, items)), padded.run(prepared(padded, items)), atol=1e-5)


def test_batches_that_are_launched_together_keep_their_own_results(tmp_path: Path) -> None:
    config = EmbedderConfig(model=model_of(TINY_EMBEDDER, tmp_path), device="cpu", dtype="float32")
    engine = PackedEncoder(config)
    rows = prepared(engine, [Text(text, "query", truncate=True) for text in TEXTS])
    first, second = engine.launch(rows[:1]), engine.launch(rows[1:])
    together = [result.vector for result in [*first(), *second()]]
    assert np.allclose(together, [engine.run([row])[0].vector for row in rows], atol=1e-5)


def test_a_model_that_is_not_made_like_bert_is_refused() -> None:
    class Other:
        transformers_model = None
        device = "cpu"

    with pytest.raises(ConfigError, match="BERT"):
        PackedModule("embedder", Other(), lambda features: None, ("input_ids",), 512)


class FirstTokens:
    """As much of a sentence-transformers model as packing asks for, around a tiny transformer of random weights."""

    SIZES: ClassVar = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}

    def __init__(self, model_class: Any) -> None:
        import torch

        self.device = torch.device("cpu")
        config = model_class.config_class(num_hidden_layers=2, initializer_range=0.3, **self.SIZES)
        self.transformers_model = model_class(config).eval()

    def __call__(self, features: dict[str, Any]) -> Any:
        return self.transformers_model(**features).last_hidden_state[:, 0]


INPUT_NAMES = ("input_ids", "attention_mask")
PACKINGS = (
    lambda module: PackedModule("embedder", module, module, INPUT_NAMES, 512),
    lambda module: RowPackedModel(module, module, INPUT_NAMES, 512),
)


@pytest.mark.parametrize("pack", PACKINGS, ids=["one row", "rows"])
def test_a_model_whose_layers_attend_in_their_own_way_is_refused(pack: Callable[[Any], Any]) -> None:
    from transformers import MPNetModel

    with pytest.raises(ConfigError):
        pack(FirstTokens(MPNetModel))


@pytest.mark.parametrize("pack", PACKINGS, ids=["one row", "rows"])
def test_a_model_that_takes_no_other_attention_is_refused(
    pack: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("no such attention")

    module = FirstTokens(BertModel)
    monkeypatch.setattr(BertModel, "set_attn_implementation", refuse)
    with pytest.raises(ConfigError, match="no such attention"):
        pack(module)


def test_a_packed_model_whose_texts_read_each_other_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_text_of_all(query: Any, key: Any, value: Any, layout: Any, scaling: float | None) -> Any:
        import torch

        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)[0].transpose(0, 1)

    monkeypatch.setattr(packed_runtime, "_attention_text_by_text", one_text_of_all)
    with pytest.raises(ConfigError, match="answers differently"):
        PackedEncoder(EmbedderConfig(model=str(make_tiny_embedder(tmp_path)), device="cpu", dtype="float32"))


def test_positions_that_do_not_begin_anew_with_each_text_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackableEncoder, "first_position", property(lambda self: 0, lambda self, value: None), False)
    model = model_of(TINY_RERANKER, tmp_path)
    with pytest.raises(ConfigError, match="answers differently"):
        PackedScorer(RerankerConfig(method="cross_encoder", model=model, device="cpu", dtype="float32"))


def test_packed_attention_on_a_gpu_wants_half_precision() -> None:
    with pytest.raises(ConfigError, match="float32"):
        packed_runtime._flash_attention("float32")


def test_the_end_of_a_batch_is_marked_on_the_device_that_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Event:
        stream = "that of the current device"

        def record(self, stream: str = stream) -> None:
            self.stream = stream

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"that of {device}")
    assert packed_runtime._mark(torch.device("cuda:1")).stream == "that of cuda:1"
