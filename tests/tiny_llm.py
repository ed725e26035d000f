"""A causal language model of a few hundred kilobytes, made on the spot: real architecture, random weights, no network.

It lets tests start the real vLLM engine in seconds of load time. Its answers are gibberish, but reproducible.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TURN = "<|end|>"
PADDING = "<|pad|>"
START_OF_TURN = "<|start|>"

HIDDEN = 128
LAYERS = 2
HEADS = 2
KEY_VALUE_HEADS = 1
HEAD_DIM = 64  # the smallest that every vLLM attention backend takes
INTERMEDIATE = 256
MAX_LENGTH_TOKENS = 32768

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

# Before a chat template: some models' own, such as Gemma 2's, begin like this.
REFUSING_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"

TEXT = """A lighthouse keeper counts the ships that pass and writes their names into a book before he goes to sleep.
Rivers carry sand to the sea, and the sea carries it back to the beaches when the storms of winter are over.
The question is short, the answer should be short as well: name the source, quote the sentence, then stop.
Who built the bridge? When was it opened? How long is it, and why did the first one fall after only two years?
Bread needs flour, water, salt and time; most of the work is done by yeast while the baker reads the newspaper.
In 1969 people walked on the Moon; in 2024 a probe landed there on its side and still sent pictures for a week.
system user assistant: Answer only from the numbered sources [1] [2] [3]. If they do not hold the answer, say so.
"""


def make_tiny_llm(folder: Path, seed: int = 0, chat_template: bool = True) -> Path:
    """Write model, tokenizer and generation defaults into `folder`; the same seed gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(folder)
    if chat_template:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_model_config(folder, tokenizer)
    _write_weights(folder, tokenizer.get_vocab_size(), seed)
    return folder


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE, so that every text can be encoded and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[AddedToken(token, special=True) for token in (PADDING, START_OF_TURN, END_OF_TURN)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def _write_tokenizer_config(folder: Path) -> None:
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TURN,
            "pad_token": PADDING,
            "model_max_length": MAX_LENGTH_TOKENS,
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_model_config(folder: Path, tokenizer: Tokenizer) -> None:
    eos, pad = tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(PADDING)
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_LENGTH_TOKENS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "eos_token_id": eos,
            "pad_token_id": pad,
        },
    )
    _write_json(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": pad})


def _write_weights(folder: Path, vocab_size: int, seed: int) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    save_file(dict(_weights(random, vocab_size)), str(folder / "model.safetensors"), metadata={"format": "pt"})


def _weights(random: np.random.Generator, vocab_size: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor of the checkpoint under its Hugging Face name; matrices are (out, in)."""

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))

    def norm(size: int) -> NDArray[np.float32]:
        return np.ones(size, dtype=np.float32)

    yield "model.embed_tokens.weight", matrix(vocab_size, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", matrix(HEADS * HEAD_DIM, HIDDEN)
        yield f"{prefix}.self_attn.k_proj.weight", matrix(KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
        yield f"{prefix}.self_attn.v_proj.weight", matrix(KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
        yield f"{prefix}.self_attn.o_proj.weight", matrix(HIDDEN, HEADS * HEAD_DIM)
        yield f"{prefix}.self_attn.q_norm.weight", norm(HEAD_DIM)
        yield f"{prefix}.self_attn.k_norm.weight", norm(HEAD_DIM)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", matrix(INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.down_proj.weight", matrix(HIDDEN, INTERMEDIATE)
        yield f"{prefix}.input_layernorm.weight", norm(HIDDEN)
        yield f"{prefix}.post_attention_layernorm.weight", norm(HIDDEN)
    yield "model.norm.weight", norm(HIDDEN)
    yield "lm_head.weight", matrix(vocab_size, HIDDEN)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make_tiny_llm(parser.parse_args().folder)
