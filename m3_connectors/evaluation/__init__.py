"""Evaluation: BEIR folders, BM25 as a baseline, and the measures of the paper."""
