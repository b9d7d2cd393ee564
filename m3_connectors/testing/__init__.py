"""Shipped helpers for testing: random collections (``worlds``) and the contract as tests (``conformance``, for pytest)."""
