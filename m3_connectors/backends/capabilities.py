"""What can be asked of a store and may be refused, as data: ``python -m m3_connectors.backends`` prints who does what.

A store that declares a capability passes the clauses that are named with it; one that does not raises ``Unsupported``,
which names the capability and a call that works.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from m3_connectors.errors import InvalidInput, Unsupported


@dataclasses.dataclass(frozen=True)
class _Request:
    """One thing that a user can ask for.

    Attributes:
        what: It, in words.
        call: How it is asked for.
        instead: What works where it is not.
        options: Those of ``connect`` that ask for it.
        clauses: Of the contract (``backends.base``), which hold it.
    """

    what: str
    call: str
    instead: str
    options: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()


class Capability(enum.Enum):
    """One thing that a user can ask for and not every store, or not every server, does."""

    PERSISTENT = _Request(
        "keep the data after the program",
        'connect("STORE:PATH")',
        "Use qdrant:DIRECTORY, milvus:FILE.db or a server.",
        clauses=("b04",),
    )
    EXACT = _Request(
        "search without approximate lists",
        "search(…, exact=True)",
        "Search with exact=False, or let the collection allow it (Qdrant: search_allow_exact of its strict mode).",
        clauses=("b16", "b24"),
    )
    KEY = _Request(
        "let in by a key or token",
        "api_key=…",
        "Leave it out, or name a server that asks for one.",
        ("api_key", "allow_unencrypted_key"),
    )
    PASSWORD = _Request(
        "let in by name and password",
        "username=…, password=…",
        "Give api_key=… to a server, and nothing to a store in this process.",
        ("username", "password"),
    )
    AUTHORITY = _Request(
        "trust an authority of one's own",
        "ca_certs=FILE",
        "Leave it out, or name a server: STORE+https://HOST.",
        ("ca_certs",),
    )
    FINGERPRINT = _Request(
        "trust one certificate by its SHA-256",
        "fingerprint=…",
        "Give a server ca_certs=FILE (a self-signed certificate is its own authority).",
        ("fingerprint",),
    )
    UNVERIFIED = _Request(
        "leave certificates unchecked",
        "verify=False",
        "Give a server ca_certs=FILE (a self-signed certificate is its own authority).",
        ("verify",),
    )
    DEADLINES = _Request(
        "choose deadlines and tries",
        "timeout_seconds=…, attempts=…, total_seconds=…",
        "Leave them out: there is no network between.",
        ("timeout_seconds", "attempts", "total_seconds"),
    )
    REFRESH = _Request(
        "choose when writes are searched",
        "refresh=…",
        "Leave it out: a write is searched when it returns.",
        ("refresh",),
    )
    SHARDS = _Request(
        "spread a new collection over shards",
        "shards=…",
        "Leave it out: the store spreads by itself, or not at all.",
        ("shards",),
    )
    REPLICAS = _Request(
        "choose the copies of a new collection",
        "replicas=…",
        "Leave it out, and set copies in the server.",
        ("replicas",),
    )
    FIELD_INDEXES = _Request(
        "index chosen metadata fields",
        "indexes={…}",
        "Leave it out: filters work on every field.",
        ("indexes",),
    )
    DENSE_INDEX = _Request(
        "choose the dense index",
        "index=…",
        "Leave it out: the store has one kind.",
        ("index",),
    )

    @property
    def asked(self) -> str:
        """The call that asks for it."""
        return self.value.call

    @property
    def clauses(self) -> tuple[str, ...]:
        """Beginnings of the names of the conformance tests that hold it."""
        return self.value.clauses


def require(where: str, declared: Collection[Capability], asked: Iterable[Capability]) -> None:
    """Refuse what is asked and not declared.

    Args:
        where: The store, for the message.
        declared: What it does.
        asked: What is wanted of it.

    Raises:
        Unsupported: Names the first capability that is missing and what works instead.
    """
    for capability in asked:
        if capability not in declared:
            raise Unsupported(
                f"{where} does not take {capability.value.call} (capability {capability.name}: "
                f"{capability.value.what}).\n  {capability.value.instead}"
            )


def refuse_unknown(
    where: str, declared: Collection[Capability], options: Mapping[str, Any], known: tuple[str, ...] = ()
) -> None:
    """Refuse options that are left over and not the adapter's own.

    Args:
        where: The store, for the message.
        declared: What it does.
        options: Left over.
        known: The adapter's own.

    Raises:
        Unsupported: Another store takes such an option.
        InvalidInput: None does.
    """
    unknown = sorted(set(options) - set(known))
    for name in unknown:
        require(
            where, declared, [capability for capability in Capability if name in capability.value.options]
        )
    if unknown:
        taken = {name for capability in declared for name in capability.value.options} | set(known)
        raise InvalidInput(
            f"unknown option {unknown[0]!r}; {where} takes {', '.join(sorted(taken)) or 'none'}."
        )


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something that a user should know about a server or a collection.

    Attributes:
        what: It, in one line.
        remedy: What to do about it.
        is_problem: It does not work so; otherwise it could be better.
    """

    what: str
    remedy: str
    is_problem: bool = True


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself; what it does not tell these credentials is left out.

    Attributes:
        url: Where it is, without secrets.
        version: Its own version.
        details: More, by name, such as ``licence``.
        remarks: What is wrong or could be better.
    """

    url: str
    version: str | None = None
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
