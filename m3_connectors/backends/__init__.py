"""Stores of M3 embeddings behind one contract (``base``); each is imported on use (``registry``)."""
