"""Tokenizers made on the spot from the texts that they will read: real algorithms, nobody's vocabulary."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.shapes import DecoderShape, EncoderShape

# Training goes through its texts once for each size of the vocabulary; BERT's own has this many.
TRAINED_WORDPIECES = 30_522
TRAINED_BYTE_PAIRS = 8_192

START_OF_TURN = "<|start|>"
END_OF_TURN = "<|end|>"
PADDING = "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def train_encoder_tokenizer(shape: EncoderShape, texts: Sequence[str]) -> Any:
    """A WordPiece tokenizer with BERT's rules, in the frame of the shape's architecture, as a transformers object."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = _special_tokens(shape)
    tokenizer = Tokenizer(models.WordPiece(unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=min(shape.vocab, TRAINED_WORDPIECES), special_tokens=list(special.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = special["cls_token"], special["sep_token"]
    between = end if shape.architecture == "bert" else f"{end} {end}"
    second = ":1" if shape.architecture == "bert" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {between} $B{second} {end}{second}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    token_types = ["token_type_ids"] if shape.architecture == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=shape.max_length_tokens,
        model_input_names=["input_ids", *token_types, "attention_mask"],
        **special,
    )


def _special_tokens(shape: EncoderShape) -> dict[str, str]:
    """In the order of their ids: XLM-R pads with 1, from which it also counts its positions."""
    if shape.architecture == "bert":
        return {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}


def train_decoder_tokenizer(shape: DecoderShape, texts: Sequence[str]) -> Any:
    """A byte-level BPE with an entry for each id of the shape's vocabulary, as a `tokenizers` object.

    A model with random weights writes any id at all, and each must be some text: an answer of ids that stand for
    nothing would never begin to be streamed.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(shape.vocab, TRAINED_BYTE_PAIRS),
        special_tokens=[AddedToken(token, special=True) for token in (PADDING, START_OF_TURN, END_OF_TURN)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer.from_str(_filled_up(tokenizer.to_str(), shape.vocab))


def _filled_up(tokenizer: str, vocab_size: int) -> str:
    """The tokenizer with entries for the ids that are free: no merge leads to them, so no text is read as one."""
    content = json.loads(tokenizer)
    vocab = content["model"]["vocab"]
    new = (word for number in itertools.count() if (word := f"Ġword{number}") not in vocab)
    taken = set(vocab.values()) | {token["id"] for token in content["added_tokens"]}
    for token_id in range(vocab_size):
        if token_id not in taken:
            vocab[next(new)] = token_id
    return json.dumps(content)
