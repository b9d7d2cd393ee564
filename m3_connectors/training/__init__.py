"""Training of M3 models (paper section 3): data, tokenizer, start, losses, trainer."""
