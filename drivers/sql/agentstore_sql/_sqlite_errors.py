"""What SQLite's result codes mean for a caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from agentstore.errors import (
    CapacityError,
    ConfigurationError,
    ConflictError,
    DataError,
    DriverError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    UnavailableError,
)

FAILURES = (sqlite3.Error, DBAPIError)
"""What a job may raise that is not ours."""

_BACKEND = "sqlite"


def translate(failure: Exception) -> StoreError | ConfigurationError:
    """Turn a failure into an error of ours, by SQLite's extended result code."""
    original = failure.orig if isinstance(failure, DBAPIError) else failure
    code = getattr(original, "sqlite_errorcode", None)
    name = getattr(original, "sqlite_errorname", None) or type(original).__name__
    if code is None:
        # Not from SQLite but from its Python module: a wrong argument, a closed connection.
        return DriverError("the driver made a mistake", backend=_BACKEND, code=name)
    make = _EXTENDED.get(code) or _PRIMARY.get(code & 0xFF) or _bug
    return make(name)


def _busy(name: str) -> StoreError:
    return OverloadedError(
        "the database is locked by another writer: `timeout` says how long to wait",
        backend=_BACKEND,
        code=name,
    )


def _full(name: str) -> StoreError:
    return CapacityError("the disk is full; nothing was written", backend=_BACKEND, code=name)


def _unreadable(name: str) -> StoreError:
    return UnavailableError(
        "the disk failed in the middle of a read; nothing was written",
        backend=_BACKEND,
        code=name,
    )


def _io(name: str) -> StoreError:
    return OutcomeUnknownError(
        "the disk failed in the middle of a write",
        backend=_BACKEND,
        code=name,
        outcome_unknown=True,
    )


def moved(name: str | None = None) -> StoreError:
    """Make the error of a file that is not at its path any more."""
    return UnavailableError(
        "the database file was removed or replaced while it was open: open it again",
        backend=_BACKEND,
        code=name,
    )


def _damaged(name: str) -> StoreError:
    return DriverError(
        "the database file is damaged: restore a backup", backend=_BACKEND, code=name
    )


def _taken(name: str) -> StoreError:
    return ConflictError("what has to be unique is there already", backend=_BACKEND, code=name)


def _large(name: str) -> StoreError:
    return DataError("the value is larger than SQLite takes", backend=_BACKEND, code=name)


def _read_only(name: str) -> ConfigurationError:
    return ConfigurationError(f"the database file is read-only [{name}]")


def _not_a_database(name: str) -> ConfigurationError:
    return ConfigurationError(f"the file is not a SQLite database [{name}]")


def _cannot_open(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"the database file can't be opened: is its directory there and writable? [{name}]"
    )


def _bug(name: str) -> StoreError:
    return DriverError("SQLite refused a statement", backend=_BACKEND, code=name)


_EXTENDED: dict[int, Callable[[str], StoreError | ConfigurationError]] = {
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: _taken,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: _taken,
    sqlite3.SQLITE_IOERR_READ: _unreadable,
    sqlite3.SQLITE_IOERR_SHORT_READ: _unreadable,
    sqlite3.SQLITE_IOERR_SHMSIZE: _full,
    sqlite3.SQLITE_IOERR_WRITE: _full,
    sqlite3.SQLITE_READONLY_DBMOVED: moved,
    sqlite3.SQLITE_READONLY_DIRECTORY: _cannot_open,
}
_PRIMARY: dict[int, Callable[[str], StoreError | ConfigurationError]] = {
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    # Two processes that open the log at once.
    sqlite3.SQLITE_PROTOCOL: _busy,
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_IOERR: _io,
    sqlite3.SQLITE_TOOBIG: _large,
    sqlite3.SQLITE_READONLY: _read_only,
    sqlite3.SQLITE_NOTADB: _not_a_database,
    sqlite3.SQLITE_CANTOPEN: _cannot_open,
    sqlite3.SQLITE_CORRUPT: _damaged,
}
