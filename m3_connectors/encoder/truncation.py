"""The warning about texts that are longer than an encoder's maximum."""

from __future__ import annotations

import warnings

from m3_connectors.embeddings import M3Embeddings


class TruncationWarning(UserWarning):
    """Texts were longer than the maximum and were truncated.

    ``M3Embeddings.truncated`` shows which texts; ``token_counts`` and ``kept_token_counts`` show how much of
    each was lost.
    """


def warn_if_cut(result: M3Embeddings, limit: int, longest: int) -> bool:
    """Warn once, at the line that called the function which calls this one.

    Args:
        result: What was encoded.
        limit: The maximum number of tokens of a text.
        longest: To what the limit can be raised.

    Returns:
        Whether a text was cut.
    """
    cut = result.truncated_count
    if cut:
        more = ", or raise max_length" if limit < longest else ""
        # The message has no lengths: otherwise, calls with texts of different lengths would each warn.
        warnings.warn(
            f"{cut} text{'s are' if cut > 1 else ' is'} longer than {limit} tokens and cut there; "
            "M3Embeddings.truncated shows which, and token_counts shows their lengths.\n"
            f"  Split long texts into passages{more}.",
            TruncationWarning,
            stacklevel=3,
        )
    return cut > 0
