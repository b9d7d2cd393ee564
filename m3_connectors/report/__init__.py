"""Write tables, figures and a page from the files of the evaluations and benchmarks below a folder."""
