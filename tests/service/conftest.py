"""A service with documents, an index with the same ones, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, Page, browsing
from searching import DOCUMENTS, check_quiet, fill, open_page
from serving import Running, client, serving

from m3_connectors import Index, M3Encoder, connect


@pytest.fixture(scope="module")
def running(encoder: M3Encoder) -> Iterator[Running]:
    """A service without collections, of one module."""
    with serving(encoder) as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def fruit(encoder: M3Encoder) -> Iterator[Running]:
    with serving(encoder) as running:
        with client(running) as web:
            fill(web, "fruit", DOCUMENTS)
            web.put("/v1/collections/two", json={"components": ["dense", "sparse"]}).raise_for_status()
        yield running


@pytest.fixture(scope="session")
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add(DOCUMENTS)
        yield index


@pytest.fixture
def page(browser: Browser, fruit: Running) -> Iterator[Page]:
    page = browser.page()
    open_page(page, fruit.url)
    yield page
    check_quiet(page, fruit)
