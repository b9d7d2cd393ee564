"""Convert XHTML to plain text. In XML, ``<script src="…"/>`` and ``<title/>`` are self-closing."""

from __future__ import annotations

import html.entities
from xml.parsers import expat

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.html import UNSEEN, Lines


def xhtml_to_text(xhtml: str) -> str:
    """Return the text of a page in the format of ``html_to_text``.

    Raises:
        InvalidInput: The page is not well-formed; the message contains only the reason.
    """
    page = _Page()
    parser = expat.ParserCreate("utf-8")
    # Expat reports entities of HTML, whose DTD is not fetched, only if there may be an external DTD.
    parser.UseForeignDTD(True)
    parser.buffer_text = True
    parser.StartElementHandler = page.start
    parser.EndElementHandler = page.end
    parser.CharacterDataHandler = page.data
    parser.SkippedEntityHandler = page.entity
    try:
        parser.Parse(xhtml.encode(), True)
    except expat.ExpatError as error:
        raise InvalidInput(
            f"not well-formed XHTML at line {error.lineno}: {expat.errors.messages[error.code]} "
            "(rename it to .html to have it parsed like a browser does)"
        ) from None
    return str(page.lines)


class _Page:
    def __init__(self) -> None:
        self.lines = Lines()
        self._unseen: list[str] = []
        self._in_title = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2].lower()
        if self._unseen and not (name == "title" and self._unseen == ["head"]):
            self._unseen.append(name)
            return
        self.lines.start(name)
        if name == "title":
            self._in_title = True
        elif name in UNSEEN:
            self._unseen.append(name)

    def end(self, tag: str) -> None:
        name = tag.rpartition(":")[2].lower()
        if name == "title" and self._in_title:
            self._in_title = False
        elif self._unseen:
            self._unseen.pop()
        if not self._unseen:
            self.lines.end(name)

    def data(self, text: str) -> None:
        if self._in_title:
            self.lines.title(text)
        elif not self._unseen:
            self.lines.text(text)

    def entity(self, name: str, is_parameter: bool) -> None:
        """Decode an HTML entity that no DTD declares; keep an unknown entity as it is written."""
        if not is_parameter:
            self.data(html.entities.html5.get(f"{name};", f"&{name};"))
