"""The store of ``toy:`` URLs. Only the descriptor is here: it is imported before the store is used."""

from m3_connectors.backends.store import Store

STORE = Store(
    name="toy",
    schemes=("toy",),
    adapter="m3_toy_store.backend:ToyBackend",
    disk="m3_toy_store.sizes:disk_bytes",
    plan="m3_toy_store.sizes:FORMULA",
)
