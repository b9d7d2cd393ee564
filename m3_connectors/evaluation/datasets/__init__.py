"""Datasets: what is asked, of which documents, and what counts as found."""
