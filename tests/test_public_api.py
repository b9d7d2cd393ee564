"""The public door: what it exports, what it loads, and the error tree as its docstring draws it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import m3_connectors
from m3_connectors import errors

HEAVY = (
    "torch",
    "scipy",
    "qdrant_edge",
    "qdrant_client",
    "pymilvus",
    "elasticsearch",
    "typer",
    "rich",
    "transformers",
    "langchain_core",
    "llama_index",
    "haystack",
    "mteb",
    "mcp",
    "dspy",
    "fastapi",
    "uvicorn",
)


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import m3_connectors", HEAVY),
        ("from m3_connectors import connect", tuple(name for name in HEAVY if name != "scipy")),
        ("import m3_connectors.cli.app", ("torch", "qdrant_edge", "numpy", "pydantic")),
        (
            "import m3_connectors.cli.search, m3_connectors.blocking",
            ("torch", "scipy.linalg", "scipy.sparse.csgraph"),
        ),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_resolves_and_is_listed_once() -> None:
    assert len(set(m3_connectors.__all__)) == len(m3_connectors.__all__)
    for name in m3_connectors.__all__:
        assert getattr(m3_connectors, name) is not None
    assert set(m3_connectors.__all__) == set(m3_connectors._MODULE_OF)
    with pytest.raises(AttributeError, match="nothing_such"):
        m3_connectors.nothing_such  # noqa: B018


def test_the_error_tree_is_the_one_its_docstring_draws() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)(?: \((\w+)\))?(?:  |$)", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        path = [*path[:depth], found[2]]
        drawn[found[2]] = path[-2] if depth else "Exception"
        error = getattr(errors, found[2])
        assert error.__doc__
        assert not found[3] or found[3] in [base.__name__ for base in error.__mro__]
    classes = {
        name: c.__bases__[0].__name__
        for name, c in vars(errors).items()
        if isinstance(c, type) and issubclass(c, Exception)
    }
    assert drawn == classes


def test_backend_errors_say_backend_operation_and_whether_to_retry() -> None:
    error = errors.Throttled("slow down", backend="qdrant", operation="upsert", retry_after_seconds=2.5)
    assert str(error) == "qdrant upsert: slow down"
    assert (error.retryable, error.retry_after_seconds) == (True, 2.5)
    assert not errors.Rejected("no", backend="qdrant", operation="upsert").retryable
    partial = errors.PartialWrite({"a": "too long", "b": "too long"}, backend="qdrant", operation="upsert")
    assert partial.failed == {"a": "too long", "b": "too long"}
    assert "2 documents were not written, the first 'a': too long" in str(partial)


def test_a_missing_dependency_names_the_command_that_installs_it() -> None:
    assert 'pip install "m3-connectors[qdrant]"' in str(errors.MissingDependency("qdrant-edge-py", "qdrant"))
