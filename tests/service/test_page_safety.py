"""The page with hostile documents, wrong filters, keys and failures: nothing runs or leaks, and it says why."""

from __future__ import annotations

import json

import pytest
from browser import Browser, Page
from searching import DOCUMENTS, HOSTILE, KEY, QUERY, check_quiet, fill, focused, ids_of, open_page, search
from serving import Running, client, serving

from m3_connectors import Index, M3Encoder
from m3_connectors.service.keys import Keys


def test_a_document_is_text_whatever_it_contains(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"big": {"$gt": 1}}'""")
    search(page, "<script>window.hacked = 3</script>")
    assert ids_of(page, "all") == ["<b onclick=alert(1)>bold</b>"]
    hit = page.evaluate("document.querySelector('.hit').innerText")
    for shown in (HOSTILE, "<b onclick=alert(1)>bold</b>", "<i>field</i>", "<u>value</u>"):
        assert shown in hit
    assert "9007199254740993" in hit  # which JavaScript alone would show as …992
    page.evaluate("document.querySelector('[data-method=all] .explain').click()")
    page.until("document.querySelector('.readout strong')")
    assert HOSTILE in page.evaluate("document.querySelector('dialog').innerText")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert (
        page.evaluate(
            "document.querySelectorAll('.hit img, .hit script, .hit u, dialog img, dialog script').length"
        )
        == 0
    )


def test_even_a_mistake_in_the_page_could_not_run_what_a_document_contains(
    browser: Browser, fruit: Running
) -> None:
    page = browser.page()
    open_page(page, fruit.url)
    refused = page.evaluate(
        """(() => {
            try { document.body.innerHTML = "<img src=x onerror=window.hacked=1>" } catch { return true }
        })()"""
    )
    assert refused, "a script wrote HTML"
    page.evaluate(
        """(() => {
            const button = document.createElement("button");
            try { button.setAttribute("onclick", "window.hacked = 1") } catch {}
            document.body.append(button);
            button.click();
        })()"""
    )
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in fault for fault in page.faults)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ('{"year": {"$near": 3}}', "filter: unknown operator"),
        ('{"year": ', "the filter is not JSON"),
        ("[1]", "the filter is not a JSON object"),
        ('{}, "method": "dense"', "the filter is not JSON"),
    ],
)
def test_a_wrong_filter_is_shown_with_the_librarys_message(
    browser: Browser, fruit: Running, index: Index, filter: str, message: str
) -> None:
    page = browser.page()
    open_page(page, fruit.url)
    page.evaluate(f"document.getElementById('filter').value = {json.dumps(filter)}")
    page.type(QUERY)
    page.press("Enter")
    shown = page.until(
        "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
    )
    if "operator" in message:
        with pytest.raises(Exception, match="near") as refused:
            index.search(QUERY, filter=json.loads(filter))
        assert shown == str(refused.value)
    else:
        assert shown.startswith(message)
    assert page.evaluate("document.querySelectorAll('.hit').length") == 0
    assert page.evaluate("document.getElementById('problem').getAttribute('role')") == "alert"
    page.evaluate("document.getElementById('filter').value = ''")
    search(page)
    assert page.evaluate("document.getElementById('problem').hidden")
    check_quiet(page, fruit, refused=True)


def test_a_filter_is_sent_with_the_numbers_that_were_typed(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"big": 9007199254740993}'""")
    search(page)
    sent = [body for url, body in page.bodies if url.endswith("/search")]
    assert len(sent) == 5
    assert all('"filter":{"big": 9007199254740993}' in body for body in sent)
    assert len(ids_of(page, "all")) == 1


def test_all_weights_at_zero_show_the_librarys_message(browser: Browser, fruit: Running) -> None:
    page = browser.page()
    open_page(page, fruit.url)
    search(page)
    for i in range(3):
        page.evaluate(f"document.querySelectorAll('[data-method=all] input[type=range]')[{i}].focus()")
        page.press("Home")
    shown = page.until("document.querySelector('[data-method=all] .error').innerText")
    assert shown == "all three weights are 0.\n  Give at least one component a positive weight."
    assert len(ids_of(page, "dense")) == 10
    page.press("End")
    page.until("document.querySelectorAll('[data-method=all] .hit').length === 10")
    check_quiet(page, fruit, refused=True)


def test_a_key_is_asked_for_and_kept_in_the_session_only(browser: Browser, encoder: M3Encoder) -> None:
    with serving(encoder, keys=Keys({KEY: "write"})) as running:
        with client(running, headers={"X-API-Key": KEY}) as web:
            fill(web, "fruit", DOCUMENTS)
        page = browser.page()
        page.goto(f"{running.url}/")
        shown = page.until(
            "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
        )
        assert shown.startswith("the request has no API key.")
        assert focused(page) == "key"
        page.type(KEY)
        page.press("Enter")
        page.until("document.querySelectorAll('.chip').length === 5 && document.activeElement.id === 'query'")
        search(page)
        assert len(ids_of(page, "all")) == 10
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        sent = [headers for url, headers in page.headers if url.endswith("/search")]
        assert {headers["Authorization"] for headers in sent} == {f"Bearer {KEY}"}
        check_quiet(page, running, refused=True)


def test_a_server_that_has_gone_is_said(browser: Browser, encoder: M3Encoder) -> None:
    with serving(encoder) as running:
        with client(running) as web:
            fill(web, "fruit", DOCUMENTS)
        page = browser.page()
        open_page(page, running.url)
    page.type(QUERY)
    page.press("Enter")
    shown = page.until(
        "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
    )
    assert shown.startswith("the server does not answer")
