"""Tables, figures and one page of the evaluations and benchmarks below a folder, made from their files alone."""
