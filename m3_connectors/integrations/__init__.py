"""Adapters for other frameworks: a module for each, imported only by those who use it.

Each module needs the extra of the same name, such as ``pip install "m3-connectors[langchain]"``. The adapters
translate documents, filters and options; what is searched and how scores are fused is decided by the index.
"""
