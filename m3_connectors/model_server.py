"""A server of models: one request with its retries, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from m3_connectors.backends.retry import RetryPolicy, asked_seconds, retrying
from m3_connectors.backends.urls import redacted
from m3_connectors.errors import (
    BackendError,
    InvalidInput,
    NotFound,
    Rejected,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)

if TYPE_CHECKING:
    import httpx


class ModelServer:
    """The server at one address.

    Args:
        address: The base of its API, such as ``http://host/v1``.
        named_by: What names the address in errors: an environment variable or an option.
        key: The API key; a server of one's own may need none.
        key_variable: The environment variable of the key.
        offer: What it must have, for errors, such as ``"the model NAME"``.
        kind: What the server is, for errors, such as ``"embedding endpoint"``.
        operation: What it is asked for, such as ``"embed"``.
        retry_policy: Timeouts and retries.

    Raises:
        InvalidInput: The address is not one of HTTP, or the key has characters that no header can have.
    """

    def __init__(
        self,
        address: str,
        *,
        named_by: str,
        key: str | None,
        key_variable: str,
        offer: str,
        kind: str,
        operation: str,
        retry_policy: RetryPolicy,
    ) -> None:
        _check_header(key, key_variable)
        if not isinstance(address, str):
            raise InvalidInput(
                f"{named_by} is {address!r:.60}.\n  Set it to a URL that begins with http:// or https://."
            )
        self._base = address.rstrip("/")
        self.name = redacted(self._base)
        """The address without credentials."""
        if not self._base.startswith(("http://", "https://")):
            raise InvalidInput(
                f"{named_by} is {self.name!r}.\n  Set it to a URL that begins with http:// or https://."
            )
        _check_url(self._base, self.name, named_by)
        self._named_by = named_by
        self._key = SecretStr(key) if key else None
        self._key_variable = key_variable
        self._offer = offer
        self._where: dict[str, Any] = {"backend": kind, "operation": operation}
        self._retry_policy = retry_policy

    def client(self) -> httpx.AsyncClient:
        """Return a new client, which is a context manager."""
        import httpx

        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        return httpx.AsyncClient(headers=headers, timeout=self._retry_policy.timeout_seconds)

    async def post(
        self,
        client: httpx.AsyncClient,
        path: str,
        body: Mapping[str, Any],
        if_rejected: str,
        *,
        accept: str = "application/json",
    ) -> httpx.Response:
        """Send one request, again where that helps, and return the answer, whose status is 200.

        Args:
            client: A client of ``client()``.
            path: The path below the address, such as ``embeddings``.
            body: The request.
            if_rejected: What the user can do if the server rejects what it contains.
            accept: The media type of the answer.

        Raises:
            Unauthorised, NotFound, Rejected: The server refused: the key, the model, or the content.
            Unavailable, TimedOut, Throttled: It did not answer in time, tried again and again.
        """
        call = partial(self._try, client, "POST", path, if_rejected, json=body, headers={"Accept": accept})
        return await retrying(self._retry_policy, call)

    async def get(self, client: httpx.AsyncClient, path: str, if_rejected: str) -> httpx.Response:
        """Read one resource as ``post`` sends a request."""
        return await retrying(self._retry_policy, partial(self._try, client, "GET", path, if_rejected))

    def wrong_answer(self, what: str, advice: str) -> Rejected:
        """Return the error of an answer with status 200 that is not what was asked for."""
        return Rejected(f"{self.name} answered {what}\n  {advice}", **self._where)

    async def _try(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        if_rejected: str,
        **request: Any,
    ) -> httpx.Response:
        import httpx

        try:
            response = await client.request(method, f"{self._base}/{path}", **request)
        except httpx.TimeoutException as error:
            raise TimedOut(
                f"{self.name} did not respond in time.\n  Try again later.", **self._where
            ) from error
        except httpx.RequestError as error:  # also an answer whose compression is damaged
            raise Unavailable(
                f"{self.name} cannot be reached: {str(error) or type(error).__name__}\n"
                f"  Check {self._named_by}, and that the server is running.",
                **self._where,
            ) from error
        if response.status_code != 200:
            raise self._refused(response, if_rejected)
        return response

    def _refused(self, response: httpx.Response, if_rejected: str) -> BackendError:
        said = f"{self.name} answered {response.status_code}: {words_of(response)}"
        status = response.status_code
        if status in (401, 403):
            return Unauthorised(f"{said}\n  Check {self._key_variable}.", **self._where)
        if status == 404:
            return NotFound(
                f"{said}\n  Check that it has {self._offer}, and check {self._named_by}.",
                **self._where,
            )
        asked = response.headers.get("Retry-After")
        if status == 429 or (status == 503 and asked is not None):
            return Throttled(
                f"{said}\n  Wait, or have the rate limit raised, then run the same command again.",
                retry_after_seconds=asked_seconds(asked),
                **self._where,
            )
        if status >= 500:
            return Unavailable(
                f"{said}\n  Check the log of the server, then run the same command again.", **self._where
            )
        return Rejected(f"{said}\n  {if_rejected}", **self._where)


def _check_url(address: str, shown: str, named_by: str) -> None:
    import httpx

    try:
        url = httpx.URL(address)
        is_valid = bool(url.host) and (url.port or 0) < 2**16
    except (httpx.InvalidURL, UnicodeError):
        is_valid = False
    if not is_valid or any(character.isspace() for character in address):
        raise InvalidInput(f"{named_by} is {shown!r}, which is not a URL.\n  Set it to http://HOST:PORT.")


def _check_header(key: str | None, variable: str) -> None:
    """Raise InvalidInput, without the key, if no header can have it: the HTTP library would repeat it in its error."""
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InvalidInput(
            f"{variable} has {len(key)} characters, one of which is not ASCII, is a control character, or is a space "
            "at either end.\n"
            "  Set it to the key alone: a key that was read from a file may end with a line break."
        )


def words_of(response: httpx.Response) -> str:
    """Return the server's own words, in short: an error of OpenAI's kind, or a problem of RFC 9457."""
    try:
        said = response.json()
        error = said["error"] if "error" in said else said["detail"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.text.strip()[:300] or "nothing"
