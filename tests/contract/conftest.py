"""The engines are started once; stores and adapters are new for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.embedder import Embedder, EmbedderConfig
from tests.contract.backends import Backend, fake_backend, real_backend
from tests.models import make_tiny_cross_encoder, make_tiny_embedder

MINILM = EmbedderConfig(dtype="float32")


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    return Embedder(MINILM)


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_embedder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cross_encoder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def real(minilm: Embedder, tmp_path: Path) -> Backend:
    return real_backend(minilm, MINILM, tmp_path)


@pytest.fixture(params=["fake", "real"])
def stages(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return fake_backend()
    backend: Backend = request.getfixturevalue("real")
    return backend
