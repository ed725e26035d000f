"""How long SciFact's texts are, for where its files are not at hand: quantiles of lengths, no text.

Counted with the tokenizer of bert-base-uncased, which is that of bge-large as well, its two special tokens included:
5,183 documents (title, line break, abstract), mean 337 tokens, and 1,109 claims, mean 22.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DOCUMENT_QUANTILES = {
    0: 70, 1: 107, 2: 127, 5: 156, 10: 188, 15: 213, 20: 229, 25: 244, 30: 260, 35: 273, 40: 286, 45: 300, 50: 316,
    55: 334, 60: 351, 65: 370, 70: 388, 75: 410, 80: 434, 85: 462, 90: 502, 95: 568, 98: 676, 99: 764, 99.5: 902,
    100: 1939,
}  # fmt: skip
QUESTION_QUANTILES = {
    0: 7, 1: 10, 2: 10, 5: 12, 10: 14, 15: 15, 20: 16, 25: 17, 30: 17, 35: 18, 40: 19, 45: 20, 50: 21, 55: 22, 60: 23,
    65: 24, 70: 25, 75: 26, 80: 28, 85: 31, 90: 34, 95: 38, 98: 43, 99: 44, 99.5: 48, 100: 79,
}  # fmt: skip


def draw_lengths(quantiles: dict[float, int], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) int64: lengths in tokens whose distribution has these quantiles, straight lines between them."""
    drawn = np.interp(rng.uniform(0, 100, count), list(quantiles), list(quantiles.values()))
    return np.rint(drawn).astype(np.int64)
