"""Qdrant Edge, the engine in this process; ``backend`` is the adapter, the other modules are its parts."""
