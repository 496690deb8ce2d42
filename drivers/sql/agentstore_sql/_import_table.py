"""Messages that an application keeps in a table of its own, as records to import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Select,
    cast,
    column,
    create_engine,
    inspect,
    make_url,
    select,
)
from sqlalchemy import table as sql_table
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agentstore.errors import (
    AgentStoreError,
    ConfigurationError,
    DataError,
    DriverError,
    MissingDependencyError,
)

from ._sqlite_errors import translate

T = TypeVar("T")

_REQUIRED = ("session_id", "role", "content", "order")
_OF_SESSION = ("user_id", "agent", "title")
_OF_FORMAT = ("role", "content", "name", "tool_calls", "tool_call_id")
_OURS = ("id", "created_at", "tokens", "metadata")
_KNOWN = dict.fromkeys((*_REQUIRED, *_OF_SESSION, *_OF_FORMAT, *_OURS))

_ROWS = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def read_table(
    source: str | URL | Engine | AsyncEngine,
    table: str,
    columns: Mapping[str, str | Sequence[str]],
    *,
    roles: Mapping[str, str] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Read an application's table of messages as records for `import_sessions`, one a session.

    `columns` maps to the table's columns what a message has: `session_id`, `role` and `content`,
    and where the table has them `name`, `tool_calls`, `tool_call_id`, `id`, `created_at`,
    `tokens`, `metadata`, and of its session `user_id`, `agent` and `title`.
    `order` is the column, or the list of them, by which no two messages of a session are equal.
    Without `id`, messages are known by their position: rows that are deleted between two imports
    then make the second a conflict.

    `roles` maps the table's roles to those of OpenAI's chat format.
    A time without a zone is UTC, a number is seconds since 1970.
    An engine that is handed in stays open.
    """
    names = _checked(columns)
    order = names.pop("order")
    fields = {key: name for key, (name, *_) in names.items()}
    record: dict[str, Any] | None = None
    async with aclosing(_rows(source, table, fields, order)) as rows:
        async for values in rows:
            session_id = _value("session_id", values.pop("session_id"))
            if record is None or record["session_id"] != session_id:
                if record is not None:
                    yield record
                record = {"session_id": session_id, "agentstore": {}, "messages": []}
            _add(record, values, roles or {})
    if record is not None:
        yield record


def _checked(columns: Mapping[str, str | Sequence[str]]) -> dict[str, Sequence[str]]:
    for key in columns:
        if key not in _KNOWN:
            raise ConfigurationError(f"columns has {key!r}: known are {', '.join(_KNOWN)}")
    for key in _REQUIRED:
        if key not in columns:
            raise ConfigurationError(f"columns lacks {key!r}: name the table's column for it")
    lists = {key: [name] if isinstance(name, str) else name for key, name in columns.items()}
    for key, names in lists.items():
        if not names or (len(names) > 1 and key != "order"):
            raise ConfigurationError(f"columns has {len(names)} columns for {key!r}: give one")
    return lists


async def _rows(
    source: str | URL | Engine | AsyncEngine,
    table: str,
    fields: Mapping[str, str],
    order: Sequence[str],
) -> AsyncGenerator[dict[str, Any], None]:
    try:
        async with _opened(source) as run:
            statement = await run(lambda connection: _select(connection, table, fields, order))
            result = await run(lambda connection: connection.execute(statement))
            while rows := await run(lambda _: result.fetchmany(_ROWS)):
                for row in rows:
                    yield dict(zip(fields, row, strict=True))
    except DBAPIError as failure:
        error = _translated(failure)
    else:
        return
    # Outside of the handler, as everywhere: the original may hold what is in the table.
    raise error


def _select(
    connection: Connection, table: str, fields: Mapping[str, str], order: Sequence[str]
) -> Select[Any]:
    try:
        there = [str(found["name"]) for found in inspect(connection).get_columns(table)]
    except NoSuchTableError:
        raise ConfigurationError(f"there is no table {table!r}") from None
    for name in (*fields.values(), *order):
        if name not in there:
            raise ConfigurationError(f"{table!r} has no column {name!r}: {', '.join(there)}")
    source = sql_table(table, *map(column, there))
    session_id = source.c[fields["session_id"]]
    by: list[ColumnElement[Any]] = [session_id, *(source.c[name] for name in order)]
    if connection.dialect.name in ("sqlite", "mysql", "mariadb"):
        # Their collations may take "Abc" for "abc", and mix the rows of the two.
        by.insert(1, cast(session_id, LargeBinary))
    chosen = select(*(source.c[name] for name in fields.values()))
    return chosen.order_by(*by).execution_options(yield_per=_ROWS)


class _Run(Protocol):
    def __call__(self, job: Callable[[Connection], T], /) -> Awaitable[T]: ...


@asynccontextmanager
async def _opened(source: str | URL | Engine | AsyncEngine) -> AsyncIterator[_Run]:
    """Connect, and give what runs a job where it doesn't block the loop."""
    made = isinstance(source, str | URL)
    engine = _engine(source) if isinstance(source, str | URL) else source
    if isinstance(engine, AsyncEngine):
        try:
            async with engine.connect() as async_connection:
                yield async_connection.run_sync
        finally:
            if made:
                await engine.dispose()
        return
    loop = asyncio.get_running_loop()
    # One thread for all of it: a connection of sqlite3 stays in the thread that made it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        connection = await loop.run_in_executor(thread, engine.connect)
        try:
            yield lambda job: loop.run_in_executor(thread, job, connection)
        finally:
            await loop.run_in_executor(thread, connection.close)
            if made:
                await loop.run_in_executor(thread, engine.dispose)


def _engine(source: str | URL) -> Engine | AsyncEngine:
    try:
        url = make_url(source)
        asynchronous = url.get_dialect().is_async
        engine = create_async_engine(url) if asynchronous else create_engine(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "the table's database is no URL that SQLAlchemy reads, such as sqlite:///app.db"
        ) from None
    except ImportError as error:
        raise MissingDependencyError(
            f"the table's database needs a package that is missing: run pip install {error.name}"
        ) from None
    database = url.database or ":memory:"
    in_file = url.get_backend_name() == "sqlite" and not database.startswith((":", "file:"))
    if in_file and not Path(database).exists():
        # SQLite would make an empty one.
        raise ConfigurationError(f"there is no file {database}")
    return engine


def _translated(failure: DBAPIError) -> AgentStoreError:
    if getattr(failure.orig, "sqlite_errorcode", None) is not None:
        return translate(failure)
    return DriverError("the table can't be read", code=type(failure.orig).__name__)


def _add(record: dict[str, Any], row: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Add a row to the record of its session."""
    where = f"session {record['session_id']!r}, messages[{len(record['messages'])}]: "
    values = {
        key: _value(key, value, where)
        for key, value in row.items()
        if value is not None or key in ("role", "content")
    }
    for key in _OF_SESSION:
        if key in values and record["agentstore"].setdefault(key, values[key]) != values[key]:
            raise DataError(f"{where}{key} is another than before, and a session has one")
    values["role"] = roles.get(values["role"], values["role"])
    message: dict[str, Any] = {key: values[key] for key in _OF_FORMAT if key in values}
    message["agentstore"] = {key: values[key] for key in _OURS if key in values}
    record["messages"].append(message)


def _value(key: str, value: object, where: str = "") -> Any:  # noqa: ANN401 - any JSON
    if key in ("session_id", "id", "user_id"):
        if not isinstance(value, str | int | UUID):
            raise DataError(f"{where}{key} is {type(value).__name__}: text, an integer or a UUID")
        return str(value)
    if key == "created_at":
        return _time(value, where)
    if key in ("metadata", "tool_calls") and isinstance(value, str | bytes):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise DataError(f"{where}{key} is text, and not JSON") from None
    return value


def _time(value: object, where: str) -> str:
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float):
            value = _EPOCH + timedelta(seconds=value)
    except (ValueError, OverflowError):
        value = None
    if not isinstance(value, datetime):
        raise DataError(f"{where}created_at is no time, as ISO 8601 or in seconds since 1970")
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
