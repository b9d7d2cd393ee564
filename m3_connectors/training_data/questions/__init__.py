"""Questions that a language model asks about passages of long documents: sampled, asked, checked, and stored."""
