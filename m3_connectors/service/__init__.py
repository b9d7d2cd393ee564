"""``m3 serve``: collections and all three outputs of the model over HTTP, for own clients and those of others."""
