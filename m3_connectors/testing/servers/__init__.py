"""Real stores for tests, started on this machine if possible."""

from __future__ import annotations

from m3_connectors.errors import M3Error


class CannotStart(M3Error):
    """A server cannot be started here; the message says what is missing."""
