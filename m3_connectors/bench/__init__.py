"""What retrieval costs on a live store: synthetic corpora at scale, load, raw rows, and numbers computed from rows alone."""
