"""What retrieval costs on a live store: synthetic corpora, load, raw rows, and numbers computed from rows alone."""
