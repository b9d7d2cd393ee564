"""Qdrant as a store: ``edge`` is the engine in this process, with its data in a directory."""
