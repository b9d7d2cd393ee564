"""A Qdrant server, over gRPC or REST; ``backend`` is the adapter, the other modules are its parts."""
