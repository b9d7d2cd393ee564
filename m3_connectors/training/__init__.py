"""Training of M3 models (paper section 3): data, tokenizer, initial model, losses and trainer."""
