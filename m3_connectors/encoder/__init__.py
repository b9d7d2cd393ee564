"""Text to the three representations of M3-Embedding."""
