"""Every error message says what happened, with which value, and what to do next (docs/style.md)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from m3_connectors import errors

PACKAGE = Path(errors.__file__).parent
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.M3Error) and kind is not errors.M3Error
}

COMPOSED = {
    "MissingDependency": "its constructor writes the pip command",
    "PartialWrite": "its constructor lists the documents and reasons",
}
"""Classes whose constructor composes the message, with the reason why their arguments are not checked."""

UNSEEN = "{?}"
"""Stands for a message whose text the source does not show; each must be in ``NEXT_STEP_ELSEWHERE``."""

PASSED_ON = "{error}"
"""The end of a message that adds a place to another message of this package, which has the next step itself."""

REASONS = {
    "readers/columnar.py": "the reason of an unreadable table: one line of a list, behind the table's name",
    "readers/docx.py": "the reason of an unreadable file: one line of a list, behind the file's name",
    "readers/encodings.py": "the reason of an unreadable file: one line of a list, behind the file's name",
    "readers/fields.py": "the reason of an unreadable line: one line of a list, behind the line's number",
    "readers/hub_datasets.py": "the reason of an unreadable dataset: one line of a list, behind its URL",
    "readers/html.py": "the reason of an unreadable page: one line of a list, behind the page's name",
    "readers/inputs.py": "the reason of an unreadable file: one line of a list, behind the file's name",
    "readers/limits.py": "the reason of a file that expands too far: one line of a list, behind the file's name",
    "readers/pages.py": "the reason of an unreadable page: one line of a list, behind the page's name",
    "readers/pdf.py": "the reason of an unreadable file: one line of a list, behind the file's name",
    "readers/remote.py": "the reason of an unreadable file: one line of a list, behind its URL",
    "readers/sql.py": "the reason of an unreadable query: one line of a list, behind the database's URL",
    "readers/xhtml.py": "the reason of an unreadable page: one line of a list, behind the page's name",
}
"""Files whose errors are reasons in the list that ``m3 index`` prints, where one line has room for a file."""

NEXT_STEP_ELSEWHERE = {
    ("backends/registry.py", "store_for"): "a fault of another distribution has its own remedy",
    ("backends/qdrant/edge/backend.py", "_run"): "the reader of rows says what to do; here it gets its class",
    ("records.py", "read_record"): "the caller passes the next step; a check of several keys has its own",
    (
        "cli/opening.py",
        "_load_again",
    ): "the list of what was tried stands between; the last line is the next step",
}
"""Functions whose messages have the next step in a variable."""

_NOTHING = "nothing was passed, or nothing is there, so there is no value"
_STATE = "the state of the object is the value"

WITHOUT_VALUE: Mapping[str, str] = {
    "the server acknowledged the write": "the answer of the server says nothing more",
    "two documents of one upsert": "a store's internal check; Index.add names the id",
    "vectors was called with no ids": _NOTHING,
    "api_key contains": "a secret is not shown",
    "the index is closed": _STATE,
    "this index is closed": _STATE,
    "the call was interrupted": "the caller receives KeyboardInterrupt; this ends its thread",
    "connect returns an Index": _STATE,
    "an AsyncIndex cannot be used": _STATE,
    "the result of aconnect was not awaited": _STATE,
    "explain needs an encoder": _NOTHING,
    "this index has no encoder": _NOTHING,
    "M3Embeddings was created without": _NOTHING,
    "there is nothing to concatenate": _NOTHING,
    "precision='float16' is not supported": "the message has the only value that leads to it",
    "there are no judged queries": _NOTHING,
    "there are no queries to compare": _NOTHING,
    "all three weights are 0": "the message has the only value that leads to it",
    "the value of a query is not finite": "measures are computed, so this cannot be caused by input",
    "the query or a document has no": _NOTHING,
    "a blocking call was made on an AsyncIndex": _STATE,
    'search_type "mmr" is not supported': "the message has the only value that leads to it",
    "the query has neither query_str": _NOTHING,
    "search was called before index": _STATE,
    "explain is true, but the query": "the message has the only value that leads to it",
}
"""The first words of messages without a value, with the reason for each."""

NEXT_STEP = re.compile(r"\n  (?P<verb>\{|[A-Z`]|m3 |pip )[^\n]*$")
"""The last line: indented by two spaces, a sentence or a command."""


@dataclasses.dataclass(frozen=True)
class Raise:
    """One place where an error of this package is created, with one message that it can have.

    Attributes:
        file: Relative to the package.
        line: Counted from 1.
        function: The innermost function.
        kind: The name of the class.
        message: Constants are inserted; other values are their expressions in braces.
    """

    file: str
    line: int
    function: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.kind}({self.message!r})"


def _constants() -> dict[str, str]:
    """Return the text of every module-level string constant of the package, by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                text = _text(node.value, {})
                if text is not None:
                    found[node.targets[0].id] = text
    return found


def _text(node: ast.expr, constants: Mapping[str, str]) -> str | None:
    """Return the text of a literal, an f-string or a sum of them; None for any other expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, constants) or "" for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
            return constants[name]
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [
                constants.get(side.id)
                if isinstance(side, ast.Name) and side.id in constants
                else _text(side, constants) or f"{{{ast.unparse(side)}}}"
                for side in (left, right)
            ]
            return "".join(part or "" for part in parts)
        case _:
            return None


Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where an expression stands: the constants and functions of the package, the innermost function."""

    constants: Mapping[str, str]
    functions: Mapping[str, Function]
    function: Function | None

    def texts(self, node: ast.expr) -> list[str]:
        """Return each text that an expression can have; none if the source does not show it."""
        match node:
            case ast.IfExp(body=one, orelse=other):
                return [*self.texts(one), *self.texts(other)]
            case ast.Name(id=name) if name in self.constants:
                return [self.constants[name]]
            case ast.Name(id=name) if self.function:
                return self._assigned(name, self.function)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                inside = dataclasses.replace(self, function=self.functions[name])
                returned = [
                    one.value for one in ast.walk(self.functions[name]) if isinstance(one, ast.Return)
                ]
                return [text for value in returned if value for text in inside.texts(value)]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="format")) if (
                name in self.constants
            ):
                return [self.constants[name]]
        text = _text(node, self.constants)
        return [] if text is None else [text]

    def _assigned(self, name: str, function: Function) -> list[str]:
        """Return the texts that are assigned to a variable, each with what is appended to it."""
        found, appended = [], ""
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    found += self.texts(value)
                case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                    appended += "".join(self.texts(value))
        return [text + appended for text in found]


def _calls(node: ast.AST, function: Function | None = None) -> Iterator[tuple[Function | None, ast.Call]]:
    """Yield every call below a node with the innermost function that contains it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, child if isinstance(child, Function) else function)


def _imported(tree: ast.Module, known: Mapping[Path, Mapping[str, Function]]) -> dict[str, Function]:
    """Return the functions of the package that a module imports by name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("m3_connectors"):
            source = PACKAGE.parent.joinpath(*node.module.split("."))
            functions = known.get(source.with_suffix(".py"), known.get(source / "__init__.py", {}))
            found |= {
                alias.asname or alias.name: functions[alias.name]
                for alias in node.names
                if alias.name in functions
            }
    return found


def _raises() -> Iterator[Raise]:
    """Yield every message with which an error is created, raised there or returned by a translator."""
    constants = _constants()
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    functions_by_path = {
        path: {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
        for path, tree in trees.items()
    }
    for path, tree in trees.items():
        file = path.relative_to(PACKAGE).as_posix()
        functions = _imported(tree, functions_by_path) | functions_by_path[path]
        for function, node in _calls(tree):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=[first, *_]) if kind in ERRORS - COMPOSED.keys():
                    where = function.name if function else ""
                    for message in Scope(constants, functions, function).texts(first) or [UNSEEN]:
                        yield Raise(file, node.lineno, where, kind, message)


ALL = list(_raises())


def test_the_messages_are_found() -> None:
    # The package has several hundred; far fewer would mean that this file no longer finds them.
    assert len(ALL) > 450


def test_every_message_says_what_to_do_next() -> None:
    lacking = [
        str(one)
        for one in ALL
        if one.file not in REASONS
        and (one.file, one.function) not in NEXT_STEP_ELSEWHERE
        and not one.message.endswith((PASSED_ON, "{remedy}"))
        and not NEXT_STEP.search(one.message)
    ]
    assert not lacking, "\n".join(["Add a second line, '\\n  Do this.', to:", *lacking])


def test_every_message_has_the_value() -> None:
    lacking = [
        str(one)
        for one in ALL
        if one.file not in REASONS
        and "{" not in one.message
        and not one.message.startswith(tuple(WITHOUT_VALUE))
    ]
    assert not lacking, "\n".join(["Insert the value, or list the message in WITHOUT_VALUE:", *lacking])


def test_every_exception_is_needed() -> None:
    files = {one.file for one in ALL}
    assert files >= REASONS.keys()
    assert {(one.file, one.function) for one in ALL} >= NEXT_STEP_ELSEWHERE.keys()
    for start in WITHOUT_VALUE:
        assert any(one.message.startswith(start) and "{" not in one.message for one in ALL), start
    for kind in COMPOSED:
        assert "__init__" in vars(getattr(errors, kind))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            errors.MissingDependency("pyarrow", "eval"),
            'pyarrow is not installed.\n  pip install "m3-connectors[eval]"',
        ),
        (
            errors.PartialWrite({"a": "no"}, backend="memory", operation="upsert"),
            "memory upsert: 1 documents were not written, the first 'a': no",
        ),
    ],
)
def test_composed_messages(kind: errors.M3Error, message: str) -> None:
    assert str(kind) == message
