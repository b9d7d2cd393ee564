"""Baselines for comparison with the methods: BM25, rank fusion, other models, re-rankers."""
