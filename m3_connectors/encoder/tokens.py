"""Texts to token ids, cut to a maximum and, if asked, with a CLS every 256 tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from m3_connectors.errors import InvalidInput

_SPECIAL_TOKENS = 2
"""``<s>`` and ``</s>``; the CLS tokens that MCLS inserts are not the text's."""

MCLS_INTERVAL = 256
"""Tokens of text between two CLS tokens (paper, section 3.3)."""


@dataclasses.dataclass(frozen=True)
class TokenisedText:
    """One text as the model sees it.

    Attributes:
        ids: int64 ``[tokens]``, with ``<s>`` and ``</s>``.
        cls: int64, the positions of its CLS tokens: ``[0]``, or more with MCLS.
        token_count: Tokens of the whole text, ``<s>`` and ``</s>`` included.
        kept_token_count: How many of them are in ``ids``: fewer if the text was longer than the maximum.
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
        """Rows of its multi-vector: every token but the CLS tokens."""
        return len(self.ids) - len(self.cls)


class TextTokeniser:
    """The checkpoint's tokenizer with M3's conventions; safe under threads (it holds no state)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = [tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>", "<unk>")]
        self.unweighted_ids = np.array(special, dtype=np.int64)
        """Token ids that never get a sparse weight."""
        self.cls_id, self.end_id, self.pad_id = self.unweighted_ids[:3]

    def __call__(
        self, texts: Sequence[str], max_length: int, *, mcls: bool, first_index: int = 0
    ) -> list[TokenisedText]:
        """Tokenise.

        Args:
            texts: The texts.
            max_length: Most tokens of one text, special tokens included.
            mcls: Insert a CLS before every 256 tokens of text.
            first_index: Index of ``texts[0]`` in the caller's input, for error messages.

        Raises:
            InvalidInput: A text is no string, or holds a lone surrogate.
        """
        for i, text in enumerate(texts, first_index):
            if not isinstance(text, str):
                raise InvalidInput(
                    f"texts[{i}] is {type(text).__name__} {text!r:.60}: every text must be a string.\n"
                    "  Leave missing texts out, or give an empty string."
                )
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            for i, text in enumerate(texts, first_index):
                _require_unicode(text, i)
            raise
        room = _room(max_length, mcls)
        return [self._build(encoding.ids, room, mcls) for encoding in encodings]

    def positions(self, text: TokenisedText) -> npt.NDArray[np.int64]:
        """Position of each token, int64 ``[tokens]``: 0, 1, 2 …

        A literal ``<pad>`` in a text takes none, but the table's own padding entry (-1), as in the reference.
        """
        counted = text.ids != self.pad_id
        return np.where(counted, np.cumsum(counted) - 1, -1)

    def token_strings(self, text: str, max_length: int) -> list[str]:
        """The tokens behind the multi-vector rows of a text, ``</s>`` last."""
        ids = self([text], max_length, mcls=False)[0].ids[1:]
        return [str(self.tokenizer.id_to_token(int(i))) for i in ids]

    def _build(self, content: list[int], room: int, mcls: bool) -> TokenisedText:
        kept = np.asarray(content[:room], dtype=np.int64)
        interval = MCLS_INTERVAL if mcls else max(1, len(kept))
        starts = np.arange(0, max(1, len(kept)), interval)
        ids = np.append(np.insert(kept, starts, self.cls_id), self.end_id)
        return TokenisedText(
            ids, starts + np.arange(len(starts)), len(content) + _SPECIAL_TOKENS, len(kept) + _SPECIAL_TOKENS
        )


def _room(max_length: int, mcls: bool) -> int:
    """Most tokens of text beside the special ones; with MCLS, n tokens bring ceil(n / 256) CLS."""
    without_end = max_length - 1
    blocks = -(-without_end // (MCLS_INTERVAL + 1)) if mcls else 1
    return without_end - blocks


def _require_unicode(text: str, i: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"texts[{i}] holds a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: "
            "it is not valid Unicode.\n"
            '  Replace it: text.encode("utf-8", "replace").decode().'
        ) from None
