"""``python -m m3_connectors.testing.servers``: start available stores, print the URLs, stop on Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from pathlib import Path

from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import STORES, start


def main() -> None:
    """Start the named stores, or all by default."""
    parser = argparse.ArgumentParser(prog="m3_connectors.testing.servers", description=__doc__)
    parser.add_argument("stores", nargs="*", help=f"any of {', '.join(STORES)}; all by default")
    parser.add_argument("--compose", type=Path, help="compose file to use if a container engine is running")
    arguments = parser.parse_args()
    for name in arguments.stores:
        if name not in STORES:
            parser.error(f"{name!r} is not a store; choose from {', '.join(STORES)}")
    # A termination signal is handled like Ctrl-C, so that no server is left running.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
        started = 0
        for store in STORES:
            if arguments.stores and store not in arguments.stores:
                continue
            try:
                found = start(store, compose=arguments.compose)
            except CannotStart as reason:
                print(f"{store:14} {reason}", flush=True)  # noqa: T201
                continue
            running.callback(found.stop)
            started += 1
            variables = {"url": found.url, **found.options}
            named = "  ".join(
                f"M3_{store.upper()}_{name.upper()}={value}" for name, value in variables.items()
            )
            print(f"{store:14} {named}  ({found.how})", flush=True)  # noqa: T201
        if not started:
            parser.exit(1)
        print("Press Ctrl-C to stop them.", flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
