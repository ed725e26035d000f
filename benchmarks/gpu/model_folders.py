"""Model folders of given shapes, with random weights or none, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import DecoderShape, EncoderShape
from benchmarks.gpu.tokenizing import (
    CHAT_TEMPLATE,
    END_OF_TURN,
    PADDING,
    train_decoder_tokenizer,
    train_encoder_tokenizer,
)

# The files of a sentence-transformers model as BAAI/bge-large-en-v1.5 has them.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def make_encoder(shape: EncoderShape, folder: Path, texts: Sequence[str], device: str, dtype: str) -> Path:
    """Write an embedder or a cross-encoder with random weights, drawn on `device`, unless `folder` has one already.

    `texts` train the tokenizer. The same shape, texts and device give the same model.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_encoder_tokenizer(shape, texts)
    tokenizer.save_pretrained(str(folder))
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = _build(shape, tokenizer.pad_token_id)
    # One file: that it is there says that the folder is whole.
    model.to(getattr(torch, dtype)).save_pretrained(str(folder), max_shard_size="64GB")
    del model
    if device.startswith("cuda"):
        # This process may live on beside a server that wants the memory.
        torch.cuda.empty_cache()
    if shape.task == "embed":
        _write_sentence_transformer(shape, folder)
    return folder


def _build(shape: EncoderShape, pad_token_id: int) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
        XLMRobertaModel,
    )

    classes: dict[tuple[str, str], tuple[Any, Any]] = {
        ("bert", "embed"): (BertConfig, BertModel),
        ("bert", "rerank"): (BertConfig, BertForSequenceClassification),
        ("xlm-roberta", "embed"): (XLMRobertaConfig, XLMRobertaModel),
        ("xlm-roberta", "rerank"): (XLMRobertaConfig, XLMRobertaForSequenceClassification),
    }
    config_class, model_class = classes[shape.architecture, shape.task]
    config = config_class(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        type_vocab_size=2 if shape.architecture == "bert" else 1,
        pad_token_id=pad_token_id,
        num_labels=1,
        # Whatever the width, activations keep their size from layer to layer: smaller, and every text gets nearly the
        # same answer; larger, and rounding alone changes it.
        initializer_range=0.6 * shape.hidden**-0.5,
    )
    return model_class(config)


def _write_sentence_transformer(shape: EncoderShape, folder: Path) -> None:
    _write_json(folder / "modules.json", _MODULES)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": shape.max_length_tokens})
    pooling = {"word_embedding_dimension": shape.hidden, "pooling_mode_cls_token": True}
    _write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_mean_tokens": False})
    (folder / "2_Normalize").mkdir(exist_ok=True)


def make_decoder(shape: DecoderShape, folder: Path, texts: Sequence[str], *, ends: bool = True) -> Path:
    """Write a language model without weights, which vLLM makes up itself (`load_format: dummy`), unless it is there.

    One that never `ends` has no token that does it: every answer is as long as it is asked to be.
    """
    if (folder / "config.json").is_file():
        return folder
    from transformers import LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_decoder_tokenizer(shape, texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    names: dict[str, Any] = {"pad_token": PADDING, "model_max_length": shape.positions}
    if ends:
        names["eos_token"] = END_OF_TURN
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    end = tokenizer.token_to_id(END_OF_TURN) if ends else None
    ids = {"eos_token_id": end, "pad_token_id": tokenizer.token_to_id(PADDING)}
    _write_json(folder / "generation_config.json", ids)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        **ids,
    )
    # Last, for it says that the folder is whole.
    config.save_pretrained(str(folder))
    return folder


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
