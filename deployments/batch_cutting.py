"""Which of the waiting items share a batch: those of like length, or the oldest where rows take no padding."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from deployments.section import Section


class BatchingConfig(Section):
    """How batches are cut. Tokens are counted with padding, rows × longest row, as far as the engine computes it."""

    max_batch_tokens: int = Field(2048, ge=1, description="Tokens of one batch, padding included.")
    max_batch_rows: int = Field(256, ge=1, description="Rows of one batch.")
    padding_slack_tokens: int = Field(
        128,
        ge=0,
        description="Padding that a batch may always carry: the tokens that fit into the time that one more forward "
        "pass would cost. About 100 on a CPU, thousands on a GPU.",
    )
    max_padding_share: float = Field(
        0.125, ge=0, description="Padding that a batch may carry beyond the slack, as a share of its real tokens."
    )
    max_waiting_items: int = Field(8192, ge=1, description="Items that may wait; more are refused as overload.")
    interactive_batches_per_bulk: int = Field(
        4, ge=1, description="While both wait, one batch of bulk items runs after this many interactive ones."
    )


def cut_batch(
    lengths: Sequence[int], anchor: int, config: BatchingConfig, padding_cost: float = 1.0
) -> tuple[int, int]:
    """Choose the batch around one item that must go: a slice [lo, hi) of `lengths`, which is sorted ascending.

    The slice grows towards whichever neighbour adds less padding, while rows, tokens and padding stay within their
    limits. Padding counts `padding_cost` times in both. An item longer than the budget goes alone.
    """
    lo, hi, real = anchor, anchor + 1, lengths[anchor]
    while hi - lo < config.max_batch_rows:
        rows = hi - lo + 1
        grown: list[tuple[int, int, int]] = []
        if lo > 0:
            grown.append((lengths[hi - 1] * rows, lengths[lo - 1], lo - 1))
        if hi < len(lengths):
            grown.append((lengths[hi] * rows, lengths[hi], hi))
        allowance = config.padding_slack_tokens + config.max_padding_share * real
        fitting = []
        for padded, length, index in grown:
            padding = padding_cost * (padded - real - length)
            if real + length + padding <= config.max_batch_tokens and padding <= allowance:
                fitting.append((padding, padded, length, index))
        if not fitting:
            break
        _, _, length, index = min(fitting)
        real += length
        lo, hi = min(lo, index), max(hi, index + 1)
    return lo, hi


def cut_packed(lengths: Sequence[int], config: BatchingConfig) -> int:
    """How many of the oldest items an engine that packs takes at once; `lengths` are in the order of their arrival.

    Rows and tokens stay within their limits, of which padding is no part. An item longer than the budget goes alone.
    """
    tokens = 0
    for count, length in enumerate(lengths[: config.max_batch_rows]):
        tokens += length
        if count > 0 and tokens > config.max_batch_tokens:
            return count
    return min(len(lengths), config.max_batch_rows)
