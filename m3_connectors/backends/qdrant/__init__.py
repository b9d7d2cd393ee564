"""Qdrant as a store: ``edge`` is the engine in this process, with its data in a directory."""

import os

# gRPC's core prints every failed handshake on stderr, past Python's logging; each becomes an error of ours. It reads
# this once, when it is first imported; whoever wants to see them sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
