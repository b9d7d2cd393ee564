"""The table of URL schemes and what opens them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.dead_letters import DeadLetter
from m3_connectors.readers.fields import nearest
from m3_connectors.readers.formats import ReadOptions
from m3_connectors.readers.hub_datasets import is_dataset, read_dataset
from m3_connectors.readers.inputs import Input, Source
from m3_connectors.readers.remote import Excluded, open_files
from m3_connectors.readers.settings import Reader
from m3_connectors.readers.sql import read_sql
from m3_connectors.readers.urls import Url

Opener = Callable[[Url, ReadOptions, Excluded], Iterator[Input | DeadLetter]]
"""Yields the files of a URL, or why some of them are skipped.

Its arguments are the URL, the options, and a function that says whether a file is excluded, given its name and its
path below the URL. An InvalidInput that it raises is about the URL as a whole.
"""


def whole(read: Reader) -> Opener:
    """Return the opener of URLs that a reader reads as a whole, such as a query or a mailbox."""

    def open(url: Url, options: ReadOptions, excluded: Excluded) -> Iterator[Input]:
        yield Input(url, url, url.name, "", limits=options.limits, reader=read)

    return open


def _open_hub(url: Url, options: ReadOptions, excluded: Excluded) -> Iterator[Input | DeadLetter]:
    return (_DATASET if is_dataset(url) else open_files)(url, options, excluded)


_DATABASE = whole(read_sql)
_DATASET = whole(read_dataset)

SCHEMES: dict[str, Opener] = {
    "hf": _open_hub,
    "http": open_files,
    "https": open_files,
    "s3": open_files,
    "gs": open_files,
    "abfs": open_files,
    "zip": open_files,
    "memory": open_files,
    "sqlite": _DATABASE,
    "postgresql": _DATABASE,
    "mysql": _DATABASE,
    "mariadb": _DATABASE,
    "mssql": _DATABASE,
    "oracle": _DATABASE,
    "duckdb": _DATABASE,
}
"""The opener of each URL scheme, in lower case. Those that fsspec knows besides are files too, and a URL with a query
is a database; its driver may follow the scheme, as in ``postgresql+psycopg``.

Your own scheme is one line: ``SCHEMES["imap"] = whole(read_mailbox)``.
"""


def is_database(source: Source) -> bool:
    """Return whether a source is a URL that takes a query: one of a database, or of no known scheme."""
    return isinstance(source, Url) and _opener(source) in (_DATABASE, None)


def _opener(url: Url) -> Opener | None:
    opener = SCHEMES.get(url.scheme) or SCHEMES.get(url.scheme.partition("+")[0])
    is_known = url.scheme in _fsspec_schemes() or "::" in url.text
    return opener or (open_files if is_known else None)


def _fsspec_schemes() -> set[str]:
    from fsspec.registry import known_implementations, registry

    return {*known_implementations, *registry}


def opener_of(url: Url) -> Opener:
    """Return the opener of a URL.

    Raises:
        InvalidInput: Its scheme is unknown, or it is a database without a query, or has a query and is none.
    """
    opener = _opener(url) or (_DATABASE if url.query else None)
    if opener is None:
        near = nearest(url.scheme, {*SCHEMES, *_fsspec_schemes()})
        raise InvalidInput(
            f"{url} has an unknown scheme ({url.scheme}:).\n  "
            + (f"Did you mean {near}:? " if near else "")
            + f"Use a path, or one of {', '.join(SCHEMES)}; a database of another name needs --query."
        )
    if opener is _DATABASE and not url.query:
        raise InvalidInput(
            f"{url} is a database, and no query is given.\n  Give one with --query 'SELECT …'."
        )
    if opener is not _DATABASE and url.query:
        raise InvalidInput(
            f"{url} is no database, so the query {url.query!r:.60} has no effect.\n  Omit the query."
        )
    return opener
