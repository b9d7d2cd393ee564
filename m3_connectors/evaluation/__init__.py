"""Evaluation: datasets, component scores and runs; measures, comparisons and weights computed from them."""
