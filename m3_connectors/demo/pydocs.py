"""Read the documentation of this Python from source files without importing them."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

COMPILED = ("builtins", "math", "itertools", "time", "sys", "posix", "zlib", "array", "select", "unicodedata")
"""Standard library modules without a Python source file; importing them has no side effects."""

_LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "testing",
        "idlelib",
        "lib2to3",
        "site-packages",
        "turtledemo",
        "ensurepip",
        "_vendor",
        "vendor",
    }
)
_SHORTEST = 40
_LONGEST = 1200
"""The maximum number of characters of a docstring; later ones are rarely part of the description."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One documented object.

    Attributes:
        name: The qualified name with its module, such as ``pathlib.Path.exists``.
        signature: The arguments in parentheses; empty for modules and classes.
        docstring: The docstring without indentation.
        kind: ``module``, ``class`` or ``function``.
    """

    name: str
    signature: str
    docstring: str
    kind: str

    @property
    def text(self) -> str:
        """The text that is indexed: name, signature and documentation."""
        return f"{self.name}{self.signature}\n{self.docstring[:_LONGEST]}"

    @property
    def summary(self) -> str:
        """The first paragraph as one line."""
        return " ".join(self.docstring.partition("\n\n")[0].split())

    @property
    def details(self) -> str:
        """The text after the first paragraph."""
        return self.docstring.partition("\n\n")[2].strip()[:_LONGEST]


def collect(limit: int) -> list[Entry]:
    """Return public documented objects: first the standard library, then installed packages, in fixed order.

    Args:
        limit: The maximum number of entries.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    entries = list(_unique([*_compiled(), *_from_sources(standard, limit)]))
    if len(entries) < limit:
        installed = Path(sysconfig.get_path("purelib"))
        entries = list(_unique([*entries, *_from_sources(installed, limit - len(entries))]))
    return entries[:limit]


def _from_sources(root: Path, limit: int) -> Iterator[Entry]:
    """Yield entries of the files below a folder until the limit, in a file order that mixes packages."""
    found = 0
    for path in sorted(_source_files(root), key=lambda path: _mix(path.relative_to(root).as_posix())):
        for entry in _entries(path, root):
            yield entry
            found += 1
        if found >= limit:
            return


def _source_files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        private = any(part.startswith("_") and part != "__init__.py" for part in parts)
        if not private and not _LEFT_OUT.intersection(parts):
            yield path


def _entries(path: Path, root: Path) -> Iterator[Entry]:
    module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escape sequences in other packages
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates and tests of parsers are not valid Python
        return
    yield from _documented(tree, module)


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[Entry]:
    if isinstance(node, ast.Module):
        yield from _entry(name, "", ast.get_docstring(node), "module")
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
            inner = f"{name}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from _entry(inner, "", ast.get_docstring(child), "class")
                yield from _documented(child, inner)
            else:
                yield from _entry(inner, f"({ast.unparse(child.args)})", ast.get_docstring(child), "function")


def _compiled() -> Iterator[Entry]:
    for name in COMPILED:
        try:
            module = importlib.import_module(name)
        except ImportError:  # posix, on Windows
            continue
        yield from _members(module, name.replace("posix", "os"))


def _members(owner: ModuleType | type, name: str) -> Iterator[Entry]:
    for key, value in sorted(vars(owner).items()):
        if key.startswith("_") or not callable(value):
            continue
        kind = "class" if isinstance(value, type) else "function"
        try:
            signature = str(inspect.signature(value)) if kind == "function" else ""
        except (ValueError, TypeError):
            signature = ""
        yield from _entry(f"{name}.{key}".removeprefix("builtins."), signature, inspect.getdoc(value), kind)
        if isinstance(value, type) and isinstance(owner, ModuleType) and not issubclass(value, BaseException):
            yield from _members(value, f"{name}.{key}")


def _entry(name: str, signature: str, docstring: str | None, kind: str) -> Iterator[Entry]:
    if docstring and len(docstring) >= _SHORTEST:
        yield Entry(name, signature if len(signature) <= 200 else "(…)", docstring, kind)


def _unique(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the first entry of each name and docstring, because subclasses often repeat docstrings."""
    names: set[str] = set()
    docstrings: set[str] = set()
    for entry in entries:
        if entry.name not in names and entry.docstring not in docstrings:
            names.add(entry.name)
            docstrings.add(entry.docstring)
            yield entry


def _mix(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
