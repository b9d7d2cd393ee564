"""Read the rows of a database: the result of one query, a few rows in memory at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome, Skipped, outcome_of
from m3_connectors.readers.settings import ReadSettings
from m3_connectors.readers.urls import Url
from m3_connectors.readers.values import NotStorable, storable_value

if TYPE_CHECKING:
    import sqlalchemy

_ROWS_AT_ONCE = 1000
_READS = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|with|values|table|from|show|call|exec|execute)\b",
    re.IGNORECASE | re.DOTALL,
)
"""What a query may begin with. Some databases do not roll back other statements, such as DROP."""


def read_sql(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the rows of a query as documents. The transaction is rolled back: nothing is written.

    The id must be a column, because the rows of a database have no order of their own. Values without a form in JSON
    are left out, which is reported once for each column.

    Raises:
        MissingDependency: SQLAlchemy or the driver is not installed.
        InvalidInput: The database or the query failed, or columns are missing; the message contains only the reason.
    """
    url = file.path
    assert isinstance(url, Url)
    with _translated(url), _rows(url) as result:
        if not result.returns_rows:
            raise InvalidInput("the query returns no rows: use a SELECT")
        names = list(result.keys())
        _check(names, settings.fields)
        left_out: set[str] = set()
        for number, row in enumerate(result, 1):
            record: dict[str, Any] = {}
            for name, value in zip(names, row, strict=True):
                try:
                    stored = storable_value(value)
                except NotStorable as error:
                    if name not in left_out:
                        left_out.add(name)
                        yield Skipped(
                            None,
                            f"the column {name!r} was left out where JSON has no {error}",
                            is_column=True,
                        )
                    continue
                if stored is not None or settings.fields.is_needed(name):
                    record[name] = stored
            if not any(map(settings.fields.is_id, record)):
                # An id from the position of the row would be that of another row in the next run.
                name = next(filter(settings.fields.is_id, left_out))
                yield Skipped(
                    number, f"no id, because JSON has no values such as {name!r} has: convert it in the query"
                )
                continue
            yield outcome_of(record, settings.fields, f"{file.name}:{number}", number)


@contextlib.contextmanager
def _rows(url: Url) -> Iterator[sqlalchemy.CursorResult[Any]]:
    import sqlalchemy

    if not url.query:
        raise InvalidInput("a database needs a query: give it with --query")
    if not _READS.match(url.query):
        raise InvalidInput(f"the query begins with {url.query.strip()[:20]!r}, and not with SELECT or WITH")
    try:
        engine = sqlalchemy.create_engine(url.text, poolclass=sqlalchemy.NullPool)
    except ValueError as error:  # such as a port that is no number
        raise InvalidInput(f"the URL cannot be used: {error}") from None
    file = engine.url.database or ""
    if (
        engine.dialect.name == "sqlite"
        and not file.startswith((":memory:", "file:"))
        and not Path(file).exists()
    ):
        raise InvalidInput("no such file")  # SQLite would create it
    try:
        # The driver gets the text as it is: a colon or percent sign in it is no parameter.
        options = {"stream_results": True, "yield_per": _ROWS_AT_ONCE, "no_parameters": True}
        with engine.connect() as connection:
            yield connection.exec_driver_sql(url.query, execution_options=options)
    finally:
        engine.dispose()


def _check(names: list[str], fields: Fields) -> None:
    if len(set(names)) < len(names):
        raise InvalidInput(f"two columns have the same name: {names} (rename one in the query with AS)")
    fields.check(names)
    unknown = fields.unknown(names)
    if unknown is not None:
        raise InvalidInput(unknown)
    if not any(map(fields.is_id, names)):
        raise InvalidInput(
            f"no column id or _id, only {names}: choose the id column with --id, because rows have no fixed order"
        )


@contextlib.contextmanager
def _translated(url: Url) -> Iterator[None]:
    """Translate the errors of SQLAlchemy and of drivers; their messages may contain the password."""
    try:
        import sqlalchemy
    except ImportError:
        raise MissingDependency("sqlalchemy", "sql") from None
    try:
        yield
    except sqlalchemy.exc.NoSuchModuleError:
        raise InvalidInput(f"SQLAlchemy knows no database {url.scheme!r}: install its dialect") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        original = getattr(error, "orig", None) or error
        reason = (str(original) or type(original).__name__).splitlines()[0]
        raise InvalidInput(f"the database failed: {url.without_secrets(reason)}") from None
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or url.scheme, None) from None
