"""HTML to plain text: the title first, then the text a reader would see, one line for each block."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_UNSEEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_INLINE = frozenset(
    {"script", "style", "template"}  # may stand inside a line of text
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


def html_to_text(html: str) -> str:
    """The text of a page; scripts, styles and other unseen parts dropped, entities decoded."""
    parser = _TextParser()
    parser.feed(html)
    parser.close()
    lines = ("".join(parser.title), *"".join(parser.text).split("\n"))
    return "\n".join(filter(None, (_BLANKS.sub(" ", line).strip() for line in lines)))


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title: list[str] = []
        self.text: list[str] = []
        self._in_title = False
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._unseen.clear()  # a page that forgot </head>
        elif tag == "title" and "svg" not in self._unseen:
            self._in_title = True
        elif tag in _UNSEEN:
            self._unseen.append(tag)
        if tag not in _INLINE:
            self._break()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # <br/> ends itself; HTML ignores the slash of any other tag but SVG's.
        if tag in _VOID or "svg" in self._unseen or tag == "svg":
            self._break()
        else:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._unseen:
            while self._unseen.pop() != tag:
                pass
        if tag not in _INLINE:
            self._break()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._unseen:
            # Newlines of the source are blanks; only blocks break lines.
            self.text.append(data.replace("\n", " "))

    def _break(self) -> None:
        if not self._unseen:
            self.text.append("\n")
