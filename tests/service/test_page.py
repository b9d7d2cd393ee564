"""The page in a real browser: a typed query finds hits, weights are fused again, and a hit is explained."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
import pytest
from browser import Browser, Page
from matplotlib import image
from searching import METHODS, QUERY, TIED, check_quiet, fill, ids_of, open_page, scores_of, search
from serving import Running, client, serving
from stub_encoder import StubEncoder

from m3_connectors import Document, Index
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.methods import Weights, fuse, rank


def test_a_typed_query_finds_the_hits_of_every_method(page: Page, index: Index) -> None:
    page.type(QUERY)  # the box has the focus from the beginning
    page.press("Enter")
    page.until("document.querySelectorAll('.hit').length === 50")
    assert [
        e for e in page.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)") if e
    ] == [*METHODS]
    for method in METHODS:
        direct = index.search(QUERY, method=index.methods[method], k=10)
        assert ids_of(page, method) == [hit.document.id for hit in direct]
        assert scores_of(page, method) == pytest.approx([hit.score for hit in direct], abs=6e-4)
    # The parts of a bar have the widths of the weighted scores.
    hit = index.search(QUERY, method="all", k=1)[0]
    weights = index.methods["all"].weights
    widths = page.evaluate(
        "[...document.querySelectorAll('[data-method=all] .hit:first-child .bar span')]"
        ".map(e => parseFloat(e.style.width))"
    )
    weighted = np.array(
        [weights.of(name) * getattr(hit.scores, name) for name in COMPONENTS if weights.of(name)]
    )
    np.testing.assert_allclose(widths, 100 * np.abs(weighted) / np.abs(weighted).sum(), atol=0.1)


def test_the_explanation_of_a_hit_is_drawn(page: Page, index: Index) -> None:
    search(page)
    id = ids_of(page, "all")[0]
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
        "[...document.querySelectorAll('dialog section:nth-of-type(2) tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [
        [name, float(asked), float(found), float(product)] for name, asked, found, product in matched
    ] == [
        [
            match.token.replace("▁", "space").replace("</s>", "end of text"),
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
def test_sliders_fuse_again_as_the_server_does(page: Page, fruit: Running, method: str) -> None:
    search(page)
    before = len(page.bodies)
    fused = {"dense_sparse": 2, "all": 3}[method]
    with client(fruit) as web:
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
            as_text = json.dumps(expected, ensure_ascii=False, separators=(",", ":"))
            page.until(f"JSON.stringify({shown}) === {json.dumps(as_text)}")
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
    search(page, "Plums are ripe in September.")
    expected = sorted(TIED)
    assert expected != sorted(TIED, key=lambda id: id.encode("utf-16-be"))
    assert ids_of(page, "all")[:3] == expected
    page.evaluate("document.querySelector('[data-method=all] input[type=range]').focus()")
    page.press("ArrowRight", times=3)
    page.until("document.querySelector('[data-method=all]').dataset.source === 'browser'")
    assert ids_of(page, "all")[:3] == expected


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
            fill(web, "many", documents)
        page = browser.page()
        open_page(page, running.url)
        search(page, "x")
        slider = "document.querySelectorAll('[data-method=dense_sparse] input[type=range]')"
        page.evaluate(f"{slider}[0].focus()")
        page.press("Home")
        page.evaluate(f"{slider}[1].focus()")
        page.press("End")
        weights = page.evaluate(f"[...{slider}].map(e => e.valueAsNumber)")
        assert weights[0] == 0
        with client(running) as web:
            asked = {"query": "x", "method": "dense_sparse"}
            at = "/v1/collections/many"
            pool = web.post(f"{at}/candidates", json=asked).json()["ids"]
            answer = web.post(f"{at}/search", json={**asked, "weights": [*weights, 0]}).json()["hits"]
        expected = [hit["id"] for hit in answer]
        assert not set(expected) <= set(pool), "the browser could have known"
        shown = "[...document.querySelectorAll('[data-method=dense_sparse] .hit')].map(hit => hit.dataset.id)"
        page.until(f"{shown}.join() === {json.dumps(','.join(expected))}")
        column = "document.querySelector('[data-method=dense_sparse]')"
        assert page.evaluate(f"{column}.dataset.source") == "server"
        assert page.evaluate(f"{column}.querySelector('.note').textContent") == ""
        check_quiet(page, running)


def test_a_collection_without_multi_vectors_says_which_methods_need_them(page: Page) -> None:
    page.evaluate(
        "(c => { c.value = 'two'; c.dispatchEvent(new Event('change')) })(document.getElementById('collection'))"
    )
    page.until("document.getElementById('method-all').disabled")
    chips = page.evaluate("[...document.querySelectorAll('.chip')].map(e => e.textContent)")
    assert chips == [
        "dense", "sparse", "multi_vec needs multivector", "dense_sparse", "all needs multivector",
    ]  # fmt: skip
    search(page)
    assert (
        page.evaluate("[...document.querySelectorAll('.none')].map(e => e.textContent)")
        == ["No document matches."] * 3
    )
