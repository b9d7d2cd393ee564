"""Milvus: the embedded milvus-lite (``milvus:./data.db``) and servers (``milvus+http://host:19530``)."""

import os

# gRPC's core prints every failed handshake on stderr, past Python's logging; each becomes an error of ours. It reads
# this once, when it is first imported; whoever wants to see them sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
