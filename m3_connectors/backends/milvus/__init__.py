"""Milvus: the embedded milvus-lite (``milvus:./data.db``) and servers (``milvus+http://host:19530``)."""
