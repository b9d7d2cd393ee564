"""The texts of the golden outputs: scripts, odd characters, repeated tokens, 1 to 8,192 tokens and beyond."""

from __future__ import annotations

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.testing.checkpoints import TEXTS

CONFIG = ModelConfig(
    vocab_size=1200,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=8194,
)
SEED = 20_240_205

_WORDS = " ".join(TEXTS.values()).split()


def _long(words: int) -> str:
    return " ".join(_WORDS[i * i % len(_WORDS)] for i in range(words))


SHORT: list[str] = [
    *TEXTS.values(),
    "",
    " ",
    "\n\t \u3000",
    "a",
    "fox fox fox fox fox fox fox fox",
    "🦊 jumps over 👩‍👩‍👧‍👦 and 🇬🇷!",
    "nul \x00 bell \x07 escape \x1b del \x7f zero\u200bwidth \ufeff mark",
    "before</s>after <s> and <unk> and <pad> and <mask> too",
    "ﬁne ½ ℌ Ａ cafe\u0301 café",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd 中文mixedहिन्दी",
]
LONG: list[str] = [_long(40), _long(150), _long(2500), "fox" + " fox" * 8189, _long(9000)]
TEXTS_OF_GOLDEN = [*SHORT, *LONG]
ROWS_KEPT = 40
"""Number of rows, evenly distributed, that the golden file keeps of a long text's multi-vector."""


def kept_rows(count: int) -> list[int]:
    """Return which rows of a multi-vector with ``count`` rows the golden file contains."""
    if count <= ROWS_KEPT:
        return list(range(count))
    return sorted({i * (count - 1) // (ROWS_KEPT - 1) for i in range(ROWS_KEPT)})
