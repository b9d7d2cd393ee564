"""Datasets: queries, a corpus and relevance judgements."""
