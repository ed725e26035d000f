"""The engines are started once; stores and adapters are new for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.embedder import Embedder, EmbedderConfig
from tests.contract.backends import Backend, fake_backend, real_backend
from tests.models import make_tiny_embedder

MINILM = EmbedderConfig(dtype="float32")


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    return Embedder(MINILM)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> EmbedderConfig:
    return EmbedderConfig(model=str(make_tiny_embedder(tmp_path_factory.mktemp("models"))), dtype="float32")


@pytest.fixture(scope="session")
def tiny(tiny_config: EmbedderConfig) -> Embedder:
    return Embedder(tiny_config)


@pytest.fixture
def real(tiny: Embedder, tiny_config: EmbedderConfig, tmp_path: Path) -> Backend:
    """The real stages on a tiny embedder: right where it does not matter what a text means."""
    return real_backend(tiny, tiny_config, tmp_path)


@pytest.fixture
def meaningful(minilm: Embedder, tmp_path: Path) -> Backend:
    """The real stages on an embedder that knows what a text means."""
    return real_backend(minilm, MINILM, tmp_path)


@pytest.fixture(params=["fake", "real"])
def stages(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return fake_backend()
    backend: Backend = request.getfixturevalue("real")
    return backend
