"""Qdrant as a store: ``edge`` is the engine in this process, ``server`` a server; the other modules serve both."""

import os

# The core of gRPC prints every failed handshake on stderr, outside Python's logging; each becomes an error
# here anyway. gRPC reads this variable once, when it is first imported; set it yourself to see the messages.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
