"""The descriptor of a store: what the package needs to know about a store before its client is imported.

Each store folder has one in its ``store.py``; other distributions declare theirs with an entry point, see
``registry``. A descriptor imports no client library: the adapter is named, and imported on first use.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from m3_connectors.backends.base import Backend
from m3_connectors.errors import InvalidInput, MissingDependency

_SCHEME = re.compile(r"[a-z][a-z0-9-]+(\+https?)?")
_NAME = re.compile(r"\w+(\.\w+)*:\w+")
_NAMES = {"adapter": "class", "disk": "function", "plan": "Formula", "server": "class"}
"""Fields that name what is imported on use, and what it must be."""

_KINDS: Mapping[str, tuple[type, str]] = {
    "schemes": (Sequence, "a tuple of strings"),
    "packages": (Mapping, "a mapping"),
    "examples": (Mapping, "a mapping"),
    "calls": (Sequence, "a tuple of Calls"),
    "ports": (Mapping, "a mapping"),
}
"""What fields of a descriptor must be, which another distribution may get wrong."""

OURS = "m3-connectors"
"""The distribution of the stores of this package."""


CallKind = Literal["coroutine", "grpc", "client"]


@dataclasses.dataclass(frozen=True)
class Calls:
    """A function that every request to a store uses, which ``m3 bench`` wraps to count and time requests.

    Attributes:
        module: The module of the function.
        function: The function, or ``Class.method``.
        kind: ``coroutine``: each call is a request; ``grpc``: its first argument is a stub, and each future
            of the stub is a request; ``client``: it returns an object, and each call of a method is one.
    """

    module: str
    function: str
    kind: CallKind


@dataclasses.dataclass(frozen=True)
class Store:
    """A store, as ``connect`` and the command line find it.

    Attributes:
        name: The name of the store, as ``Backend.name``; the schemes are this name, alone or with ``+http``
            or ``+https``.
        schemes: The schemes of its URLs, such as ``("milvus", "milvus+http", "milvus+https")``.
        adapter: ``module:class`` of the adapter, a ``Backend`` with the class method ``from_url(url,
            collection, options)``.
        takes_path: Whether the URL ``NAME:…`` takes a path on this machine.
        packages: The distributions of its clients, by the name of the module that is imported.
        extra: The extra of ``distribution`` that installs the packages.
        examples: An example URL for each column of the table of capabilities.
        calls: The functions that every request uses.
        disk: ``module:function`` that measures an open collection for ``m3 bench``: ``await function(backend,
            directory)`` returns the bytes on disk by component, or None if they are not known. ``directory`` is that
            of a server that was started here, or None.
        plan: ``module:name`` of the ``backends.planning.Formula`` of ``m3 bench plan``.
        server: ``module:class`` of a ``testing.servers.start.LocalServer``, for tests and benchmarks.
        ports: The ports of the store's container, by the option of ``connect`` that takes each; the first is the
            port of the URL.
        distribution: The distribution that provides the store; set by the registry.
    """

    name: str
    schemes: tuple[str, ...]
    adapter: str
    takes_path: bool = False
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: str | None = None
    examples: Mapping[str, str] = dataclasses.field(default_factory=dict)
    calls: tuple[Calls, ...] = ()
    disk: str | None = None
    plan: str | None = None
    server: str | None = None
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    distribution: str = OURS

    def fault(self) -> str | None:
        """Return what is wrong with the descriptor, or None."""
        for name, (kind, words) in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                return f"has the {name} {value!r}, not {words}"
        for scheme in self.schemes:
            if (
                not isinstance(scheme, str)
                or not _SCHEME.fullmatch(scheme)
                or scheme.partition("+")[0] != self.name
            ):
                return (
                    f"has the scheme {scheme!r}; its schemes are {self.name}, {self.name}+http and "
                    f"{self.name}+https"
                )
        if not self.schemes:
            return "has no scheme"
        for name, what in _NAMES.items():
            value = getattr(self, name)
            if value is None and name != "adapter":
                continue
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                return f"has the {name} {value!r}, not module:{what}"
        return None

    def load(self) -> type[Backend]:
        """Import the adapter.

        Raises:
            MissingDependency: A package of the store is not installed.
            InvalidInput: Another distribution's adapter cannot be imported, or lacks a required answer.
        """
        adapter = self._imported(self.adapter)
        if lacks := _lacks(adapter):
            raise self._fault_of(f"used: {self.adapter} {lacks}")
        found: type[Backend] = adapter
        return found

    def offered(self, field: Literal["disk", "plan", "server"], kind: type = object) -> Any:
        """Import what a field names; None if the store does not offer it.

        Raises:
            MissingDependency: A package of the store is not installed.
            InvalidInput: What another distribution names cannot be imported, or is not a ``kind``.
        """
        name = getattr(self, field)
        found = None if name is None else self._imported(name)
        if name is not None and not isinstance(found, kind):
            raise self._fault_of(f"used: {name} is {found!r}, not a {kind.__module__}.{kind.__name__}")
        return found

    def _imported(self, named: str) -> Any:
        module, _, name = named.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.partition(".")[0] == module.partition(".")[0]:
                if self.distribution == OURS:
                    raise
                raise self._fault_of(f"imported: {type(error).__name__}: {error}") from error
            package = self.packages.get(missing, missing)
            raise MissingDependency(package, self.extra, self.distribution) from error
        except (Exception, SystemExit) as error:
            if self.distribution == OURS:
                raise
            raise self._fault_of(f"imported: {type(error).__name__}: {error}") from error

    def _fault_of(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"the store {self.name}: of {self.distribution} cannot be {what}.\n"
            f"  Update or uninstall {self.distribution}, or report this to its authors."
        )


def _lacks(adapter: Any) -> str:
    """Return which required answers a class lacks, in words; empty if it lacks none."""
    if not (isinstance(adapter, type) and issubclass(adapter, Backend)):
        return "is not a subclass of m3_connectors.backends.base.Backend"
    missing = sorted(adapter.__abstractmethods__)
    missing += [name for name in ("name", "capabilities", "from_url") if not hasattr(adapter, name)]
    return f"does not define {', '.join(missing)}" if missing else ""
