"""What others may test with: conformance of backends, seeded corpora, small random checkpoints."""
