"""The sizes of well-known models and the work that they make. Weights are not needed to know how fast a model runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

BYTES_PER_BFLOAT16 = 2


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A bidirectional transformer. `positions` are those that a text can have; it is cut at `max_length_tokens`."""

    name: str
    task: Literal["embed", "rerank"]
    architecture: Literal["bert", "xlm-roberta"]
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    max_length_tokens: int

    @property
    def matmul_params(self) -> int:
        """The weights that every token is multiplied with: those of the layers, neither embeddings nor heads."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    @property
    def num_params(self) -> int:
        """All weights, without the few thousand of norms and biases."""
        return self.matmul_params + (self.vocab + self.positions) * self.hidden

    def forward_flops(self, lengths: Iterable[int]) -> int:
        """Floating-point operations of one forward pass over texts of these many tokens each, padding not counted.

        A token takes 2 operations (multiply, add) for each weight that it meets, and 4 x layers x hidden x length for
        attention: the scores and the sum of values are 2 each, over all tokens of its own text. This is C = 2N plus
        the attention term of Kaplan et al., "Scaling Laws for Neural Language Models" (2020), table 1, and a third of
        the training cost 6N + 12LHQT of Chowdhery et al., "PaLM" (2022), appendix B, by which MFU is defined.
        """
        return sum(
            2 * self.matmul_params * length + 4 * self.layers * self.hidden * length * length for length in lengths
        )


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A language model of the Llama architecture with grouped-query attention."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int

    @property
    def num_params(self) -> int:
        """All weights but those of the norms."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """The key-value cache that one token takes, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES_PER_BFLOAT16


TINY_EMBEDDER = EncoderShape("tiny-embedder", "embed", "bert", 2, 64, 2, 128, 2048, 512, 512)
TINY_RERANKER = EncoderShape("tiny-reranker", "rerank", "xlm-roberta", 2, 64, 2, 128, 2048, 514, 512)
# sentence-transformers/all-MiniLM-L6-v2
MINILM_L6 = EncoderShape("minilm-l6", "embed", "bert", 6, 384, 12, 1536, 30522, 512, 512)
# BAAI/bge-large-en-v1.5
BGE_LARGE = EncoderShape("bge-large", "embed", "bert", 24, 1024, 16, 4096, 30522, 512, 512)
# BAAI/bge-reranker-v2-m3, whose pairs deploy/gpu.yaml cuts at 1,024 tokens
BGE_RERANKER_V2_M3 = EncoderShape("bge-reranker-v2-m3", "rerank", "xlm-roberta", 24, 1024, 16, 4096, 250002, 8194, 1024)

ENCODERS = {shape.name: shape for shape in (TINY_EMBEDDER, TINY_RERANKER, MINILM_L6, BGE_LARGE, BGE_RERANKER_V2_M3)}
ENCODER_GROUPS = {"tiny": (TINY_EMBEDDER, TINY_RERANKER), "full": (BGE_LARGE, BGE_RERANKER_V2_M3)}

# A head of 64 is the smallest that every attention backend of vLLM takes.
TINY_DECODER = DecoderShape("tiny", 2, 128, 2, 1, 64, 256, 2048, 32768)
# meta-llama/Llama-3.1-8B-Instruct
LLAMA_8B = DecoderShape("llama-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072)

DECODERS = {shape.name: shape for shape in (TINY_DECODER, LLAMA_8B)}
