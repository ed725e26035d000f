"""The engine part of the GPU kit: sizes, work, texts and turns; and the whole of it on a CPU with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.engine_benchmark import (
    OURS,
    OURS_PADDED,
    PAIRS_PER_QUESTION,
    Contender,
    compare,
    make_items,
    max_deviation,
)
from benchmarks.gpu.engines import main
from benchmarks.gpu.hardware import TERA, peak_flops
from benchmarks.gpu.lengths import DOCUMENT_QUANTILES, draw_lengths
from benchmarks.gpu.rounds import interleave
from benchmarks.gpu.shapes import (
    BGE_LARGE,
    BGE_RERANKER_V2_M3,
    LLAMA_8B,
    MINILM_L6,
    TINY_EMBEDDER,
    TINY_RERANKER,
    EncoderShape,
)
from benchmarks.gpu.texts import MADE_UP, load_corpus
from benchmarks.gpu.tokenizing import train_encoder_tokenizer
from benchmarks.run import EXIT_OK, EXIT_USAGE

NOWHERE = Path("there/is/no/corpus.jsonl")
NUM_ITEMS = 24


@pytest.mark.parametrize(
    ("shape", "published_millions"), [(MINILM_L6, 22.7), (BGE_LARGE, 335.1), (BGE_RERANKER_V2_M3, 567.8)]
)
def test_an_encoder_has_as_many_weights_as_the_published_model(shape: EncoderShape, published_millions: float) -> None:
    assert shape.num_params / 1e6 == pytest.approx(published_millions, rel=0.01)


def test_the_language_model_has_the_size_of_llama_8b() -> None:
    assert LLAMA_8B.num_params / 1e9 == pytest.approx(8.03, rel=0.001)
    assert LLAMA_8B.kv_bytes_per_token == 128 * 1024


def test_work_is_two_operations_per_weight_and_four_per_attended_token() -> None:
    shape = EncoderShape("one", "embed", "bert", 1, 8, 1, 32, 10, 16, 16)

    assert shape.matmul_params == 4 * 64 + 2 * 8 * 32
    assert shape.forward_flops([1]) == 2 * shape.matmul_params + 4 * 8
    assert shape.forward_flops([3, 3]) == 2 * (3 * 2 * shape.matmul_params + 4 * 8 * 9)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10G", 70.0),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * TERA)


def test_a_device_that_nobody_knows_has_no_peak() -> None:
    assert peak_flops("cpu") is None
    assert peak_flops("NVIDIA GeForce GTX 1080") is None


def test_drawn_lengths_have_the_quantiles_of_the_table() -> None:
    lengths = draw_lengths(DOCUMENT_QUANTILES, 20_000, np.random.default_rng(0))

    for percentile in (5, 50, 95):
        assert np.percentile(lengths, percentile) == pytest.approx(DOCUMENT_QUANTILES[percentile], rel=0.03)


def test_made_up_texts_are_as_long_as_scifacts_and_the_same_every_time() -> None:
    corpus = load_corpus(NOWHERE, 200, 200)
    tokenizer = train_encoder_tokenizer(MINILM_L6, [document.whole for document in corpus.documents])
    lengths = [len(ids) for ids in tokenizer([document.whole for document in corpus.documents])["input_ids"]]

    assert corpus.source == MADE_UP
    assert corpus == load_corpus(NOWHERE, 200, 200)
    assert np.median(lengths) == pytest.approx(DOCUMENT_QUANTILES[50], rel=0.15)


def test_a_corpus_is_drawn_with_its_questions_and_titles_fill_them_up(tmp_path: Path) -> None:
    documents = [{"_id": str(number), "title": f"Title {number}", "text": "Text."} for number in range(5)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "Who  built it?"}))

    corpus = load_corpus(tmp_path / "corpus.jsonl", 3, 3)

    assert len({document.id for document in corpus.documents}) == 3
    assert corpus.questions[0] == "Who built it?"
    assert set(corpus.questions[1:]) < {document["title"] for document in documents}


def test_every_contender_has_its_turn_in_each_round_and_each_round_begins_with_another() -> None:
    order: list[str] = []
    ticks = iter(range(1000))

    def contender(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    timed = interleave(
        {name: contender(name) for name in "abc"}, 3, lambda: order.append("wait"), clock=lambda: float(next(ticks))
    )

    assert [name for name in order if name != "wait"] == list("abcbcacab")
    assert order[:3] == ["wait", "a", "wait"]
    assert all(one.times_s == (1.0, 1.0, 1.0) and one.median_s == 1.0 for one in timed.values())


def test_an_embedder_gets_texts_and_a_reranker_questions_with_their_candidates() -> None:
    corpus = load_corpus(NOWHERE, 30, 30)
    documents = {document.whole for document in corpus.documents}

    mixed = make_items(TINY_EMBEDDER, corpus, 50, "mixed")
    pairs = make_items(TINY_RERANKER, corpus, 2 * PAIRS_PER_QUESTION + 1, "mixed")

    assert len(mixed) == 50
    assert sum(text in documents for text in mixed) == 25
    assert set(make_items(TINY_EMBEDDER, corpus, 10, "questions")) <= set(corpus.questions)
    assert [question for question, _ in pairs[::PAIRS_PER_QUESTION]] == list(corpus.questions[:3])
    assert {document for _, document in pairs} == documents


def test_raglane_is_compared_with_the_best_of_the_fixed_batches() -> None:
    def contender(name: str, tokens_per_s: float) -> Contender:
        return Contender(name, 1.0, (1.0,), 1.0, tokens_per_s, 1.0, None, 0.0)

    speeds = {OURS: 300.0, OURS_PADDED: 500.0, "encode 32": 100.0, "fixed 16": 200.0, "fixed 64": 400.0}
    compared = compare([contender(*speed) for speed in speeds.items()], "encode 32")

    assert compared["best_fixed"] == "fixed 64"
    assert compared["ratios"] == {"over_library": 3.0, "over_best_fixed": 0.75}
    assert compared["targets_met"] == {"over_library": True, "over_best_fixed": False}


def test_results_deviate_by_angle_or_by_difference() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)

    assert max_deviation(vectors, vectors) == 0.0
    assert max_deviation(vectors, vectors[::-1]) == pytest.approx(1.0)
    scores = np.array([0.1, 0.9], dtype=np.float32)
    assert max_deviation(scores, scores - np.array([0.0, 0.4], dtype=np.float32)) == pytest.approx(0.4)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole benchmark on a CPU, with both tiny models."""
    folder = tmp_path_factory.mktemp("engines")
    size = ["--items", str(NUM_ITEMS), "--rounds", "1", "--fixed-rows", "4", "8", "--threads", "2"]
    device = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--peak-tflops", "1"]
    files = ["--corpus", str(NOWHERE), "--out", str(folder / "result.json")]
    assert main([*size, *device, *files]) == EXIT_OK
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def test_the_benchmark_measures_both_stages_and_says_with_what(result: dict[str, Any]) -> None:
    assert [one["shape"]["task"] for one in result["shapes"]] == ["embed", "rerank"]
    assert [[each["name"] for each in one["contenders"]] for one in result["shapes"]] == [
        [OURS, OURS_PADDED, "encode 32", "fixed 4", "fixed 8"],
        [OURS, OURS_PADDED, "predict 32", "fixed 4", "fixed 8"],
    ]
    assert result["texts"] == MADE_UP
    assert result["command"].startswith("python -m benchmarks.gpu.engines")


def test_all_contenders_do_the_same_work_with_the_same_results(result: dict[str, Any]) -> None:
    for one in result["shapes"]:
        assert one["num_items"] == NUM_ITEMS
        for contender in one["contenders"]:
            assert contender["tokens_per_s"] * contender["median_s"] == pytest.approx(one["num_tokens"])
            assert abs(contender["max_deviation"]) < 1e-4


def test_the_share_of_the_peak_is_of_the_work_that_the_texts_make(result: dict[str, Any]) -> None:
    embedder = result["shapes"][0]
    least = 2 * TINY_EMBEDDER.matmul_params * embedder["num_tokens"]
    for contender in embedder["contenders"]:
        assert contender["mfu"] * TERA * contender["median_s"] > least


def test_without_a_gpu_the_benchmark_says_what_to_do_instead(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--corpus", str(NOWHERE)]) == EXIT_USAGE
    assert "--device cpu --shape tiny" in " ".join(capsys.readouterr().err.split())
