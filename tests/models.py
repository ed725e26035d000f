"""An embedder and a cross-encoder of some hundred kilobytes, made on the spot: real architectures, random weights.

They let tests start the real engines in a second, without network. The same seed gives the same weights; what they
say about a text means nothing, but it is reproducible and differs from text to text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_llm import TEXT

MAX_LENGTH_TOKENS = 512
DIM = 32
QUERY_PROMPT = "query: "
PASSAGE_PROMPT = "passage: "

_SPECIAL_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def make_tiny_embedder(folder: Path, seed: int = 0) -> Path:
    """Write a sentence-transformers model with mean pooling and a prompt for each role into `folder`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertModel

    _save(BertModel, folder / "bert", seed)
    transformer = Transformer(str(folder / "bert"), max_seq_length=MAX_LENGTH_TOKENS)
    prompts = {"query": QUERY_PROMPT, "document": PASSAGE_PROMPT}
    model = SentenceTransformer(modules=[transformer, Pooling(DIM, "mean"), Normalize()], prompts=prompts, device="cpu")
    model.save(str(folder / "tiny-embedder"))
    return folder / "tiny-embedder"


def make_tiny_cross_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a sequence classifier with one label, which reads query and passage together, into `folder`."""
    from transformers import BertForSequenceClassification

    _save(BertForSequenceClassification, folder / "tiny-cross-encoder", seed)
    return folder / "tiny-cross-encoder"


def prepared(engine: Any, items: list[Any]) -> list[Any]:
    """What an embedding or scoring engine makes of items, none of which it may refuse."""
    outcomes: list[Any] = engine.prepare(items)
    return [item for item, _ in outcomes]


def _save(model_class: Any, folder: Path, seed: int) -> None:
    import torch
    from transformers import BertConfig

    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * DIM,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        # Large enough that texts differ clearly: with the usual 0.02 every text gets nearly the same answer.
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _tokenizer() -> Any:
    """A byte-level BPE, so that every text can be encoded, in BERT's frame: [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **_SPECIAL_TOKENS,
    )
