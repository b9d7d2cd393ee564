"""``python -m m3_connectors.backends [FILE]``: print the table of capabilities, or update it in a page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.stores import STORES

EXAMPLES = {column: url for store in STORES for column, url in store.examples.items()}
"""The columns of the table, each with an example URL; an https URL has the same capabilities as an http
URL."""

_BETWEEN = re.compile(r"(?<=<!-- capabilities -->\n).*?(?=<!-- /capabilities -->)", re.DOTALL)


def table() -> str:
    """Return the capabilities of each store as a Markdown table; needs all clients, but no server."""
    declared = [backend_for(url).capabilities for url in EXAMPLES.values()]
    lines = [["what", "asked by", "capability", *(f"`{name}`" for name in EXAMPLES)]]
    lines.append(["---"] * 3 + [":-:"] * len(EXAMPLES))
    for one in Capability:
        marks = ["✓" if one in some else "–" for some in declared]
        lines.append([one.value.what, f"`{one.asked}`", f"`{one.name}`", *marks])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def with_table(page: str) -> str:
    """Return the page with the table between its two marks replaced by the current one."""
    return _BETWEEN.sub(table(), page)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(table())
