"""The checks of what ``encode`` is called with, for every encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput


def is_whole(value: object) -> bool:
    """Return whether a value is an integer, which a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_texts(texts: Iterable[str], call: str) -> Iterable[str]:
    """Return the texts; raise InvalidInput if they are one text, or none."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InvalidInput(
            f"texts is {type(texts).__name__} {texts!r:.60}; it must be a list of strings.\n"
            f"  Pass a single text in a list: {call}([text])."
        )
    return texts


def check_components(components: Sequence[Component]) -> frozenset[Component]:
    """Return the components; raise InvalidInput if one is unknown, or there is none."""
    if isinstance(components, str) or not components or not set(components) <= set(COMPONENTS):
        raise InvalidInput(
            f"components is {components!r}; it must be a tuple of one or more of {', '.join(COMPONENTS)}.\n"
            "  Omit it to compute all three."
        )
    return frozenset(components)


def check_strings(texts: Sequence[str], first_index: int = 0) -> None:
    """Raise InvalidInput if a text is not a string; ``first_index`` is the index of the first in the caller's input."""
    for i, text in enumerate(texts, first_index):
        if not isinstance(text, str):
            raise InvalidInput(
                f"texts[{i}] is {type(text).__name__} {text!r:.60}; every text must be a string.\n"
                "  Omit missing texts, or use an empty string."
            )


def require_unicode(text: str, i: int) -> None:
    """Raise InvalidInput if a text, the one of index ``i``, has a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"texts[{i}] has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "so it is not valid Unicode.\n"
            '  Replace it: text.encode("utf-8", "replace").decode().'
        ) from None
