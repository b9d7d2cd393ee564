"""Evaluation: datasets, component scores and runs first, measures, comparisons and weights computed from them."""
