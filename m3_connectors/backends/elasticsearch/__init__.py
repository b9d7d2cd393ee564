"""Elasticsearch 8.19 and 9.x as a store; ``backend`` is the adapter, the other modules are its parts."""
