"""The optional features of stores, as data: ``python -m m3_connectors.backends`` prints them as a table.

A store that declares a capability passes the conformance clauses listed for it. A store that does not declare
it raises ``Unsupported``, which names the capability and a call that works.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from m3_connectors.errors import InvalidInput, Unsupported


@dataclasses.dataclass(frozen=True)
class _Request:
    """One feature that a user can request.

    Attributes:
        what: What it does, in words.
        call: The call or option that requests it.
        instead: What to do where the feature is not supported.
        options: The options of ``connect`` that request it.
        clauses: The clauses of the contract (``backends.base``) that test it.
    """

    what: str
    call: str
    instead: str
    options: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()


class Capability(enum.Enum):
    """A feature that a user can request and that some stores or servers do not support."""

    PERSISTENT = _Request(
        "keep the data after the program",
        'connect("STORE:PATH")',
        "Use qdrant:DIRECTORY, milvus:FILE.db or a server.",
        clauses=("b04",),
    )
    EXACT = _Request(
        "search without approximate lists",
        "search(…, exact=True)",
        "Use exact=False, or allow exact searches of the collection (Qdrant: search_allow_exact in its "
        "strict mode).",
        clauses=("b16", "b24"),
    )
    ADD_COMPONENT = _Request(
        "add a component to the documents that are stored",
        'add_component("multivector")',
        "Index the documents into a new collection that stores the component.",
        clauses=("b28",),
    )
    KEY = _Request(
        "authenticate with an API key or token",
        "api_key=…",
        "Leave the option out, or use the URL of a server that requires a key.",
        ("api_key", "allow_unencrypted_key"),
    )
    PASSWORD = _Request(
        "authenticate with a username and password",
        "username=…, password=…",
        "Use api_key=… for a server, and no credentials for a store in this process.",
        ("username", "password"),
    )
    AUTHORITY = _Request(
        "use a custom CA",
        "ca_certs=FILE",
        "Leave the option out, or use the URL of a server: STORE+https://HOST.",
        ("ca_certs",),
    )
    FINGERPRINT = _Request(
        "trust one certificate by its SHA-256",
        "fingerprint=…",
        "Use ca_certs=FILE (a self-signed certificate is its own CA certificate).",
        ("fingerprint",),
    )
    UNVERIFIED = _Request(
        "disable certificate verification",
        "verify=False",
        "Use ca_certs=FILE (a self-signed certificate is its own CA certificate).",
        ("verify",),
    )
    DEADLINES = _Request(
        "configure timeouts and retries",
        "timeout_seconds=…, attempts=…, total_seconds=…",
        "Leave these options out: this store does not use a network.",
        ("timeout_seconds", "attempts", "total_seconds"),
    )
    REFRESH = _Request(
        "choose when writes become visible to searches",
        "refresh=…",
        "Leave the option out: a write is visible to searches as soon as the call returns.",
        ("refresh",),
    )
    SHARDS = _Request(
        "choose the number of shards of a new collection",
        "shards=…",
        "Leave the option out: the store chooses the number of shards itself, or does not use shards.",
        ("shards",),
    )
    REPLICAS = _Request(
        "choose the number of replicas of a new collection",
        "replicas=…",
        "Leave the option out, and configure replication on the server.",
        ("replicas",),
    )
    FIELD_INDEXES = _Request(
        "index selected metadata fields",
        "indexes={…}",
        "Leave the option out: filters work on every field without it.",
        ("indexes",),
    )
    COMPACT = _Request(
        "store multi-vector rows in 8, 4, 2 or 1 bits for each value",
        'Storage(multivector_dtype="int8"), "int4", "int2" or "int1"',
        'Use multivector_dtype="float16", or a store that supports it.',
        clauses=("b12", "b20_b21"),
    )
    DENSE_INDEX = _Request(
        "choose the type of the dense index",
        "index=…",
        "Leave the option out: the store has only one type of dense index.",
        ("index",),
    )

    @property
    def asked(self) -> str:
        """The call or option that requests it."""
        return self.value.call

    @property
    def clauses(self) -> tuple[str, ...]:
        """Prefixes of the names of the conformance tests that test it."""
        return self.value.clauses


def require(where: str, declared: Collection[Capability], asked: Iterable[Capability]) -> None:
    """Refuse capabilities that are requested but not declared.

    Args:
        where: The store's name, for the message.
        declared: The capabilities of the store.
        asked: The capabilities that are requested.

    Raises:
        Unsupported: A capability is missing; the message names the first one and an alternative.
    """
    for capability in asked:
        if capability not in declared:
            raise Unsupported(
                f"{where} does not support {capability.value.call} (capability {capability.name}: "
                f"{capability.value.what}).\n  {capability.value.instead}"
            )


def refuse_unknown(
    where: str, declared: Collection[Capability], options: Mapping[str, Any], known: tuple[str, ...] = ()
) -> None:
    """Refuse options that neither the connection nor the adapter used.

    Args:
        where: The store's name, for the message.
        declared: The capabilities of the store.
        options: The options that are left over.
        known: The names of the adapter's own options.

    Raises:
        Unsupported: The option belongs to a capability that this store does not have.
        InvalidInput: No store has such an option.
    """
    unknown = sorted(set(options) - set(known))
    for name in unknown:
        require(
            where, declared, [capability for capability in Capability if name in capability.value.options]
        )
    if unknown:
        taken = {name for capability in declared for name in capability.value.options} | set(known)
        raise InvalidInput(
            f"{unknown[0]!r} is not an option of {where}.\n"
            f"  Leave it out; {where} takes {', '.join(sorted(taken)) or 'no options'}."
        )


@dataclasses.dataclass(frozen=True)
class Remark:
    """A finding about a server or a collection that a user should know.

    Attributes:
        what: The finding, in one line.
        remedy: What to do about it.
        is_problem: True if something does not work; False if it works and could be better.
    """

    what: str
    remedy: str
    is_problem: bool = True


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What a server reports about itself; what these credentials may not read is left out.

    Attributes:
        url: The server's URL, without secrets.
        version: The version of the server.
        details: Other facts by name, such as ``licence``.
        remarks: Problems and possible improvements.
    """

    url: str
    version: str | None = None
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
