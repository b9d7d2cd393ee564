"""Measure the cost of retrieval on a live store: synthetic corpora, load, raw rows, and summaries of rows."""
