"""A store in memory; a real one would import its client here."""

from m3_connectors.backends.capabilities import refuse_unknown
from m3_connectors.backends.memory import MemoryBackend


class ToyBackend(MemoryBackend):
    name = "toy"

    @classmethod
    def from_url(cls, url, collection, options):
        refuse_unknown(url, cls.capabilities, options)
        return cls(collection)
