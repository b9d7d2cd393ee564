"""Training of M3 models (paper section 3): data, tokenizer, initial model, losses and trainer."""

from importlib.util import find_spec

from m3_connectors.errors import MissingDependency

if find_spec("torch") is None:  # not imported, so that commands show their help at once
    raise MissingDependency("torch", "train")
