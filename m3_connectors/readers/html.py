"""Convert HTML to plain text: the title, then the visible text, one line per block."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from m3_connectors.errors import InvalidInput

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
        self._title: list[str] = []
        self._text: list[str] = []

    def title(self, text: str) -> None:
        """Add a piece of the title."""
        self._title.append(text.replace("\n", " "))

    def text(self, text: str) -> None:
        """Add a piece of text. Its line ends become spaces, because only blocks break lines."""
        self._text.append(text.replace("\n", " "))

    def tag(self, name: str) -> None:
        """Add the start or end of an element."""
        if name not in _INLINE:
            (self._title if name == "title" else self._text).append("\n")

    def __str__(self) -> str:
        lines = "".join([*self._title, "\n", *self._text]).split("\n")
        return "\n".join(filter(None, (_BLANKS.sub(" ", line).strip() for line in lines)))


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
        lines.tag(name)
        lines.title(node.text(deep=True))
        return None
    if node.is_element_node:
        lines.tag(name)
    if name == "head":
        for title in node.css("title"):
            _enter(title, lines)
    return None if name in UNSEEN else node.first_child


def _leave(node: LexborNode, lines: Lines) -> None:
    if node.is_element_node:
        lines.tag(node.tag or "")


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
