"""The demo of ``make demo``: search the documentation of the Python that runs it."""
