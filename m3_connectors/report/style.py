"""The style of figures and their two formats: SVG for pages and papers, PNG for everything else."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from m3_connectors.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1", "#7a7a7a")
"""Colours for colour-blind readers (Okabe and Ito 2008); the markers distinguish them on paper."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One fewer than the colours, so that a pair of colour and marker repeats only after 72 names."""

LINES = ("-", "--", "-.", ":")

_LEGEND_ROW_INCHES = 0.22
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
    "svg.fonttype": "none",  # text stays text, so it can be searched and uses the page's font
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
    """Use the common style in the block, and yield a factory: ``figure(height_inches=…, width_inches=…)``.

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
    """Return the figure in both formats."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=_PNG_DOTS_PER_INCH, metadata={"Software": None})
    text = svg.getvalue()
    # Ids must differ between the figures of one page; an inline element needs no file header.
    element = text[text.index("<svg") :]
    for prefix in ('id="', 'href="#', "url(#"):
        element = element.replace(prefix, f"{prefix}{name}-")
    return Plot(name, title, caption, element, png.getvalue())


class Look(NamedTuple):
    """How one method or store is drawn in every figure."""

    colour: str
    marker: str
    line: str


def look(names: Iterable[str]) -> dict[str, Look]:
    """Return a look for each name; the same names have the same looks in every figure."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def legend(figure: Figure, names: Iterable[str], *, columns: int = 5) -> None:
    """Draw one legend below all panels, with the entries of all of them in the order of ``names``.

    It has so many columns at most, and fewer where the names would not fit into the figure's width.
    """
    found = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    shown = [name for name in dict.fromkeys(names) if name in found]
    for fewer in range(columns, 0, -1):
        drawn = figure.legend([found[name] for name in shown], shown, loc="outside lower center", ncols=fewer)
        if fewer == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            # Additional legend rows would take height from the panels.
            more_rows = -(-len(shown) // fewer) - -(-len(shown) // columns)
            figure.set_figheight(figure.get_figheight() + _LEGEND_ROW_INCHES * more_rows)
            break
        drawn.remove()


def plain_ticks(axis: Axis, *, per_cent: bool = False) -> None:
    """Label a logarithmic axis that already has its data with plain numbers: 0.5, 20, 1,000."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    # A range of less than a decade may contain no power of ten.
    if decades < 1:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axis.set_minor_locator(NullLocator())
    factor, unit = (100, " %") if per_cent else (1, "")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{_plain(factor * value)}{unit}"))


def stacked(heights: Sequence[float], apart: float) -> list[float]:
    """Move heights as little as needed so that each is ``apart`` from the next, to keep labels readable."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # Neighbours that are too close become a block around their common middle, which may touch the block
    # below.
    blocks: list[list[int]] = []

    def bottom(block: Sequence[int]) -> float:
        return sum(heights[i] for i in block) / len(block) - apart * (len(block) - 1) / 2

    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and bottom(blocks[-1]) < bottom(blocks[-2]) + apart * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    places = [0.0] * len(heights)
    for block in blocks:
        for step, i in enumerate(block):
            places[i] = bottom(block) + apart * step
    return places


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Return a unique form of each name for file names and anchors."""
    given: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        plain = re.sub(r"[\W_]+", "-", name.lower()).strip("-") or "unnamed"
        slug, count = plain, 1
        while slug in taken:
            count += 1
            slug = f"{plain}-{count}"
        taken.add(slug)
        given[name] = slug
    return given


def _plain(value: float) -> str:
    decimals = max(0, -math.floor(math.log10(value) + 1e-9)) if value > 0 else 0
    text = f"{value:,.{decimals + 1}f}"
    return text.rstrip("0").rstrip(".")
