"""No engine reads more of a text than its model has positions for, whatever the config or the tokenizer says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.model_folders import make_encoder
from benchmarks.gpu.shapes import TINY_RERANKER
from deployments.embedder import EmbedderConfig, load_embedding_engine
from deployments.engine_choice import AUTO
from deployments.errors import ConfigError
from deployments.reranker import CrossEncoderScorer, RerankerConfig
from tests.models import make_tiny_embedder, prepared

TORCH, PACKED = "deployments.embedder:SentenceEncoder", "deployments.packed_encoder:PackedEncoder"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_embedder(tmp_path_factory.mktemp("embedder")))


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    """It has 514 positions and counts them from the third, where its padding ends."""
    return make_encoder(TINY_RERANKER, tmp_path / "scorer", ["the moon the sea iron bees"] * 20, "cpu", "float32")


@pytest.mark.parametrize("engine", [AUTO, TORCH, PACKED])
def test_a_limit_above_an_embedders_positions_is_refused_at_the_start(embedder: str, engine: str) -> None:
    config = EmbedderConfig(engine=engine, model=embedder, device="cpu", dtype="float32", max_length_tokens=513)
    with pytest.raises(ConfigError, match="positions for 512 tokens"):
        load_embedding_engine(config)


def test_a_limit_of_all_its_positions_is_taken(embedder: str) -> None:
    config = EmbedderConfig(engine=TORCH, model=embedder, device="cpu", dtype="float32", max_length_tokens=512)
    assert load_embedding_engine(config).model.max_length_tokens == 512


def test_a_limit_above_a_cross_encoders_positions_is_refused_at_the_start(scorer: Path) -> None:
    config = RerankerConfig(method="cross_encoder", model=str(scorer), device="cpu", max_length_tokens=513)
    with pytest.raises(ConfigError, match="positions for 512 tokens"):
        CrossEncoderScorer(config)


def test_a_model_whose_tokenizer_names_no_limit_reads_as_much_as_it_has_positions_for(scorer: Path) -> None:
    file = scorer / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 10**30}))
    engine = CrossEncoderScorer(RerankerConfig(method="cross_encoder", model=str(scorer), device="cpu"))
    rows = prepared(engine, [("moon", "sea " * 2000)])
    assert [len(row["input_ids"]) for row in rows] == [512]
    assert np.isfinite(engine.run(rows)).all()
