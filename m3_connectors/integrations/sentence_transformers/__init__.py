"""An M3 model as three models of sentence-transformers, with the vectors of ``M3Encoder``."""

from m3_connectors.integrations.sentence_transformers.export import export

__all__ = ["export"]
