"""What the comparisons with other systems are made of."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import lancedb
import numpy as np
import pytest
import yaml

from benchmarks.comparison import read_comparison
from benchmarks.peers.check import least_cosine, rank_correlation
from benchmarks.peers.export_passages import export_passages
from benchmarks.peers.make_cross_encoder import TOKENIZER_FILES, make_cross_encoder
from benchmarks.peers.make_rerank_requests import rerank_requests
from serve_app.config import AppConfig
from serve_app.serve_file import check_serve_document, deployments_of, load_serve_file

REPOSITORY = Path(__file__).parents[2]
PEERS = REPOSITORY / "benchmarks" / "peers"
COMPARISONS = sorted((REPOSITORY / "benchmarks" / "experiments").glob("peer_*.yaml"))
SCRIPTS = sorted(PEERS.glob("*.sh"))

QUERIES = {str(number): f"claim {number}" for number in range(30)}
ABSTRACTS = [f"abstract {number}" for number in range(50)]


class TestComparisons:
    def test_there_is_one_for_each_of_the_peers_tasks(self) -> None:
        assert {path.stem for path in COMPARISONS} == {"peer_embeddings", "peer_rerank", "peer_search_rerank"}

    @pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
    def test_it_parses_and_is_named_like_its_file(self, path: Path) -> None:
        assert read_comparison(path).name == path.stem

    @pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
    def test_raglane_is_the_first_system(self, path: Path) -> None:
        assert next(iter(read_comparison(path).systems)) == "raglane"

    @pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
    def test_the_files_that_start_its_systems_are_there(self, path: Path) -> None:
        parts = [part for system in read_comparison(path).systems.values() for part in system.command]
        files = [REPOSITORY / part for part in parts if part.startswith("benchmarks/")]
        assert len(files) == 2
        assert all(file.is_file() for file in files)

    @pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
    def test_each_peer_is_asked_at_the_port_that_it_is_started_with(self, path: Path) -> None:
        for name, system in read_comparison(path).systems.items():
            port = "8000" if name == "raglane" else system.command[-1]
            assert system.url == f"http://127.0.0.1:{port}"


class TestRaglane:
    def test_its_file_is_valid_and_sizes_every_deployment(self) -> None:
        document = load_serve_file(PEERS / "raglane.yaml")
        check_serve_document(document)
        (application,) = document["applications"]
        config = AppConfig.model_validate(application["args"])
        assert {options["name"] for options in application["deployments"]} == set(deployments_of(config))

    def test_it_computes_everything_anew_in_bfloat16(self) -> None:
        document = yaml.safe_load((PEERS / "raglane.yaml").read_text(encoding="utf-8"))
        config = AppConfig.model_validate(document["applications"][0]["args"])
        assert (config.lane.embedding_cache.max_bytes, config.lane.answer_cache.enabled) == (0, False)
        assert {config.embedder.dtype, config.reranker.dtype} == {"bfloat16"}
        assert config.reranker.method == "cross_encoder"


class TestRerankRequests:
    @staticmethod
    def _draw(seed: int = 0, num_requests: int = 10) -> list[dict[str, object]]:
        return list(rerank_requests(QUERIES, ABSTRACTS, num_requests=num_requests, num_documents=20, seed=seed))

    def test_each_has_a_query_of_its_own_and_different_abstracts(self) -> None:
        requests = self._draw()
        assert len({request["_id"] for request in requests}) == 10
        for request in requests:
            assert request["text"] == QUERIES[str(request["_id"])]
            assert isinstance(request["documents"], list)
            assert len(set(request["documents"])) == 20
            assert set(request["documents"]) <= set(ABSTRACTS)

    def test_the_seed_decides_which_they_are(self) -> None:
        assert self._draw(seed=1) == self._draw(seed=1)
        assert self._draw(seed=1) != self._draw(seed=2)

    def test_more_requests_than_queries_are_refused(self) -> None:
        with pytest.raises(ValueError, match="larger than population"):
            self._draw(num_requests=31)


def test_passages_are_exported_with_their_vectors_in_the_order_of_their_ids(tmp_path: Path) -> None:
    rows = [
        {"id": "b:0", "title": "T", "text": "second ü", "vector": [0.6, 0.8], "metadata": "{}"},
        {"id": "a:0", "title": "", "text": "first", "vector": [1 / 3, -0.942809], "metadata": "{}"},
    ]
    lancedb.connect(tmp_path / "lancedb").create_table("scifact", rows)
    out = tmp_path / "new" / "passages.jsonl"
    assert export_passages(tmp_path, "scifact", out) == 2
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        {"_id": "a:0", "title": "", "text": "first", "vector": [0.333333, -0.942809]},
        {"_id": "b:0", "title": "T", "text": "second ü", "vector": [0.6, 0.8]},
    ]


class TestCrossEncoder:
    @staticmethod
    def _make(folder: Path, seed: int) -> bytes:
        shape = {
            "vocab_size": 16,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 32,
        }
        embedder = folder / "embedder"
        embedder.mkdir(parents=True)
        (embedder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        for name in TOKENIZER_FILES:
            (embedder / name).write_text(name, encoding="utf-8")
        make_cross_encoder(folder / "made", embedder, seed)
        return (folder / "made" / "model.safetensors").read_bytes()

    def test_it_has_the_embedders_shape_and_tokenizer_and_a_single_label(self, tmp_path: Path) -> None:
        self._make(tmp_path, seed=0)
        made = tmp_path / "made"
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (2, 8, 16)
        assert list(config["id2label"]) == ["0"]
        assert all((made / name).read_text(encoding="utf-8") == name for name in TOKENIZER_FILES)

    def test_the_seed_decides_the_weights(self, tmp_path: Path) -> None:
        first, second, other = (self._make(tmp_path / str(run), seed) for run, seed in enumerate((1, 1, 2)))
        assert first == second
        assert first != other


class TestAgreement:
    def test_the_same_order_at_other_scores_correlates_fully(self) -> None:
        assert rank_correlation(_floats(0.1, 0.9, 0.5), _floats(-7, 3, 2)) == pytest.approx(1)

    def test_the_opposite_order_correlates_negatively(self) -> None:
        assert rank_correlation(_floats(1, 2, 3), _floats(3, 2, 1)) == pytest.approx(-1)

    def test_one_vector_that_differs_is_seen_among_many(self) -> None:
        same = np.tile(_floats(1, 0), (10, 1))
        other = same.copy()
        other[7] = (0.6, 0.8)
        assert least_cosine(same, 2 * same) == pytest.approx(1)
        assert least_cosine(same, other) == pytest.approx(0.6)


def _floats(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


class TestScripts:
    @pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
    def test_it_is_a_shell_script_that_can_be_run(self, script: Path) -> None:
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0

    @pytest.mark.parametrize("name", [[], ["another"]])
    def test_setup_names_the_peers_that_it_knows(self, name: list[str]) -> None:
        done = subprocess.run(["bash", PEERS / "setup.sh", *name], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "infinity|hayhooks" in done.stderr

    @pytest.mark.parametrize("name", ["infinity", "hayhooks"])
    def test_a_peer_that_is_not_installed_is_told_of_with_its_remedy(self, name: str, tmp_path: Path) -> None:
        done = subprocess.run(
            ["bash", PEERS / f"serve_{name}.sh", "7997"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PEERS": str(tmp_path)},
        )
        assert done.returncode == 1
        assert f"setup.sh {name}" in done.stderr

    @pytest.mark.parametrize("name", ["infinity", "hayhooks"])
    def test_everything_that_is_asked_for_stands_in_the_lock_in_that_version(self, name: str) -> None:
        lock = {_package(line) for line in _lines(PEERS / f"{name}.lock")}
        assert {_package(line) for line in _lines(PEERS / f"{name}.in")} <= lock


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _package(line: str) -> tuple[str, str]:
    name, _, version = line.partition("==")
    return name.partition("[")[0].lower().replace("_", "-"), version
