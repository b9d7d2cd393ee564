"""What the methods are compared with: BM25, rank fusion, other models, re-rankers."""
