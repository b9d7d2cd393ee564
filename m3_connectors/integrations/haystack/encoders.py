"""The encoder of a component: named by the model, so that a pipeline can be saved, and shared by all components."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from m3_connectors.errors import InvalidInput
from m3_connectors.index import Encoder

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

_loaded: weakref.WeakValueDictionary[tuple[Any, ...], M3Encoder] = weakref.WeakValueDictionary()
_loading = threading.Lock()


class EncoderChoice:
    """An encoder, or the model that it is loaded from when it is first needed.

    Args:
        model: The hub name or directory of a model, or an encoder.
        options: The further arguments of ``M3Encoder``, if ``model`` is a name.
    """

    def __init__(self, model: str | Encoder, options: Mapping[str, Any] | None) -> None:
        if options and not isinstance(model, str):
            raise InvalidInput(
                f"encoder_options is {dict(options)!r}, but model is an encoder that exists already.\n"
                "  Leave encoder_options out, or name the model."
            )
        self.model = model
        self.options = dict(options or {})
        self._encoder: Encoder | None = None if isinstance(model, str) else model

    def get(self) -> Encoder:
        """Return the encoder; the first call for a model loads it, for all components that name it alike."""
        if self._encoder is None:
            assert isinstance(self.model, str)
            from m3_connectors.encoder.encoder import M3Encoder

            key = (self.model, *sorted(self.options.items()))
            with _loading:
                loaded = _loaded.get(key)
                if loaded is None:
                    loaded = M3Encoder(self.model, **self.options)
                    _loaded[key] = loaded
            self._encoder = loaded
        return self._encoder

    def saved(self, what: str) -> dict[str, Any]:
        """Return the arguments of a component as a pipeline file has them.

        Raises:
            InvalidInput: The component was given an encoder, which cannot be saved.
        """
        if not isinstance(self.model, str):
            raise InvalidInput(
                f"{what} was given the encoder {type(self.model).__name__}, which cannot be saved.\n"
                "  Name the model instead, such as model='BAAI/bge-m3'."
            )
        return {"model": self.model, "encoder_options": self.options}
