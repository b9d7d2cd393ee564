"""One run: ask about the articles that were not asked about, several at a time, check each answer and store it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio

from m3_connectors.backends.together import together
from m3_connectors.errors import Rejected
from m3_connectors.training_data.questions.articles import Article
from m3_connectors.training_data.questions.asking import Asker
from m3_connectors.training_data.questions.checks import Checks, Rejection, question_of
from m3_connectors.training_data.questions.journal import Journal

if TYPE_CHECKING:
    import httpx

_MOST_REFUSED = 10
"""A server that refuses so many requests in a row, or whose answers are broken, is not one for this."""


def ask(
    articles: Sequence[Article],
    asker: Asker,
    checks: Checks,
    journal: Journal,
    *,
    at_once: int,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Ask about each article that the journal does not have, and return their number.

    Args:
        articles: The articles.
        asker: The model.
        checks: What an answer must pass.
        journal: Where answers are stored, each as soon as it is checked.
        at_once: The number of requests at the same time.
        progress: Called with the number of answers so far.

    Raises:
        Rejected: The server refused ten requests in a row.
        Unauthorised, NotFound, Unavailable, TimedOut, Throttled: It cannot be used; what it answered is stored.
    """
    waiting = [article for article in articles if article.key not in journal.asked]
    if waiting:
        anyio.run(_Run(asker, checks, journal, progress).ask_all, waiting, at_once)
    return len(waiting)


class _Run:
    def __init__(
        self, asker: Asker, checks: Checks, journal: Journal, progress: Callable[[int], object]
    ) -> None:
        self._asker = asker
        self._checks = checks
        self._journal = journal
        self._progress = progress
        self._done = 0
        self._refused_in_a_row = 0

    async def ask_all(self, articles: Sequence[Article], at_once: int) -> None:
        async with self._asker.client() as client:
            await together([partial(self._ask, client, article) for article in articles], at_once=at_once)

    async def _ask(self, client: httpx.AsyncClient, article: Article) -> None:
        try:
            answer = await self._asker.answer(client, article)
        except Rejected as error:
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= _MOST_REFUSED:
                raise
            self._journal.reject(None, article, Rejection("broken answer", str(error).splitlines()[0]))
        else:
            self._refused_in_a_row = 0
            question = question_of(answer)
            rejection = self._checks.rejection(question, article)
            if rejection is None:
                self._journal.accept(question, article)
            else:
                self._journal.reject(answer, article, rejection)
        self._done += 1
        self._progress(self._done)
