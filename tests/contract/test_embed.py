"""What every embedder promises. The reference is sentence-transformers' own `encode`, in float32."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest

from deployments.contracts import EmbedRequest, Embeds, Vector
from deployments.embedder import Embedder, EmbedderConfig
from deployments.errors import DeadlineExceeded, InputTooLong, StageUnavailable
from deployments.models import model_location
from deployments.remote import RemoteEmbedder
from tests import fakes
from tests.contract.backends import BUDGET_S
from tests.handles import LocalHandle
from tests.models import PASSAGE_PROMPT, QUERY_PROMPT

OPENVINO = "deployments.openvino_encoder:OpenVinoEncoder"
PACKED = "deployments.packed_encoder:PackedEncoder"

Role = Literal["query", "passage"]

TEXTS = (
    "The moon pulls the tides of the sea.",
    "Bees",
    "A hive has one queen, and she lays every egg of it, up to two thousand in a single day of early summer.",
    "What makes iron rust?",
    "1984",
)
ODD_TEXTS = (
    "",
    " \t\n",
    "Größe, façade, Ελλάδα, россия, 数据库, ひらがな",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "a\x00b\x00",
    "\u202eright to left\u202c",
    "x" * 20_000,
    "[SEP] [CLS] </s> <|endoftext|>",
)
# To a tokenizer that makes one token of a long word, and none of a blank, these begin with few tokens.
SPARSE_TEXTS = (f"{'x' * 200} " * 300, " " * 20_000 + TEXTS[0])


@dataclass(frozen=True, slots=True)
class Case:
    """`min_cosine` is how near vectors of one text must be to each other, however they were batched."""

    embedder: Embeds
    dim: int
    max_tokens: int
    min_cosine: float
    count_tokens: Callable[[str], int]
    prompts: tuple[str, str] = ("", "")
    reference: Any = None

    async def embed(self, *texts: str, role: Role = "query") -> Vector:
        return (await self.embedder.embed(EmbedRequest(texts, role), BUDGET_S)).value.vectors

    def assert_near(self, ours: Vector, theirs: Vector) -> None:
        assert ours.shape == theirs.shape
        cosines = np.sum(ours * theirs, axis=-1)
        assert float(cosines.min()) >= self.min_cosine


# In float32 only the order of additions differs; bfloat16, which auto may stand for, keeps 8 bits of each number.
MIN_COSINE = {"float32": 1 - 1e-5, "bfloat16": 0.999, "auto": 0.999}


@cache
def reference_of(model: str) -> Any:
    """sentence-transformers' own model in float32. Loading it takes longer than most tests here."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_location(model), device="cpu").float()


def real_case(embedder: Embedder, config: EmbedderConfig, prompts: tuple[str, str] = ("", "")) -> Case:
    reference = reference_of(config.model)
    limit = reference.max_seq_length
    assert limit is not None

    def count_tokens(text: str) -> int:
        return len(reference.tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"])

    dim = reference.get_embedding_dimension()
    adapter = RemoteEmbedder(LocalHandle(embedder))
    return Case(adapter, dim, limit, MIN_COSINE[config.dtype], count_tokens, prompts, reference)


@pytest.fixture(scope="session")
def minilm_bfloat16() -> Embedder:
    return Embedder(EmbedderConfig(dtype="bfloat16"))


@pytest.fixture(scope="session")
def minilm_openvino() -> Embedder:
    return Embedder(EmbedderConfig(engine=OPENVINO))


@pytest.fixture(scope="session")
def tiny_openvino(tiny_config: EmbedderConfig) -> Embedder:
    return Embedder(tiny_config.model_copy(update={"engine": OPENVINO}))


@pytest.fixture(scope="session")
def tiny_packed(tiny_config: EmbedderConfig) -> Embedder:
    return Embedder(tiny_config.model_copy(update={"engine": PACKED}))


@pytest.fixture(params=["fake", "minilm", "minilm-bfloat16", "minilm-openvino", "tiny", "tiny-openvino", "tiny-packed"])
def case(request: pytest.FixtureRequest) -> Case:
    match request.param:
        case "fake":
            return Case(fakes.FakeEmbedder(), fakes.DIM, fakes.MAX_TOKENS, 1 - 1e-5, fakes.count_tokens)
        case "minilm":
            return real_case(request.getfixturevalue("minilm"), EmbedderConfig(dtype="float32"))
        case "minilm-bfloat16":
            return real_case(request.getfixturevalue("minilm_bfloat16"), EmbedderConfig(dtype="bfloat16"))
        case "minilm-openvino":
            return real_case(request.getfixturevalue("minilm_openvino"), EmbedderConfig())
        case _:
            config = request.getfixturevalue("tiny_config")
            embedder = request.getfixturevalue(request.param.replace("-", "_"))
            return real_case(embedder, config, (QUERY_PROMPT, PASSAGE_PROMPT))


async def test_each_text_has_a_float32_row_of_norm_one(case: Case) -> None:
    vectors = await case.embed(*TEXTS)
    assert vectors.shape == (len(TEXTS), case.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


async def test_rows_come_in_the_order_of_the_texts_whatever_their_lengths(case: Case) -> None:
    forwards, backwards = await case.embed(*TEXTS), await case.embed(*reversed(TEXTS))
    case.assert_near(forwards, backwards[::-1])
    similarities = forwards @ backwards[::-1].T
    assert similarities.argmax(axis=1).tolist() == list(range(len(TEXTS)))


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(case: Case) -> None:
    together = await case.embed(*TEXTS)
    alone = np.concatenate([await case.embed(text) for text in TEXTS])
    case.assert_near(together, alone)


async def test_no_texts_make_no_rows(case: Case) -> None:
    embedded = await case.embedder.embed(EmbedRequest(()), BUDGET_S)
    assert embedded.value.vectors.shape == (0, case.dim)
    assert embedded.value.vectors.dtype == np.float32
    assert embedded.value.num_tokens == 0


async def test_callers_at_the_same_time_get_their_own_vectors(case: Case) -> None:
    texts = [f"Caller {number} asks about {TEXTS[number % len(TEXTS)]}" for number in range(40)]
    rows = await asyncio.gather(*(case.embed(text, f"{text} And more.") for text in texts))
    flat = [text for pair in ((text, f"{text} And more.") for text in texts) for text in pair]
    case.assert_near(np.concatenate(rows), await case.embed(*flat))


async def test_odd_texts_have_the_vectors_that_they_have_alone(case: Case) -> None:
    vectors = await case.embed(*ODD_TEXTS)
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(ODD_TEXTS)), abs=1e-5)
    case.assert_near(vectors, np.concatenate([await case.embed(text) for text in ODD_TEXTS]))


async def test_tokens_are_counted_with_special_tokens_and_without_padding(case: Case) -> None:
    embedded = await case.embedder.embed(EmbedRequest(TEXTS, "passage"), BUDGET_S)
    assert embedded.value.num_tokens == sum(case.count_tokens(case.prompts[1] + text) for text in TEXTS)


async def test_a_text_that_is_too_long_is_cut_at_the_limit(case: Case) -> None:
    text = "word " * (case.max_tokens + 50)
    embedded = await case.embedder.embed(EmbedRequest((text,)), BUDGET_S)
    assert embedded.value.num_tokens == case.max_tokens
    case.assert_near(embedded.value.vectors, await case.embed(text + "and an end that nobody reads"))


async def test_a_text_that_is_too_long_is_refused_with_both_lengths_where_it_may_not_be_cut(case: Case) -> None:
    text = "word " * (case.max_tokens + 50)
    neighbour = asyncio.ensure_future(case.embed(TEXTS[0]))
    with pytest.raises(InputTooLong) as refused:
        await case.embedder.embed(EmbedRequest(("short", text), truncate=False), BUDGET_S)
    assert str(case.count_tokens(case.prompts[0] + text)) in refused.value.message
    assert str(case.max_tokens) in refused.value.message
    case.assert_near(await neighbour, await case.embed(TEXTS[0]))


async def test_a_text_of_long_words_that_is_too_long_is_refused_where_it_may_not_be_cut(case: Case) -> None:
    text = f"{'x' * 200} " * (case.max_tokens + 50)
    with pytest.raises(InputTooLong):
        await case.embedder.embed(EmbedRequest((text,), truncate=False), BUDGET_S)


async def test_a_text_of_exactly_the_limit_is_not_refused(case: Case) -> None:
    words = case.max_tokens - case.count_tokens(case.prompts[0] + "a") + 1
    text = " ".join(["a"] * words)
    assert case.count_tokens(case.prompts[0] + text) == case.max_tokens
    embedded = await case.embedder.embed(EmbedRequest((text,), truncate=False), BUDGET_S)
    assert embedded.value.num_tokens == case.max_tokens


async def test_without_time_left_nothing_is_embedded(case: Case) -> None:
    with pytest.raises(DeadlineExceeded):
        await case.embedder.embed(EmbedRequest(TEXTS), 0.0)


async def test_only_who_wants_this_model_or_any_is_answered(tiny: Embedder, tiny_config: EmbedderConfig) -> None:
    handle = LocalHandle(tiny)
    right, any_model = RemoteEmbedder(handle, model=tiny_config.model), RemoteEmbedder(handle)
    wrong = RemoteEmbedder(handle, model="another-model")
    assert await right.describe() == await any_model.describe()
    vectors = [(await caller.embed(EmbedRequest(TEXTS), BUDGET_S)).value.vectors for caller in (right, any_model)]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
    with pytest.raises(StageUnavailable, match="another model"):
        await wrong.describe()
    with pytest.raises(StageUnavailable, match="another model"):
        await wrong.embed(EmbedRequest(TEXTS), BUDGET_S)
    with pytest.raises(StageUnavailable, match="another model"):
        await any_model.embed(EmbedRequest(TEXTS, model="another-model"), BUDGET_S)


async def test_bulk_work_has_the_same_vectors(case: Case) -> None:
    bulk = await case.embedder.embed(EmbedRequest(TEXTS, priority="bulk"), BUDGET_S)
    case.assert_near(bulk.value.vectors, await case.embed(*TEXTS))


@pytest.mark.parametrize(
    "case", ["minilm", "minilm-bfloat16", "minilm-openvino", "tiny", "tiny-openvino"], indirect=True
)
async def test_both_roles_agree_with_the_reference_library(case: Case) -> None:
    texts = [text for text in TEXTS + ODD_TEXTS + SPARSE_TEXTS if text.strip()] + ["word " * (case.max_tokens + 50)]
    roles: tuple[Role, Role] = ("query", "passage")
    for role, prompt in zip(roles, case.prompts, strict=True):
        expected = case.reference.encode(
            texts, prompt=prompt or None, normalize_embeddings=True, show_progress_bar=False
        )
        case.assert_near(await case.embed(*texts, role=role), expected)


@pytest.mark.parametrize("case", ["tiny", "tiny-openvino"], indirect=True)
async def test_a_prompt_makes_queries_and_passages_differ(case: Case) -> None:
    as_query, as_passage = await case.embed(TEXTS[0]), await case.embed(TEXTS[0], role="passage")
    assert float(np.sum(as_query * as_passage)) < 0.999
