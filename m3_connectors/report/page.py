"""A self-contained HTML page with tables and figures, without scripts or external resources."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any

from m3_connectors.errors import MissingDependency
from m3_connectors.report.style import Plot
from m3_connectors.report.table import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page, under its own heading.

    Attributes:
        title: The heading.
        items: The tables and figures, in order.
        notes: The paragraphs before the items; plain text.
        warnings: The warnings at the top; plain text.
    """

    title: str
    items: tuple[Table | Plot, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def page(title: str, sections: Sequence[Section], findings: Sequence[str] = ()) -> str:
    """Return the page as HTML.

    Args:
        title: The heading of the page.
        sections: The sections from top to bottom; all text is escaped.
        findings: The findings in sentences, shown at the top; plain text.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    rendered: str = _template().render(title=title, sections=sections, findings=findings)
    return rendered


@functools.cache
def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise MissingDependency("jinja2", "eval") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.tests["plot"] = lambda item: isinstance(item, Plot)
    source = resources.files("m3_connectors.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
