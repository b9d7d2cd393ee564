"""Ask a language model for a question about a passage, through an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.model_server import ModelServer, words_of
from m3_connectors.training_data.questions.articles import Article

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "OPENAI_API_KEY"

# A passage may take a model on a CPU minutes, and a rate limit may be one a minute.
PATIENCE = RetryPolicy(timeout_seconds=300, attempts=8, total_seconds=900)

_INSTRUCTION = """\
Read the text below, and ask one question that it answers. Ask about something that is central to the text, and so \
specifically that the text can be told from others by it. Whoever gets the question does not see the text: use names, \
not words such as "this" or "the author". Write the question in the language of the text ({language}). Write nothing \
but the question.

{passage}"""


class Asker:
    """A language model that asks questions.

    Args:
        endpoint: The base of an OpenAI-compatible API, such as ``http://host/v1``. The key, if it needs one, is that
            of the environment variable ``OPENAI_API_KEY``.
        model: The name of the model there.
        retry_policy: Timeouts and retries.

    Raises:
        InvalidInput: The endpoint is not a URL of HTTP.
    """

    def __init__(self, endpoint: str, model: str, retry_policy: RetryPolicy = PATIENCE) -> None:
        self._model = model
        self._server = ModelServer(
            endpoint,
            named_by="--endpoint",
            key=os.environ.get(KEY_VARIABLE),
            key_variable=KEY_VARIABLE,
            offer=f"the model {model}",
            kind="chat endpoint",
            operation="ask",
            retry_policy=retry_policy,
        )

    def client(self) -> httpx.AsyncClient:
        """Return a new client, which is a context manager."""
        return self._server.client()

    async def answer(self, client: httpx.AsyncClient, article: Article) -> str:
        """Return the model's answer about the passage of an article.

        Raises:
            Rejected: The server refuses this request, or its answer is not one of a chat.
            Unauthorised, NotFound: The key or the model is wrong.
            Unavailable, TimedOut, Throttled: It did not answer in time, tried again and again.
        """
        content = _INSTRUCTION.format(language=article.language, passage=article.passage)
        body = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        response = await self._server.post(
            client, "chat/completions", body, "Check that the model takes chats, and passages of this length."
        )
        try:
            choice = response.json()["choices"][0]
            answer = choice["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._server.wrong_answer(
                f"no message of a chat: {words_of(response)!r:.120}",
                "Check that --endpoint is the base of an OpenAI-compatible API, such as http://host/v1.",
            ) from error
        if not isinstance(answer, str) or not answer.strip() or choice.get("finish_reason") == "length":
            what = "a message that was cut" if answer else "an empty message"
            raise self._server.wrong_answer(
                f"{what}: {answer!r:.120}", "Raise the limit of tokens on the server."
            )
        return answer
