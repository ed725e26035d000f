"""Which engine `auto` stands for: OpenVINO's or the packing one where it is meant to run and can, else torch's."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

import pytest

from deployments import engine_choice, torch_runtime
from deployments.embedder import EmbedderConfig, SentenceEncoder, load_embedding_engine
from deployments.errors import ConfigError
from deployments.openvino_encoder import OpenVinoEncoder
from deployments.openvino_scorer import OpenVinoScorer
from deployments.packed_encoder import PackedEncoder
from deployments.packed_scorer import PackedScorer
from deployments.reranker import CrossEncoderScorer, RerankerConfig, load_scoring_engine
from tests.models import make_tiny_cross_encoder, make_tiny_embedder

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_embedder(tmp_path_factory.mktemp("embedder")))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_cross_encoder(tmp_path_factory.mktemp("scorer")))


@pytest.fixture
def an_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("an_x86")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_on_an_x86_cpu_it_is_openvinos(
    embedder: str, scorer: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "resolve_device", lambda device: "cpu")
    assert isinstance(load_embedding_engine(EmbedderConfig(model=embedder, device=device)), OpenVinoEncoder)
    assert isinstance(load_scoring_engine(RerankerConfig(model=scorer, device=device)), OpenVinoScorer)


def test_on_another_machine_it_is_torchs(embedder: str, scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert isinstance(load_embedding_engine(EmbedderConfig(model=embedder)), SentenceEncoder)
    assert isinstance(load_scoring_engine(RerankerConfig(model=scorer)), CrossEncoderScorer)


@pytest.mark.usefixtures("an_x86")
def test_where_openvino_is_not_installed_it_is_torchs(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(load_embedding_engine(EmbedderConfig(model=embedder)), SentenceEncoder)


@pytest.mark.usefixtures("an_x86")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_another_device_is_not_openvinos(device: str) -> None:
    assert not engine_choice.openvino_may_run(device)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_on_a_gpu_it_is_the_one_that_packs(
    embedder: str, scorer: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "resolve_device", lambda device: "cuda:1" if device == "cuda:1" else "cuda")
    monkeypatch.setattr(torch_runtime, "resolve_device", lambda device: "cpu")
    assert isinstance(load_embedding_engine(EmbedderConfig(model=embedder, device=device)), PackedEncoder)
    assert isinstance(load_scoring_engine(RerankerConfig(model=scorer, device=device)), PackedScorer)


@pytest.mark.usefixtures("an_x86")
@pytest.mark.parametrize(
    ("device", "refusing", "reason"),
    [
        ("cpu", "deployments.openvino_encoder._compile", "OpenVINO can't convert this model"),
        ("cuda", "deployments.packed_encoder.PackedModule", "no positions of their own"),
    ],
)
def test_a_model_that_its_engine_refuses_runs_on_plain_torch_and_the_log_says_why(
    embedder: str,
    device: str,
    refusing: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError(reason)

    monkeypatch.setattr(refusing, refuse)
    monkeypatch.setattr(engine_choice, "resolve_device", lambda _: device)
    monkeypatch.setattr(torch_runtime, "resolve_device", lambda _: "cpu")
    assert isinstance(load_embedding_engine(EmbedderConfig(model=embedder)), SentenceEncoder)
    assert reason in caplog.text


@pytest.mark.usefixtures("an_x86")
def test_a_model_that_is_not_there_is_an_error_and_not_a_choice(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        load_embedding_engine(EmbedderConfig(model=str(tmp_path / "nowhere")))


def test_a_named_engine_is_that_one(embedder: str) -> None:
    config = EmbedderConfig(model=embedder, engine="deployments.embedder:SentenceEncoder")
    assert isinstance(load_embedding_engine(config), SentenceEncoder)
