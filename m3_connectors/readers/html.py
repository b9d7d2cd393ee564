"""Convert HTML to plain text: title and visible text, a line per block, headings marked as in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.marks import heading, paragraph

UNSEEN = frozenset(
    {"script", "style", "template", "noscript", "svg", "head"}
    | {"iframe", "noembed", "noframes"}  # fallback content that no current browser shows
)
_INLINE = frozenset(
    {"script", "style", "template"}  # these may occur inside a line of text
    | {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd"}
    | {
        "label",
        "mark",
        "q",
        "s",
        "samp",
        "small",
        "span",
        "strong",
        "sub",
        "sup",
        "time",
        "tt",
        "u",
        "var",
        "wbr",
    }
)
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_BLANKS = re.compile(r"[ \t\r\f\v\n\u00a0]+")

_TAG = re.compile(rb"<(/?)([a-zA-Z][^\s/>]*)")
_WITHOUT_END = frozenset(
    b"area base br col embed hr img input link meta source track wbr "
    b"p li dt dd tr td th thead tbody tfoot option optgroup rt rp html head body".split()
)
_FEW_TAGS = 20_000
_MOST_STEPS = 500_000_000
"""The limit of the parser's work, a few seconds: some of its rules visit all open elements."""


class Lines:
    """Collects text and tags in document order, and returns the lines that a reader sees."""

    def __init__(self) -> None:
        self._titles: list[str] = []
        self._lines: list[str] = []
        self._line: list[str] = []
        self._level = 0
        """The level of the heading whose line has not been collected yet; 0 outside headings."""

    def title(self, text: str) -> None:
        """Add a piece of the title."""
        self._titles.append(text.replace("\n", " "))

    def text(self, text: str) -> None:
        """Add a piece of text. Its line ends become spaces, because only blocks break lines."""
        self._line.append(text)

    def start(self, name: str) -> None:
        """Add the start of an element."""
        self._boundary(name)
        if name in _LEVELS:
            self._level = _LEVELS[name]

    def end(self, name: str) -> None:
        """Add the end of an element."""
        self._boundary(name)
        if name in _LEVELS:
            self._level = 0

    def _boundary(self, name: str) -> None:
        if name == "title":
            self._titles.append("\n")
        elif name == "br" and self._level:
            self._line.append(" ")
        elif name not in _INLINE:
            self._end_line()

    def _end_line(self) -> None:
        line = _without_blanks("".join(self._line))
        self._line.clear()
        if line:
            self._lines.append(heading(self._level, line) if self._level else paragraph(line))
            # Only the first line: a heading that is never closed contains the rest of the page.
            self._level = 0

    def __str__(self) -> str:
        self._end_line()
        titles = filter(None, map(_without_blanks, "".join(self._titles).split("\n")))
        return "\n".join([*map(paragraph, titles), *self._lines])


def _without_blanks(line: str) -> str:
    return _BLANKS.sub(" ", line).strip()


def html_to_text(html: str) -> str:
    """Return a page's text as a browser shows it: without scripts, styles and hidden parts, entities decoded.

    Raises:
        InvalidInput: The elements are nested so deeply that parsing would take minutes.
    """
    return text_of(parse(html))


def parse(html: str) -> LexborHTMLParser:
    """Parse a page.

    Raises:
        InvalidInput: The elements are nested so deeply that parsing would take minutes.
    """
    raw = html.encode()
    if raw.count(b"<") > _FEW_TAGS and _steps(raw) > _MOST_STEPS:
        raise InvalidInput("elements are nested too deeply; thousands of them are never closed")
    return LexborHTMLParser(html)


def text_of(page: LexborHTMLParser) -> str:
    """Return the text of a parsed page."""
    lines = Lines()
    # Not recursive, because a page may be nested deeper than Python's stack allows.
    node: LexborNode | None = page.root
    while node is not None:
        following = _enter(node, lines)
        if following is None:
            _leave(node, lines)
            while node.next is None and node.parent is not None:
                node = node.parent
                _leave(node, lines)
            following = node.next
        node = following
    return str(lines)


def title_of(page: str) -> str:
    """Return the title of a page, empty if it has none."""
    title = parse(page).css_first("title")
    return "" if title is None else _without_blanks(title.text(deep=True))


def declared_labels(page: LexborHTMLParser) -> Iterator[str]:
    """Yield the encodings that a page's ``meta`` elements declare; the first known one applies."""
    for meta in page.css("meta"):
        attributes = meta.attributes
        if attributes.get("charset"):
            yield attributes["charset"] or ""
        elif (attributes.get("http-equiv") or "").strip().lower() == "content-type":
            content = _CHARSET.search(attributes.get("content") or "")
            if content:
                yield content[1] or content[2] or content[3] or ""


_CHARSET = re.compile(r"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)


def _enter(node: LexborNode, lines: Lines) -> LexborNode | None:
    """Add the start of an element, or a text; return the first node inside it to visit."""
    name = node.tag or ""
    if node.is_text_node:
        lines.text(node.text_content or "")
        return None
    if name == "title":  # not a title in SVG, because svg elements are skipped
        lines.start(name)
        lines.title(node.text(deep=True))
        return None
    if node.is_element_node:
        lines.start(name)
    if name == "head":
        for title in node.css("title"):
            _enter(title, lines)
    return None if name in UNSEEN else node.first_child


def _leave(node: LexborNode, lines: Lines) -> None:
    if node.is_element_node:
        lines.end(node.tag or "")


def _steps(raw: bytes) -> int:
    """Return the approximate number of open elements above each element, summed over the page."""
    depth = steps = 0
    for end, name in _TAG.findall(raw):
        if name.lower() in _WITHOUT_END:
            steps += depth
        elif end:
            depth = max(0, depth - 1)
        else:
            depth += 1
            steps += depth
    return steps
