"""Where a server is and how to be let in: the options that every networked adapter takes, secrets kept secret."""

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
from m3_connectors.backends.retry import Patience
from m3_connectors.backends.urls import shown
from m3_connectors.errors import InvalidInput, Unavailable


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server's address and the way in.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Name or address.
        port: TCP port.
        path: Prefix of every request's path, such as ``/search``; empty without.
        api_key: Key or token.
        username: For basic authentication, with ``password``.
        password: For basic authentication.
        ca_certs: PEM file of the authority that signed the server's certificate.
        fingerprint: SHA-256 of the server's certificate, instead of an authority.
        verify: Whether the certificate is checked; False only for experiments.
        patience: Deadlines and retries.
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
    patience: Patience = dataclasses.field(default_factory=Patience)

    @property
    def url(self) -> str:
        """The address without any secret; fit for errors and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def lets_others_read_secrets(self) -> bool:
        """Whether a key or password would go over a network as it is."""
        has_secret = self.api_key is not None or self.password is not None
        return has_secret and not self.tls and not _is_loopback(self.host)

    @property
    def asks(self) -> list[Capability]:
        """What a store must take to be reached so."""
        asked = {
            Capability.KEY: self.api_key is not None,
            Capability.PASSWORD: self.password is not None,
            Capability.AUTHORITY: self.ca_certs is not None,
            Capability.FINGERPRINT: self.fingerprint is not None,
            Capability.UNVERIFIED: not self.verify,
        }
        return [capability for capability, is_asked in asked.items() if is_asked]

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Endpoint holds secrets: connect again where it is needed instead of pickling it.")

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
        """The endpoint of ``store+http(s)://[user:password@]host[:port][/path]``, and the options left over.

        Options win over the URL, the URL over the environment (``M3_STORE_API_KEY``, ``…_USERNAME``, ``…_PASSWORD``,
        ``…_CA_CERTS``, ``…_FINGERPRINT``; one that is empty counts as not set). A key or password goes over http on
        loopback, and elsewhere where ``allow_unencrypted_key`` (``…_ALLOW_UNENCRYPTED_KEY=true``) says so.

        Args:
            url: Of the server.
            options: As given to ``connect``.
            default_port: Where the URL names none.
            environment: The process's.
            declared: What the store does.
            own: Options of the adapter's own, which are left over.

        Raises:
            InvalidInput: An unusable URL or option; the message holds no secret.
            Unsupported: The store cannot be reached so, or takes no such option.
        """
        parts = urlsplit(url)
        store, _, scheme = parts.scheme.partition("+")
        prefix = f"M3_{store.upper()}"
        try:
            port = parts.port or default_port
        except ValueError:
            raise InvalidInput(f"the port of {shown(url)} is not a number from 1 to 65535.") from None
        if scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInput(
                f"{shown(url)} is no server: use {store}+http://HOST:PORT or {store}+https://….\n"
                "  Keys and passwords are options: api_key=…, password=…. In a URL / ? # @ become %2F %3F %23 %40."
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
                raise InvalidInput(f"{name} is {value!r}: give a text.")
            return value

        def secret(name: str, from_url: str | None = None) -> SecretStr | None:
            value = setting(name, from_url)
            if value is not None and not isinstance(value, str | SecretStr):
                raise InvalidInput(f"{name} is {type(value).__name__}: give a text.")
            return _clean(name, value) if value else None

        allowed = setting("allow_unencrypted_key")
        default = Patience()
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
            patience=Patience(
                left.pop("timeout_seconds", default.timeout_seconds),
                left.pop("attempts", default.attempts),
                left.pop("total_seconds", default.total_seconds),
            ),
        )
        if not isinstance(endpoint.verify, bool):
            raise InvalidInput(f"verify is {endpoint.verify!r}: give True or False.")
        if (endpoint.username is None) != (endpoint.password is None):
            raise InvalidInput("username and password go together; one of them is missing.")
        if not endpoint.tls and (endpoint.ca_certs or endpoint.fingerprint):
            raise InvalidInput(
                f"{endpoint.url} is not encrypted: ca_certs and fingerprint need an https URL."
            )
        if endpoint.lets_others_read_secrets and allowed not in (True, "true"):
            raise InvalidInput(
                f"{endpoint.url} is not encrypted: the key or password could be read on the way.\n"
                f"  Use {store}+https://…, or, on a network that you trust, allow_unencrypted_key=True "
                f"({prefix}_ALLOW_UNENCRYPTED_KEY=true)."
            )
        require(f"{store}+{scheme}", declared, endpoint.asks)
        refuse_unknown(f"{store}+{scheme}", declared, left, own)
        if endpoint.ca_certs is not None:
            _check_authority(endpoint.ca_certs, f"{prefix}_CA_CERTS")
        return endpoint, left


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _clean(name: str, value: str | SecretStr) -> SecretStr:
    """A secret as a request can carry it; a client that meets an unfit one shows it in its error."""
    # Files and variables end in a line break that is no part of it.
    secret = (value.get_secret_value() if isinstance(value, SecretStr) else value).strip("\r\n")
    if name == "api_key":
        secret = secret.strip()
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise InvalidInput(
                "api_key holds a blank, a control character or a letter beyond ASCII: no key does."
            )
    return SecretStr(secret)


def _check_authority(path: str, variable: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        why = (
            "holds no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        )
        raise InvalidInput(
            f"ca_certs is {path!r}, which {why}.\n"
            f"  Give the PEM file of the authority that signed the server's certificate (ca_certs= or {variable})."
        ) from error


def encrypted(url: str, backend: str, operation: str) -> Unavailable:
    """The error of an http URL for a port that encrypts; the same call fails again."""
    message = f"{url} speaks TLS.\n  Use {backend}+{url.replace('http', 'https', 1)}."
    error = Unavailable(message, backend=backend, operation=operation)
    error.retryable = False
    return error


def not_encrypted(url: str, backend: str, operation: str) -> Unavailable:
    """The error of an https URL for a port that does not encrypt; the same call fails again."""
    message = f"{url} does not speak TLS.\n  Use {backend}+{url.replace('https', 'http', 1)}, if the way there is safe."
    error = Unavailable(message, backend=backend, operation=operation)
    error.retryable = False
    return error
