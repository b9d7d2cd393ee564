"""The page of ``m3 serve`` in a browser: what is served to it, and what its tests do and look at."""

from __future__ import annotations

import httpx
import pytest
from browser import Page
from serving import Running

from m3_connectors import Document

QUERY = "When are plums ripe?"
KEY = "a-key-that-only-reads-0123456789"
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> plums are ripe"
# Equal texts have equal scores, so that ids decide; the second is greater in code points, and less in UTF-16.
TIED = ("\uff5eplum", "\U0001d4c5plum", "a-plum")
ARABIC = "ينضج البرقوق في أواخر الصيف."
DOCUMENTS = [
    *(
        Document(
            f"d{i}", f"Plum {i} ripens in week {i % 7}, {'early' if i % 3 else 'late'}.", {"year": 2000 + i}
        )
        for i in range(30)
    ),
    *(Document(id, "Plums are ripe in September.", {"tied": True}) for id in TIED),
    Document(
        "<b onclick=alert(1)>bold</b>", HOSTILE, {"<i>field</i>": "<u>value</u>", "big": 9007199254740993}
    ),
    Document("arabic", ARABIC, {"year": 1999}),
]
METHODS = ("dense", "sparse", "multi_vec", "dense_sparse", "all")


def fill(web: httpx.Client, name: str, documents: list[Document]) -> None:
    web.put(f"/v1/collections/{name}", json={}).raise_for_status()
    bodies = [{"id": one.id, "text": one.text, "metadata": dict(one.metadata)} for one in documents]
    web.post(f"/v1/collections/{name}/documents", json={"documents": bodies}).raise_for_status()


def open_page(page: Page, url: str) -> None:
    page.goto(f"{url}/")
    page.until("document.querySelectorAll('.chip').length === 5")


def check_quiet(page: Page, running: Running, *, refused: bool = False) -> None:
    """Every request goes to the service itself, without a query or a key in its URL, and no fault is reported."""
    assert page.requests
    for url in page.requests:
        assert url.startswith((f"{running.url}/v1/", f"{running.url}/page/")) or url == f"{running.url}/", url
        assert "?" not in url
        assert KEY not in url
    assert refused or page.faults == []
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def search(page: Page, query: str = QUERY) -> None:
    page.evaluate("document.getElementById('query').value = ''; document.getElementById('query').focus()")
    page.type(query)
    page.press("Enter")
    page.until("document.getElementById('status').textContent.includes('answered')")


def ids_of(page: Page, method: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll('[data-method={method}] .hit')].map(hit => hit.dataset.id)"
    )
    return found


def scores_of(page: Page, method: str) -> list[float]:
    return [
        float(text)
        for text in page.evaluate(
            f"[...document.querySelectorAll('[data-method={method}] .score')].map(e => e.textContent)"
        )
    ]


def focused(page: Page) -> str:
    found: str = page.evaluate(
        "(e => e.id || [e.tagName, e.className, e.textContent].join(' ').trim())(document.activeElement)"
    )
    return found


def tab_to(page: Page, condition: str) -> None:
    """Press Tab until the focus is on an element for which the condition holds; each is seen to have the focus."""
    for _ in range(200):
        page.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            continue  # around the end of the page
        visible = page.evaluate(
            """(e => {
                const chip = e.closest(".chip");
                const style = getComputedStyle(chip ?? e);
                return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            })(document.activeElement)"""
        )
        assert visible, f"the focus is not visible on {focused(page)}"
        if page.evaluate(f"(e => {condition})(document.activeElement)"):
            return
    pytest.fail(f"Tab never reaches {condition}")
