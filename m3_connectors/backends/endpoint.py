"""The address of a server and how to authenticate: the options that all networked adapters share."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import ssl
from collections.abc import Collection, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from m3_connectors.backends.capabilities import Capability, refuse_unknown, require
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.backends.urls import redacted
from m3_connectors.errors import InvalidInput, Unavailable


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The address of a server, with the credentials and TLS settings to use.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Host name or IP address.
        port: TCP port.
        path: Prefix of every request's path, such as ``/search``; empty if there is none.
        api_key: API key or token.
        username: Username for basic authentication, together with ``password``.
        password: Password for basic authentication.
        ca_certs: Path of a PEM file with the CA certificate that signed the server's certificate.
        fingerprint: SHA-256 of the server's certificate, as an alternative to ``ca_certs``.
        verify: Whether the certificate is verified; set it to False only for experiments.
        patience: Timeouts and retries.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    api_key: SecretStr | None = None
    username: str | None = None
    password: SecretStr | None = None
    ca_certs: str | None = None
    fingerprint: str | None = None
    verify: bool = True
    patience: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)

    @property
    def url(self) -> str:
        """The URL without secrets, safe to show in errors and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def lets_others_read_secrets(self) -> bool:
        """Whether a key or password would be sent over a network without encryption."""
        has_secret = self.api_key is not None or self.password is not None
        return has_secret and not self.tls and not _is_loopback(self.host)

    @property
    def asks(self) -> list[Capability]:
        """The capabilities that a store needs for this connection."""
        asked = {
            Capability.KEY: self.api_key is not None,
            Capability.PASSWORD: self.password is not None,
            Capability.AUTHORITY: self.ca_certs is not None,
            Capability.FINGERPRINT: self.fingerprint is not None,
            Capability.UNVERIFIED: not self.verify,
        }
        return [capability for capability, is_asked in asked.items() if is_asked]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Endpoint holds secrets and cannot be pickled; call connect() in the other process."
        )

    @classmethod
    def parse(
        cls,
        url: str,
        options: Mapping[str, Any],
        *,
        default_port: int,
        environment: Mapping[str, str],
        declared: Collection[Capability],
        own: tuple[str, ...] = (),
    ) -> tuple[Endpoint, dict[str, Any]]:
        """Parse ``store+http(s)://[user:password@]host[:port][/path]``; return endpoint and unused options.

        Options take precedence over the URL, and the URL over the environment (``M3_STORE_API_KEY``,
        ``…_USERNAME``, ``…_PASSWORD``, ``…_CA_CERTS``, ``…_FINGERPRINT``; an empty variable counts as not
        set). A key or password is sent over http only to loopback, and to other hosts only with
        ``allow_unencrypted_key`` (``…_ALLOW_UNENCRYPTED_KEY=true``).

        Args:
            url: URL of the server.
            options: The options given to ``connect``.
            default_port: The port to use if the URL has none.
            environment: The environment variables of the process.
            declared: The capabilities of the store.
            own: Names of the adapter's own options, which are returned unused.

        Raises:
            InvalidInput: The URL or an option is not valid; the message contains no secret.
            Unsupported: The store does not support an option.
        """
        parts = urlsplit(url)
        store, _, scheme = parts.scheme.partition("+")
        prefix = f"M3_{store.upper()}"
        try:
            port = parts.port or default_port
        except ValueError:
            raise InvalidInput(
                f"the port of {redacted(url)} is not a number from 1 to 65535.\n"
                f"  Use {store}+http://HOST:PORT, such as {store}+http://localhost:{default_port}."
            ) from None
        if scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInput(
                f"{redacted(url)} is not a server URL.\n"
                f"  Use {store}+http://HOST:PORT or {store}+https://…. Pass keys and passwords as options "
                "(api_key=…, password=…), or escape / ? # @ in the URL as %2F %3F %23 %40."
            )
        left = dict(options)

        def setting(name: str, from_url: str | None = None) -> Any:
            value = left.pop(name, None)
            if value is None:
                value = from_url or environment.get(f"{prefix}_{name.upper()}") or None
            return value

        def text(name: str, from_url: str | None = None) -> str | None:
            value = setting(name, from_url)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if value is not None and not isinstance(value, str):
                raise InvalidInput(f"{name} is {value!r}.\n  Pass a string.")
            return value

        def secret(name: str, from_url: str | None = None) -> SecretStr | None:
            value = setting(name, from_url)
            if value is not None and not isinstance(value, str | SecretStr):
                raise InvalidInput(f"{name} is of type {type(value).__name__}.\n  Pass a string.")
            return _clean(name, value) if value else None

        allowed = setting("allow_unencrypted_key")
        default = RetryPolicy()
        endpoint = cls(
            scheme=scheme,
            host=parts.hostname,
            port=port,
            path=parts.path.rstrip("/"),
            api_key=secret("api_key"),
            username=text("username", unquote(parts.username) if parts.username else None),
            password=secret("password", unquote(parts.password) if parts.password else None),
            ca_certs=text("ca_certs"),
            fingerprint=text("fingerprint"),
            verify=left.pop("verify", True),
            patience=RetryPolicy(
                left.pop("timeout_seconds", default.timeout_seconds),
                left.pop("attempts", default.attempts),
                left.pop("total_seconds", default.total_seconds),
            ),
        )
        if not isinstance(endpoint.verify, bool):
            raise InvalidInput(f"verify is {endpoint.verify!r}.\n  Pass True or False.")
        if (endpoint.username is None) != (endpoint.password is None):
            given, other = ("username", "password") if endpoint.password is None else ("password", "username")
            raise InvalidInput(f"{given} is set and {other} is not.\n  Set both, or use api_key=….")
        if not endpoint.tls and (endpoint.ca_certs or endpoint.fingerprint):
            raise InvalidInput(
                f"ca_certs or fingerprint is set, and {endpoint.url} does not use TLS.\n"
                f"  Use {store}+https://…, or leave ca_certs and fingerprint out."
            )
        if endpoint.lets_others_read_secrets and allowed not in (True, "true"):
            raise InvalidInput(
                f"{endpoint.url} is not encrypted, so others on the network could read the key or password.\n"
                f"  Use {store}+https://…, or, on a network that you trust, allow_unencrypted_key=True "
                f"({prefix}_ALLOW_UNENCRYPTED_KEY=true)."
            )
        require(f"{store}+{scheme}", declared, endpoint.asks)
        refuse_unknown(f"{store}+{scheme}", declared, left, own)
        if endpoint.ca_certs is not None:
            check_ca_certs(endpoint.ca_certs, f" (ca_certs= or {prefix}_CA_CERTS)")
        return endpoint, left


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _clean(name: str, value: str | SecretStr) -> SecretStr:
    """Return the secret as a request can carry it; a client that cannot send it would show it in an error."""
    # Files and environment variables often end in a line break that is not part of the secret.
    secret = (value.get_secret_value() if isinstance(value, SecretStr) else value).strip("\r\n")
    if name == "api_key":
        secret = secret.strip()
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise InvalidInput(
                "api_key contains a space, a control character or a character outside ASCII.\n"
                "  Check that the whole key was copied, and nothing else."
            )
    return SecretStr(secret)


def check_ca_certs(path: str, settings: str = "") -> None:
    """Raise InvalidInput unless the file can be read now and has a certificate; it may go before a connection."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        why = (
            "contains no certificate"
            if isinstance(error, ssl.SSLError)
            else f"cannot be read: {error.strerror}"
        )
        raise InvalidInput(
            f"ca_certs is {path!r}, which {why}.\n"
            f"  Pass the PEM file of the CA that signed the server's certificate{settings}."
        ) from error


def encrypted(url: str, backend: str, operation: str) -> Unavailable:
    """Return the error for an http URL whose port uses TLS; a retry would fail again."""
    message = f"{url} uses TLS.\n  Use {backend}+{url.replace('http', 'https', 1)}."
    error = Unavailable(message, backend=backend, operation=operation)
    error.retryable = False
    return error


def not_encrypted(url: str, backend: str, operation: str) -> Unavailable:
    """Return the error for an https URL whose port does not use TLS; a retry would fail again."""
    message = (
        f"{url} does not use TLS.\n"
        f"  Use {backend}+{url.replace('https', 'http', 1)} if you trust the network in between."
    )
    error = Unavailable(message, backend=backend, operation=operation)
    error.retryable = False
    return error
