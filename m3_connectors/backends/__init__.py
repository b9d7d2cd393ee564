"""Stores of M3 embeddings behind one contract (``base``); ``registry`` imports each adapter on first use."""
