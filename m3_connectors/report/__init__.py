"""Tables, figures and a page for the evaluations and benchmarks below a folder, from their files only."""
