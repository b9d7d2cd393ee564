"""How figures look, and the two forms that they are written in: SVG for pages and papers, PNG for everything else."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from m3_connectors.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1", "#7a7a7a")
"""Told apart by colour-blind readers (Okabe and Ito 2008), and by all on paper with the markers beside them."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")

_WIDTH_INCHES, _HEIGHT_INCHES, _PNG_DOTS_PER_INCH = 7.2, 3.9, 200

_STYLE: Any = {
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "font.family": "sans-serif",
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and takes the page's font
    "svg.hashsalt": "m3_connectors",  # the same figure has the same bytes
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A finished figure.

    Attributes:
        name: File name without its ending, and the anchor in the page.
        title: Its heading.
        caption: What is shown, and of what; plain text.
        svg: An ``<svg>`` element that needs nothing from outside.
        png: The same as a PNG file.
    """

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


@contextmanager
def drawing() -> Iterator[Callable[..., Figure]]:
    """The house style for the block, and what makes a figure in it: ``figure(height_inches=…, width_inches=…)``.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("matplotlib", "eval") from None

    def figure(*, width_inches: float = _WIDTH_INCHES, height_inches: float = _HEIGHT_INCHES) -> Figure:
        return Figure(figsize=(width_inches, height_inches), layout="constrained")

    with matplotlib.rc_context(_STYLE):
        yield figure


def finish(figure: Figure, name: str, title: str, caption: str) -> Plot:
    """The figure in both forms."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=_PNG_DOTS_PER_INCH, metadata={"Software": None})
    text = svg.getvalue()
    # Ids must differ between the figures of one page; an element has no use for the file's header.
    element = text[text.index("<svg") :]
    for prefix in ('id="', 'href="#', "url(#"):
        element = element.replace(prefix, f"{prefix}{name}-")
    return Plot(name, title, caption, element, png.getvalue())


def look(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, the same in every figure that is given the same names."""
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    }
