"""The page, in a real browser: typed into, drawn, by keyboard only, with hostile documents, and without other servers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from browser import Browser, Page, browsing
from matplotlib import image
from serving import Running, client, serving
from stub_encoder import StubEncoder

from m3_connectors import Document, Index, M3Encoder, connect
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.methods import Weights, fuse, rank
from m3_connectors.service.keys import Keys

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def running(encoder: M3Encoder) -> Iterator[Running]:
    with serving(encoder) as running:
        with client(running) as web:
            _fill(web, "fruit", DOCUMENTS)
            web.put("/v1/collections/two", json={"components": ["dense", "sparse"]}).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add(DOCUMENTS)
        yield index


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    page = browser.page()
    _open(page, running.url)
    yield page
    _check_quiet(page, running)


def _fill(web: httpx.Client, name: str, documents: list[Document]) -> None:
    web.put(f"/v1/collections/{name}", json={}).raise_for_status()
    bodies = [{"id": one.id, "text": one.text, "metadata": dict(one.metadata)} for one in documents]
    web.post(f"/v1/collections/{name}/documents", json={"documents": bodies}).raise_for_status()


def _open(page: Page, url: str) -> None:
    page.goto(f"{url}/")
    page.until("document.querySelectorAll('.chip').length === 5")


def _check_quiet(page: Page, running: Running, *, refused: bool = False) -> None:
    """Every request goes to the service itself, without a query or a key in its URL, and the browser has no complaint."""
    assert page.requests
    for url in page.requests:
        assert url.startswith((f"{running.url}/v1/", f"{running.url}/page/")) or url == f"{running.url}/", url
        assert "?" not in url
        assert KEY not in url
    assert refused or page.faults == []
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def _search(page: Page, query: str = QUERY) -> None:
    page.evaluate("document.getElementById('query').value = ''; document.getElementById('query').focus()")
    page.type(query)
    page.press("Enter")
    page.until("document.getElementById('status').textContent.includes('answered')")


def _ids(page: Page, method: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll('[data-method={method}] .hit')].map(hit => hit.dataset.id)"
    )
    return found


def _scores(page: Page, method: str) -> list[float]:
    return [
        float(text)
        for text in page.evaluate(
            f"[...document.querySelectorAll('[data-method={method}] .score')].map(e => e.textContent)"
        )
    ]


def _focused(page: Page) -> str:
    found: str = page.evaluate(
        "(e => e.id || [e.tagName, e.className, e.textContent].join(' ').trim())(document.activeElement)"
    )
    return found


def _tab_to(page: Page, condition: str) -> None:
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
        assert visible, f"the focus is not visible on {_focused(page)}"
        if page.evaluate(f"(e => {condition})(document.activeElement)"):
            return
    pytest.fail(f"Tab never reaches {condition}")


def test_a_typed_query_finds_the_hits_of_every_method(page: Page, index: Index) -> None:
    page.type(QUERY)  # the box has the focus from the beginning
    page.press("Enter")
    page.until("document.querySelectorAll('.hit').length === 50")
    assert [
        e for e in page.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)") if e
    ] == [*METHODS]
    for method in METHODS:
        direct = index.search(QUERY, method=index.methods[method], k=10)
        assert _ids(page, method) == [hit.document.id for hit in direct]
        assert _scores(page, method) == pytest.approx([hit.score for hit in direct], abs=6e-4)
    # The parts of a bar have the widths of the weighted scores.
    hit = index.search(QUERY, method="all", k=1)[0]
    weights = index.methods["all"].weights
    widths = page.evaluate(
        "[...document.querySelectorAll('[data-method=all] .hit:first-child .bar span')].map(e => parseFloat(e.style.width))"
    )
    weighted = np.array(
        [weights.of(name) * getattr(hit.scores, name) for name in COMPONENTS if weights.of(name)]
    )
    np.testing.assert_allclose(widths, 100 * np.abs(weighted) / np.abs(weighted).sum(), atol=0.1)


def test_the_explanation_of_a_hit_is_drawn(page: Page, index: Index) -> None:
    _search(page)
    id = _ids(page, "all")[0]
    page.evaluate("document.querySelector('[data-method=all] .explain').focus()")
    page.press("Enter")
    page.until("document.querySelector('.readout strong')")
    direct = index.explain(QUERY, id, method=index.methods["all"])
    heat = direct.similarities
    assert heat is not None
    assert float(page.evaluate("document.querySelector('.total').textContent")) == pytest.approx(
        direct.score, abs=6e-4
    )
    matched = page.evaluate(
        "[...document.querySelectorAll('dialog section:nth-of-type(2) tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [
        [name, float(asked), float(found), float(product)] for name, asked, found, product in matched
    ] == [
        [
            match.token,
            *(pytest.approx(v, abs=6e-4) for v in (match.query_weight, match.document_weight, match.score)),
        ]
        for match in direct.tokens
    ]
    assert matched, "the texts share no token, so the test says nothing"
    # The picture: each cell has the colour of its similarity, from the lightest to the darkest.
    page.evaluate("document.querySelector('.heat').scrollIntoView({block: 'center'})")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = page.evaluate("document.querySelector('.heat canvas').getBoundingClientRect().toJSON()")
    drawn = image.imread(io.BytesIO(page.picture()))[
        round(box["top"]) : round(box["bottom"]), round(box["left"]) : round(box["right"]), :3
    ]
    cells = _cells(drawn, heat.values.shape)
    light = cells.sum(axis=-1)
    order = np.argsort(heat.values, axis=None)
    assert (np.diff(light.ravel()[order]) <= 0.02).all(), "a higher similarity is drawn lighter"
    assert light.max() - light.min() > 1


def _cells(drawn: np.ndarray[Any, Any], shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The colour of each cell, beside its middle; cells of 22 pixels end 2 pixels before the picture does."""
    height, width = drawn.shape[:2]
    rows = [height - 2 - 22 * (shape[0] - i) + 7 for i in range(shape[0])]
    columns = [width - 2 - 22 * (shape[1] - j) + 7 for j in range(shape[1])]
    return drawn[np.ix_(rows, columns)]


@pytest.mark.parametrize("method", ["dense_sparse", "all"])
def test_sliders_fuse_again_as_the_server_does(page: Page, running: Running, method: str) -> None:
    _search(page)
    before = len(page.bodies)
    fused = {"dense_sparse": 2, "all": 3}[method]
    with client(running) as web:
        for slider, key, times in [
            (0, "End", 1),
            (1, "ArrowLeft", 23),
            (fused - 1, "Home", 1),
            (0, "ArrowLeft", 40),
        ]:
            page.evaluate(
                f"document.querySelectorAll('[data-method={method}] input[type=range]')[{slider}].focus()"
            )
            page.press(key, times=times)
            weights = page.evaluate(
                f"[...document.querySelectorAll('[data-method={method}] input[type=range]')].map(e => e.valueAsNumber)"
            )
            weights += [0] * (3 - len(weights))
            asked = {"query": QUERY, "method": method, "weights": weights}
            answer = web.post("/v1/collections/fruit/search", json=asked).json()["hits"]
            expected = [hit["id"] for hit in answer]
            shown = (
                f"[...document.querySelectorAll('[data-method={method}] .hit')].map(hit => hit.dataset.id)"
            )
            page.until(f"JSON.stringify({shown}) === {json.dumps(json.dumps(expected))}")
            page.until(
                f"[...document.querySelectorAll('[data-method={method}] .score')].every((e, i) => "
                f"Math.abs(Number(e.textContent) - {json.dumps([hit['score'] for hit in answer])}[i]) < 6e-4)"
            )
            assert (
                page.evaluate(f"document.querySelector('[data-method={method}]').dataset.source") == "browser"
            )
    asked_since = [url.rpartition("/")[2] for url, _ in page.bodies[before:]]
    assert asked_since.count("candidates") == 1
    assert "search" not in asked_since


def test_equal_scores_are_ordered_by_the_code_points_of_ids(page: Page) -> None:
    _search(page, "Plums are ripe in September.")
    expected = sorted(TIED)
    assert expected != sorted(TIED, key=lambda id: id.encode("utf-16-be"))
    assert _ids(page, "all")[:3] == expected
    page.evaluate("document.querySelector('[data-method=all] input[type=range]').focus()")
    page.press("ArrowRight", times=3)
    page.until("document.querySelector('[data-method=all]').dataset.source === 'browser'")
    assert _ids(page, "all")[:3] == expected


def test_fusion_in_the_browser_is_the_librarys_to_the_last_bit(page: Page) -> None:
    random_ = np.random.default_rng(0)
    letters = [*"ab", "\ud7ff", "\ue000", "\uff5e", "\U00010000", "\U0010ffff"]
    choose = random.Random(0)
    for _ in range(20):
        count = int(random_.integers(1, 60))
        ids = list({"".join(choose.choices(letters, k=choose.randint(0, 4))) for _ in range(count)})
        # Few values, so that there are ties; and weights of which some are 0.
        values = {
            name: random_.choice(random_.normal(size=4).astype(np.float32), size=len(ids))
            for name in COMPONENTS
        }
        weights = Weights(
            *(float(w) for w in np.append(random_.choice([0, 0.3, 1.7], 2), random_.uniform(0.1, 2)))
        )
        fused = fuse(values, weights)  # type: ignore[arg-type]
        given = json.dumps(
            [
                {name: [float(v) for v in scores] for name, scores in values.items()},
                dict(zip(COMPONENTS, weights, strict=True)),
                ids,
            ]
        )
        found = page.evaluate(
            f"""import("/page/fuse.js").then(({{fuse, rank}}) => {{
                const [scores, weights, ids] = {given};
                const fused = fuse(scores, weights, ids.length);
                return [fused, rank(ids, fused, 10)];
            }})"""
        )
        assert found[0] == fused.tolist()
        assert found[1] == rank(ids, fused, 10)


def test_candidates_that_are_not_all_are_confirmed_by_the_server(browser: Browser) -> None:
    documents = [Document(f"d{i}", f"text {i}") for i in range(1200)]
    with serving(StubEncoder()) as running:
        with client(running) as web:
            _fill(web, "many", documents)
        page = browser.page()
        _open(page, running.url)
        _search(page, "x")
        slider = "document.querySelectorAll('[data-method=dense_sparse] input[type=range]')"
        page.evaluate(f"{slider}[0].focus()")
        page.press("Home")
        page.evaluate(f"{slider}[1].focus()")
        page.press("End")
        page.until(
            "document.querySelector('[data-method=dense_sparse] .note').textContent === '' && "
            "document.querySelector('[data-method=dense_sparse] output').textContent === '0' && "
            "document.querySelector('[data-method=dense_sparse]').dataset.source === 'server'"
        )
        weights = page.evaluate(f"[...{slider}].map(e => e.valueAsNumber)")
        assert weights[0] == 0
        with client(running) as web:
            asked = {"query": "x", "method": "dense_sparse", "weights": [*weights, 0]}
            answer = web.post("/v1/collections/many/search", json=asked).json()["hits"]
        assert _ids(page, "dense_sparse") == [hit["id"] for hit in answer]
        _check_quiet(page, running)


def test_everything_is_done_with_the_keyboard(page: Page) -> None:
    assert _focused(page) == "query"
    page.type(QUERY)
    _tab_to(page, "e.id === 'method-sparse'")
    page.press(" ")
    _tab_to(page, "e.id === 'key'")  # around the end of the page
    _tab_to(page, "e.id === 'query'")
    page.press("Enter")
    page.until("document.querySelectorAll('.hit').length === 40")
    assert _ids(page, "sparse") == []
    _tab_to(page, "e.type === 'range'")
    page.press("ArrowRight")
    page.until("document.querySelector('[data-method=dense_sparse]').dataset.source === 'browser'")
    _tab_to(page, "e.textContent === 'Reset weights'")
    page.press("Enter")
    page.until("document.querySelector('[data-method=dense_sparse] .weights button').disabled")
    assert page.evaluate("document.activeElement.type") == "range"  # not lost with the button
    _tab_to(page, "e.closest('[data-method=all]') && e.className === 'explain'")
    page.press("Enter")
    page.until("document.querySelector('.readout strong')")
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    _tab_to(page, "e.className === 'heat'")
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
    count = page.evaluate(read).partition("of ")[2].partition(")")[0]
    assert f"(token {count} of" in page.evaluate(read)
    page.press("Escape")
    page.until("!document.querySelector('dialog').open")
    assert page.evaluate("document.activeElement.className") == "explain"
    page.press("Tab", shift=True)  # and back
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_everything_has_a_name_for_a_screen_reader(page: Page) -> None:
    _search(page)
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
    _search(page)
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
            do { ground = getComputedStyle(at).backgroundColor; at = at.parentElement } while (at && ground.endsWith(", 0)"));
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


def test_a_document_is_text_whatever_it_contains(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"big": {"$gt": 1}}'""")
    _search(page, "<script>window.hacked = 3</script>")
    assert _ids(page, "all") == ["<b onclick=alert(1)>bold</b>"]
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
    browser: Browser, running: Running
) -> None:
    page = browser.page()
    _open(page, running.url)
    refused = page.evaluate(
        "(() => { try { document.body.innerHTML = '<img src=x onerror=window.hacked=1>'; return false } catch { return true } })()"
    )
    assert refused, "a script wrote HTML"
    page.evaluate(
        "(() => { const s = document.createElement('button'); try { s.setAttribute('onclick', 'window.hacked = 1') } catch {}; document.body.append(s); s.click() })()"
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
    browser: Browser, running: Running, index: Index, filter: str, message: str
) -> None:
    page = browser.page()
    _open(page, running.url)
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
    _search(page)
    assert page.evaluate("document.getElementById('problem').hidden")
    _check_quiet(page, running, refused=True)


def test_a_filter_is_sent_with_the_numbers_that_were_typed(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"big": 9007199254740993}'""")
    _search(page)
    assert [body for url, body in page.bodies if url.endswith("/search")][0].endswith(
        ',"filter":{"big": 9007199254740993}}'
    ) or '"filter":{"big": 9007199254740993}' in next(
        body for url, body in page.bodies if url.endswith("/search")
    )
    assert len(_ids(page, "all")) == 1


def test_all_weights_at_zero_show_the_librarys_message(browser: Browser, running: Running) -> None:
    page = browser.page()
    _open(page, running.url)
    _search(page)
    for i in range(3):
        page.evaluate(f"document.querySelectorAll('[data-method=all] input[type=range]')[{i}].focus()")
        page.press("Home")
    shown = page.until("document.querySelector('[data-method=all] .error').innerText")
    assert shown == "all three weights are 0.\n  Give at least one component a positive weight."
    assert len(_ids(page, "dense")) == 10
    page.press("End")
    page.until("document.querySelectorAll('[data-method=all] .hit').length === 10")
    _check_quiet(page, running, refused=True)


def test_a_key_is_asked_for_and_kept_in_the_session_only(browser: Browser, encoder: M3Encoder) -> None:
    with serving(encoder, keys=Keys({KEY: "write"})) as running:
        with client(running, headers={"X-API-Key": KEY}) as web:
            _fill(web, "fruit", DOCUMENTS)
        page = browser.page()
        page.goto(f"{running.url}/")
        shown = page.until(
            "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
        )
        assert shown.startswith("the request has no API key.")
        assert _focused(page) == "key"
        page.type(KEY)
        page.press("Enter")
        page.until("document.querySelectorAll('.chip').length === 5 && document.activeElement.id === 'query'")
        _search(page)
        assert len(_ids(page, "all")) == 10
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        sent = [headers for url, headers in page.headers if url.endswith("/search")]
        assert {headers["Authorization"] for headers in sent} == {f"Bearer {KEY}"}
        _check_quiet(page, running, refused=True)


def test_a_collection_without_multi_vectors_says_which_methods_need_them(page: Page) -> None:
    page.evaluate(
        "(c => { c.value = 'two'; c.dispatchEvent(new Event('change')) })(document.getElementById('collection'))"
    )
    page.until("document.getElementById('method-all').disabled")
    chips = page.evaluate("[...document.querySelectorAll('.chip')].map(e => e.innerText)")
    assert chips == [
        "dense", "sparse", "multi_vec needs multivector", "dense_sparse", "all needs multivector",
    ]  # fmt: skip
    _search(page)
    assert (
        page.evaluate("[...document.querySelectorAll('.none')].map(e => e.textContent)")
        == ["No document matches."] * 3
    )


def test_a_server_that_has_gone_is_said(browser: Browser, encoder: M3Encoder) -> None:
    with serving(encoder) as running:
        with client(running) as web:
            _fill(web, "fruit", DOCUMENTS)
        page = browser.page()
        _open(page, running.url)
    page.type(QUERY)
    page.press("Enter")
    shown = page.until(
        "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
    )
    assert shown.startswith("the server does not answer")


@pytest.mark.parametrize("width", [320, 768, 1300])
def test_nothing_is_beyond_a_narrow_screen(page: Page, width: int) -> None:
    page.size(width, 700)
    _search(page)
    inside = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(inside)
    page.evaluate("document.querySelector('[data-method=all] .explain').click()")
    page.until("document.querySelector('.readout strong')")
    assert page.evaluate(inside)
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


def test_right_to_left_texts_are_set_from_the_right(page: Page) -> None:
    page.evaluate("""document.getElementById('filter').value = '{"year": 1999}'""")
    _search(page, ARABIC)
    direction: Callable[[str], Any] = lambda what: page.evaluate(f"getComputedStyle({what}).direction")  # noqa: E731
    assert direction("document.querySelector('.hit .text')") == "rtl"
    assert direction("document.getElementById('query')") == "rtl"
    assert direction("document.querySelector('.hit .head')") == "ltr"
