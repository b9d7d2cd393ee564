"""The page for everyone: by keyboard only, for screen readers, in the dark, on narrow screens, from right to left."""

from __future__ import annotations

import re

import pytest
from browser import Page
from searching import ARABIC, QUERY, focused, ids_of, search, tab_to


def test_everything_is_done_with_the_keyboard(page: Page) -> None:
    assert focused(page) == "query"
    page.type(QUERY)
    tab_to(page, "e.id === 'method-sparse'")
    page.press(" ")
    tab_to(page, "e.id === 'key'")  # around the end of the page
    tab_to(page, "e.id === 'query'")
    page.press("Enter")
    page.until("document.querySelectorAll('.hit').length === 40")
    assert ids_of(page, "sparse") == []
    tab_to(page, "e.type === 'range'")
    page.press("ArrowRight")
    page.until("document.querySelector('[data-method=dense_sparse]').dataset.source === 'browser'")
    tab_to(page, "e.textContent === 'Reset weights'")
    page.press("Enter")
    page.until("document.querySelector('[data-method=dense_sparse] .weights button').disabled")
    assert page.evaluate("document.activeElement.type") == "range"  # not lost with the button
    tab_to(page, "e.closest('[data-method=all]') && e.className === 'explain'")
    page.press("Enter")
    page.until("document.querySelector('.readout strong')")
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    tab_to(page, "e.className === 'heat'")
    read = "document.querySelector('.readout').textContent"
    page.press("Home")
    assert "(token 1 of" in page.evaluate(read)
    page.press("ArrowRight")
    assert "(token 2 of" in page.evaluate(read)
    first = page.evaluate(read)
    page.press("ArrowDown")
    page.press("ArrowUp")
    assert page.evaluate(read) == first
    page.press("End")
    assert re.search(r"\(token (\d+) of \1\)", page.evaluate(read))
    page.press("Escape")
    page.until("!document.querySelector('dialog').open")
    assert page.evaluate("document.activeElement.className") == "explain"
    page.press("Tab", shift=True)  # and back
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_everything_has_a_name_for_a_screen_reader(page: Page) -> None:
    search(page)
    page.evaluate("document.querySelector('[data-method=all] .explain').click()")
    page.until("document.querySelector('.readout strong')")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "textbox", "searchbox", "combobox", "checkbox", "slider", "dialog", "table"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in wanted
    ]
    assert [role for role, name in named if not name.strip()] == []
    page.press("Escape")
    page.until("!document.querySelector('dialog').open")
    roles = [
        node["role"]["value"]
        for node in page.call("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"]
    ]
    assert {"searchbox", "combobox", "checkbox", "slider", "button", "status"} <= set(roles)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_are_readable_in_light_and_dark(page: Page, dark: bool) -> None:
    page.colours(dark=dark)
    search(page)
    page.evaluate("document.querySelector('[data-method=all] .explain').click()")
    page.until("document.querySelector('.readout strong')")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(ground) < 0.05) == dark
    texts = page.evaluate(
        """[...document.querySelectorAll("body *")].filter(e =>
            [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length
            && !e.closest(":disabled, .chip:has(:disabled), select")
        ).map(e => {
            let at = e, ground;
            do {
                ground = getComputedStyle(at).backgroundColor;
                at = at.parentElement;
            } while (at && ground.endsWith(", 0)"));
            return [e.textContent.slice(0, 40), getComputedStyle(e).color, ground];
        })"""
    )
    assert len(texts) > 100
    for text, ink, ground in texts:
        assert _contrast(ink, ground) >= 4.5, (text, ink, ground)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [320, 768, 1300])
def test_nothing_is_beyond_a_narrow_screen(page: Page, width: int) -> None:
    page.size(width, 700)
    search(page)
    inside = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(inside)
    page.evaluate("document.querySelector('[data-method=all] .explain').click()")
    page.until("document.querySelector('.readout strong')")
    assert page.evaluate(inside)
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


def test_right_to_left_texts_are_set_from_the_right(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"year": 1999}'""")
    search(page, ARABIC)
    for what, direction in ((".hit .text", "rtl"), ("#query", "rtl"), (".hit .head", "ltr")):
        assert page.evaluate(f"getComputedStyle(document.querySelector({what!r})).direction") == direction
