"""Converts texts to token ids, truncated to a maximum and optionally with a CLS token every 256 tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from m3_connectors.encoder.arguments import check_strings, require_unicode

_SPECIAL_TOKENS = 2
"""``<s>`` and ``</s>``; the CLS tokens that MCLS inserts are not counted as tokens of the text."""

UNWEIGHTED_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")
"""The tokens that never get a sparse weight; ``<mask>`` does, as in FlagEmbedding."""

_PIECE_CHARACTERS = 2**18

MCLS_INTERVAL = 256
"""The number of text tokens between two CLS tokens (paper, section 3.3)."""


@dataclasses.dataclass(frozen=True)
class TokenisedText:
    """The token ids of one text, as the input of the model.

    Attributes:
        ids: int64 ``[tokens]``, including ``<s>`` and ``</s>``.
        cls: int64, the positions of the CLS tokens: ``[0]``, or more with MCLS.
        token_count: The number of tokens of the whole text, including ``<s>`` and ``</s>``.
        kept_token_count: How many of these tokens are in ``ids``: fewer if the text was truncated.
    """

    ids: npt.NDArray[np.int64]
    cls: npt.NDArray[np.int64]
    token_count: int
    kept_token_count: int

    @property
    def truncated(self) -> bool:
        """Whether the text was longer than the maximum."""
        return self.kept_token_count < self.token_count

    @property
    def multivector_count(self) -> int:
        """The number of multi-vector rows: one for every token except the CLS tokens."""
        return len(self.ids) - len(self.cls)


class TextTokeniser:
    """The checkpoint's tokenizer with the conventions of M3; thread-safe, because it has no state."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = [tokenizer.token_to_id(token) for token in UNWEIGHTED_TOKENS]
        self.unweighted_ids = np.array(special, dtype=np.int64)
        """The token ids that never get a sparse weight."""
        self.cls_id, self.end_id, self.pad_id = self.unweighted_ids[:3]

    def __call__(
        self, texts: Sequence[str], max_length: int, *, mcls: bool, first_index: int = 0
    ) -> list[TokenisedText]:
        """Tokenise texts.

        Args:
            texts: The texts.
            max_length: The maximum number of tokens of one text, including special tokens.
            mcls: Whether to insert a CLS token before every 256 tokens of text.
            first_index: The index of ``texts[0]`` in the caller's input, for error messages.

        Raises:
            InvalidInput: A text is not a string, or it contains a lone surrogate.
        """
        check_strings(texts, first_index)
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            for i, text in enumerate(texts, first_index):
                require_unicode(text, i)
            raise
        room = _room(max_length, mcls)
        return [self._build(encoding.ids, room, mcls) for encoding in encodings]

    def positions(self, text: TokenisedText) -> npt.NDArray[np.int64]:
        """Return the position of each token, int64 ``[tokens]``: 0, 1, 2 …

        As in the reference, a literal ``<pad>`` in a text uses the table's padding entry (-1) as its
        position.
        """
        counted = text.ids != self.pad_id
        return np.where(counted, np.cumsum(counted) - 1, -1)

    def token_strings(self, text: str, max_length: int) -> list[str]:
        """Return the tokens of the multi-vector rows of a text, with ``</s>`` last."""
        ids = self([text], max_length, mcls=False)[0].ids[1:]
        return [str(self.tokenizer.id_to_token(int(i))) for i in ids]

    def token_spans(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text begins and ends, int64 ``[tokens, 2]`` in characters; no special tokens.

        Raises:
            InvalidInput: The text contains a lone surrogate.
        """
        require_unicode(text, 0)
        parts, start = [np.empty((0, 2), dtype=np.int64)], 0
        while start < len(
            text
        ):  # in pieces, because a list of spans takes a hundred times the bytes of the text
            end = min(start + _PIECE_CHARACTERS, len(text))
            if end < len(text):
                end = max(text.rfind(" ", start, end), text.rfind("\n", start, end)) + 1 or end
            spans = self.tokenizer.encode(text[start:end], add_special_tokens=False).offsets
            parts.append(np.array(spans, dtype=np.int64).reshape(-1, 2) + start)
            start = end
        return np.concatenate(parts)

    def _build(self, content: list[int], room: int, mcls: bool) -> TokenisedText:
        kept = np.asarray(content[:room], dtype=np.int64)
        interval = MCLS_INTERVAL if mcls else max(1, len(kept))
        starts = np.arange(0, max(1, len(kept)), interval)
        ids = np.append(np.insert(kept, starts, self.cls_id), self.end_id)
        return TokenisedText(
            ids, starts + np.arange(len(starts)), len(content) + _SPECIAL_TOKENS, len(kept) + _SPECIAL_TOKENS
        )


def vocabulary_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the id of each token, with the added ones; it takes 0.2 s for the 250,002 of BAAI/bge-m3."""
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return the SHA-256 (hex) of the (id, token) table; if it is equal, sparse vectors are comparable."""
    # The text is that of json.dumps(table, ensure_ascii=False), which is slower.
    table = sorted(zip(vocabulary.values(), vocabulary.keys(), strict=True))
    text = ", ".join([f"[{id}, {encode_basestring(token)}]" for id, token in table])
    return hashlib.sha256(f"[{text}]".encode()).hexdigest()


def _room(max_length: int, mcls: bool) -> int:
    """Return the maximum number of text tokens; with MCLS, n of them need ceil(n / 256) CLS tokens."""
    without_end = max_length - 1
    blocks = -(-without_end // (MCLS_INTERVAL + 1)) if mcls else 1
    return without_end - blocks
