"""Training data: pairs of queries and passages from documents, from labelled sets and from generated questions."""
