"""Writes docs/api.md from the docstrings of everything that ``m3_connectors`` exports.

Run it after a change of a public docstring or signature::

    python docs/make_api.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import m3_connectors
from m3_connectors import errors
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.methods import METHODS, Method

PAGE = Path(__file__).with_name("api.md")

_GROUPS = {
    "Opening a collection": (
        "connect",
        "aconnect",
        "list_collections",
        "alist_collections",
        "CollectionInfo",
        "Storage",
    ),
    "An index": ("Index", "AsyncIndex"),
    "What goes in and what comes out": (
        "Document",
        "AddReport",
        "CutDocument",
        "Hit",
        "Passage",
        "Scores",
        "Explanation",
    ),
    "Re-ranking": ("Reranker", "CrossEncoder"),
    "Encoding": ("M3Encoder", "RemoteEncoder", "M3Embeddings", "MultiVectors", "ModelInfo"),
    "Methods and weights": ("Method", "Weights"),
}
_INTRODUCTION = """# Python API

<!-- Written by docs/make_api.py from the docstrings: change those, and run it again. -->

Everything here is imported from `m3_connectors`. The blocking calls of [`Index`](#index) and the awaitable ones of
[`AsyncIndex`](#asyncindex) have the same names, arguments and errors. Filters: {filters}.
Stores and their options: [servers.md](servers.md).

Signatures use these names for types:

- `Query`: a text (`str`), or `M3Embeddings` of one text.
- `RawFilter`: a filter such as `{{"year": {{"$gte": 2020}}}}`.
- `MethodName`: one of the strings {methods}.
- `Component`: one of the strings {components}.
- `WeightsByMethod`: the path of a weights file, or `Weights` by the name of a method.
- `Progress`: a function that is called with the number of documents stored so far.
- `OnCut`: a function that is called with a `CutDocument`.
- `Encoder`: an `M3Encoder`, or anything with its `info`, `recommended_weights`, `encode`, `token_strings` and
  `id_to_token`.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)
_TITLES = {"Args": "Arguments"}
_LONGEST_LINE = 100


def page() -> str:
    """The whole page."""
    has_filters = PAGE.with_name("filters.md").exists()
    filters = "[filters.md](filters.md)" if has_filters else "[cli.md](cli.md#m3-search-url-question)"
    methods, components = (", ".join(f'`"{name}"`' for name in names) for names in (METHODS, COMPONENTS))
    parts = [_INTRODUCTION.format(filters=filters, methods=methods, components=components)]
    for title, names in _GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name) for name in names if name in m3_connectors.__all__]
    parts += [_constants(), _errors()]
    return "\n".join(parts).rstrip() + "\n"


def _entry(name: str) -> str:
    thing = getattr(m3_connectors, name)
    if name == "AsyncIndex":
        calls = ", ".join(f"`{call}`" for call, _ in _members(thing))
        return f"### AsyncIndex\n\n{_described(thing)}\nThe calls of [`Index`](#index), awaited: {calls}.\n"
    if name == "aconnect":
        text = inspect.cleandoc(thing.__doc__ or "").partition("\n")[0]
        return f"### aconnect\n\n{_code(text)}\n\nArguments and errors are those of [`connect`](#connect).\n"
    signature = "" if name == "Index" else f"{_signature(name, thing)}\n"  # connect makes it
    text = f"### {name}\n\n{signature}{_described(thing)}"
    if inspect.isclass(thing):
        for member, of in _members(thing):
            text += f"\n#### {name}.{member}\n\n{_signature(f'{name}.{member}', of)}\n{_described(of)}"
    return text


def _members(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties in the order of the source."""
    for name, member in vars(cls).items():
        of = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and (inspect.isfunction(of) or isinstance(of, property)):
            yield name, of


def _signature(name: str, thing: object) -> str:
    if isinstance(thing, property):
        assert thing.fget is not None
        return f"```text\n{name}: {inspect.signature(thing.fget).return_annotation}\n```\n"
    assert callable(thing)
    signature = inspect.signature(thing)
    shown, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        text = ("**" if parameter.kind is parameter.VAR_KEYWORD else "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        shown.append(text)
    result = (
        ""
        if signature.return_annotation in (signature.empty, None, "None")
        else f" -> {signature.return_annotation}"
    )
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) > _LONGEST_LINE:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){result}"
    return f"```text\n{line}\n```\n"


def _default(value: object) -> str:
    return "…" if repr(value).startswith("<") else repr(value)


def _described(thing: object) -> str:
    """A docstring as Markdown: its text, then its sections as lists."""
    text = inspect.cleandoc(thing.__doc__ or "") + "\n"
    prose = _SECTION.sub("", text).strip()
    parts = [f"{_code(prose)}\n"]
    for section, body in _SECTION.findall(text):
        items = _items(body) if section not in ("Returns", "Yields") else [_joined(body)]
        if len(items) == 1 and section in ("Returns", "Yields"):
            parts.append(f"{section}: {_code(items[0])}\n")
        else:
            lines = "".join(f"- {_item(item)}\n" for item in items)
            parts.append(f"{_TITLES.get(section, section)}:\n\n{lines}")
    return "\n".join(parts)


def _items(body: str) -> list[str]:
    """The items of a section, each in one line; a deeper indent goes on with the item above."""
    items: list[str] = []
    for line in body.splitlines():
        if line.startswith("     "):
            items[-1] += f" {line.strip()}"
        elif line.strip():
            items.append(line.strip())
    return items


def _item(item: str) -> str:
    name, _, text = item.partition(": ")
    names = ", ".join(f"`{one}`" for one in name.split(", "))
    return f"{names}: {_code(text)}" if text else _code(item)


def _joined(body: str) -> str:
    return " ".join(body.split())


def _code(text: str) -> str:
    return text.replace("``", "`")


def _constants() -> str:
    rows = []
    for name in m3_connectors.__all__:
        value = getattr(m3_connectors, name)
        if isinstance(value, Method):
            candidates = ", ".join(
                f"{component} top {depth:,}" for component, depth in value.candidates.items()
            )
            weights = " ".join(f"{weight:g}" for weight in value.weights)
            rows.append(f"| `{name}` | `{value.name!r}` | {candidates} | {weights} |\n")
    presets = "".join(
        f"- `{name}`: {', '.join(f'{method} {tuple(weights)}' for method, weights in value.items())}\n"
        for name in m3_connectors.__all__
        if isinstance(value := getattr(m3_connectors, name), dict)
    )
    return (
        "### The five methods\n\n| constant | as a name | candidates | weights of dense, sparse, multivector |\n"
        f"|---|---|---|---|\n{''.join(rows)}\n"
        f"The paper's weights by method: `Method.weighted(*weights)` uses them.\n\n{presets}"
    )


def _errors() -> str:
    drawn = inspect.cleandoc(errors.__doc__ or "")
    head, _, rest = drawn.partition("\n\n")
    tree, _, tail = rest.partition("\n\n")
    tree = inspect.cleandoc("\n" + tree)
    attributes = [
        f"- `{name}`: {_code(' '.join((cls.__doc__ or '').split('Attributes:')[1].split()))}\n"
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception) and "Attributes:" in (cls.__doc__ or "")
    ]
    return (
        f"## Errors\n\n{head} They are in `m3_connectors.errors`; `M3Error`, `InvalidInput`, `ModelMismatch` and "
        f"`BackendError` also in `m3_connectors`.\n\n```text\n{tree}\n```\n\n{_code(tail)}\n\nAttributes:\n\n"
        + "".join(attributes)
    )


def grouped() -> set[str]:
    """The public names that have a place on the page."""
    constants = {
        name
        for name in m3_connectors.__all__
        if isinstance(getattr(m3_connectors, name), Method | dict)
        or (
            inspect.isclass(getattr(m3_connectors, name))
            and issubclass(getattr(m3_connectors, name), Exception)
        )
    }
    return constants.union(*_GROUPS.values())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
