"""Shipped helpers for testing: random collections (``worlds``), and the contract as pytest tests (``conformance``)."""
