"""The positions that a transformer has learned: how many they are, and which is a text's first."""

from __future__ import annotations

from typing import Any

from deployments.errors import ConfigError


def position_table(module: Any) -> Any:
    """The embedding of positions in a sentence-transformers model; None where it has learned none."""
    base = getattr(getattr(module, "transformers_model", None), "base_model", None)
    table = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    return table if hasattr(table, "num_embeddings") else None


def first_position(table: Any) -> int:
    """The position of a text's first token: RoBERTa and its kin count from behind the padding token's id."""
    return 0 if table.padding_idx is None else int(table.padding_idx) + 1


def length_limit(module: Any, configured: int | None) -> int:
    """The tokens that a sentence-transformers model reads of a text; its own limit where none is configured.

    Raises ConfigError where the model has not learned as many positions as are configured.
    """
    table = position_table(module)
    positions = None if table is None else int(table.num_embeddings) - first_position(table)
    if configured is None:
        own = int(module.max_seq_length or module.tokenizer.model_max_length)
        return own if positions is None else min(own, positions)
    if positions is not None and configured > positions:
        raise ConfigError(f"max_length_tokens is {configured}, but this model has positions for {positions} tokens")
    return configured
