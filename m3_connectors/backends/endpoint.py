"""Where a server is and how to be let in: the options that every networked adapter takes, secrets kept secret."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import SecretStr

from m3_connectors.backends.retry import Patience
from m3_connectors.errors import InvalidInput


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

    @classmethod
    def parse(
        cls,
        url: str,
        options: Mapping[str, Any],
        *,
        default_port: int,
        environment: Mapping[str, str],
        prefix: str,
    ) -> tuple[Endpoint, dict[str, Any]]:
        """The endpoint of ``store+http(s)://[user:password@]host[:port][/path]``, and the options left over.

        Options win over the URL, the URL over the environment (``{prefix}_API_KEY``, ``{prefix}_USERNAME``,
        ``{prefix}_PASSWORD``, ``{prefix}_CA_CERTS``, ``{prefix}_FINGERPRINT``).

        Raises:
            InvalidInput: An unusable URL or option; the message holds no secret.
        """
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[2]
        try:
            port = parts.port or default_port
        except ValueError:
            raise InvalidInput(f"the port of {_shown(parts)} is not a number from 1 to 65535.") from None
        if scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            name = parts.scheme.partition("+")[0]
            raise InvalidInput(
                f"{_shown(parts)} is no server: use {name}+http://HOST:PORT or {name}+https://…."
            )
        left = dict(options)

        def setting(name: str, from_url: str | None = None) -> Any:
            value = left.pop(name, None)
            if value is None:
                value = from_url or environment.get(f"{prefix}_{name.upper()}")
            return value

        def secret(name: str, from_url: str | None = None) -> SecretStr | None:
            value = setting(name, from_url)
            if value is not None and not isinstance(value, str | SecretStr):
                raise InvalidInput(f"{name} is {type(value).__name__}: give a text.")
            return SecretStr(value) if isinstance(value, str) else value

        default = Patience()
        endpoint = cls(
            scheme=scheme,
            host=parts.hostname,
            port=port,
            path=parts.path.rstrip("/"),
            api_key=secret("api_key"),
            username=setting("username", unquote(parts.username) if parts.username else None),
            password=secret("password", unquote(parts.password) if parts.password else None),
            ca_certs=setting("ca_certs"),
            fingerprint=setting("fingerprint"),
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
        return endpoint, left


def refuse_unknown(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise InvalidInput if an option is left that the adapter does not know."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidInput(f"unknown option {unknown[0]!r}; this store takes {', '.join(known) or 'none'}.")


def _shown(parts: SplitResult) -> str:
    """The URL without user and password."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
