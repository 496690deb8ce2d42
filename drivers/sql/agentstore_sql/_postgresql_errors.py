"""What PostgreSQL's codes, and asyncpg's exceptions without one, mean for a caller."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agentstore.errors import (
    AgentStoreError,
    AuthenticationError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    DataError,
    DeadlineError,
    DriverError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    TLSError,
    UnavailableError,
)

from ._pooled import Phase

FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    AsyncAdapt_asyncpg_dbapi.Error,
    DBAPIError,
    PoolTimeoutError,
    OSError,  # connecting raises it as it is, and with it the errors of ssl and of timeouts
)
"""What a call may raise that is not ours."""

READ_ONLY = "25006"
"""The server became a standby: every connection to it is of no more use."""

_BACKEND = "postgresql"

_Make: TypeAlias = Callable[[str], AgentStoreError]


def translate(failure: Exception, phase: Phase) -> AgentStoreError:
    """Turn a failure into an error of ours: by its SQLSTATE, and by when it came."""
    if isinstance(failure, PoolTimeoutError):
        return OverloadedError(
            "every connection of the pool is busy: `pool_timeout` says how long to wait for one",
            backend=_BACKEND,
            code="pool",
        )
    original: BaseException | None = failure
    if isinstance(failure, DBAPIError):
        original = failure.orig
    if isinstance(original, AsyncAdapt_asyncpg_dbapi.Error):
        original = original.__cause__ or original
    code: str | None = getattr(original, "sqlstate", None)
    if code is None:
        return _of_the_client(original, phase)
    if code[:2] == "08" or code in ("57P01", "57P02", "57P05"):
        return _lost(code, phase)
    make = _CODES.get(code) or _CLASSES.get(code[:2]) or _bug
    return make(code)


def _of_the_client(error: BaseException | None, phase: Phase) -> AgentStoreError:
    """Translate what asyncpg or the network says without the server."""
    name = type(error).__name__
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"the URL's options can't be used [{name}]")
    if isinstance(error, asyncpg.DataError):
        return _data(name)
    if phase == "connect" and _is_tls(error):
        return _insecure(name)
    if isinstance(error, TimeoutError) and phase != "connect":
        return _silent(name, phase)
    # asyncpg has one class for a connection that is closed and for a wrong use of it.
    closed = isinstance(error, asyncpg.InterfaceError) and "closed" in str(error)
    if closed or isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched):
        return _lost(name, phase)
    return _bug(name)


def _is_tls(error: BaseException | None) -> bool:
    """Tell a refusal of TLS from a server that is gone.

    asyncpg raises a plain ConnectionError for both; one that nobody knows is of TLS, so that no
    trick with certificates looks like an outage.
    """
    if type(error) is ConnectionError:
        return "connection_lost()" not in str(error)
    return isinstance(error, ssl.SSLError)


def _lost(code: str, phase: Phase) -> StoreError:
    if phase == "write":
        return OutcomeUnknownError(
            "the connection broke before the answer came",
            backend=_BACKEND,
            code=code,
            outcome_unknown=True,
        )
    if code == socket.gaierror.__name__:
        return UnavailableError("the server's name is unknown", backend=_BACKEND, code=code)
    return UnavailableError("the server can't be reached", backend=_BACKEND, code=code)


def _silent(code: str, phase: Phase) -> StoreError:
    return DeadlineError(
        "no answer within `statement_timeout`",
        backend=_BACKEND,
        code=code,
        outcome_unknown=phase == "write",
    )


def _insecure(code: str) -> StoreError:
    return TLSError(
        "no encrypted connection: the server offers none, or its certificate is not trusted",
        backend=_BACKEND,
        code=code,
    )


def _starting(code: str) -> StoreError:
    return UnavailableError("the server starts or stops", backend=_BACKEND, code=code)


def _read_only(code: str) -> StoreError:
    return UnavailableError("the server is a standby, and read-only", backend=_BACKEND, code=code)


def _refused(code: str) -> StoreError:
    return AuthenticationError("user or password was refused", backend=_BACKEND, code=code)


def _forbidden(code: str) -> StoreError:
    return AuthenticationError("the role lacks a right to do this", backend=_BACKEND, code=code)


def _no_database(code: str) -> ConfigurationError:
    return ConfigurationError(f"there is no such database or schema [{code}]")


def _too_many(code: str) -> StoreError:
    return OverloadedError("the server has no connection to spare", backend=_BACKEND, code=code)


def _cancelled(code: str) -> StoreError:
    return OverloadedError(
        "the server gave the statement up: `statement_timeout` says how long it may take",
        backend=_BACKEND,
        code=code,
    )


def _locked(code: str) -> StoreError:
    return OverloadedError("another transaction was in the way", backend=_BACKEND, code=code)


def _full(code: str) -> StoreError:
    return CapacityError("the server's disk or memory is full", backend=_BACKEND, code=code)


def _taken(code: str) -> StoreError:
    return ConflictError("another write came first", backend=_BACKEND, code=code)


def _data(code: str) -> StoreError:
    return DataError("PostgreSQL can't store this value", backend=_BACKEND, code=code)


def _bug(code: str) -> StoreError:
    return DriverError("PostgreSQL refused a statement", backend=_BACKEND, code=code)


_CODES: dict[str, _Make] = {
    READ_ONLY: _read_only,
    "23505": _taken,
    "3D000": _no_database,
    "3F000": _no_database,
    "40001": _locked,
    "40P01": _locked,
    "42501": _forbidden,
    "53300": _too_many,
    "55P03": _locked,
    "57014": _cancelled,
    "57P03": _starting,
    "57P04": _no_database,
}
_CLASSES: dict[str, _Make] = {
    "22": _data,
    "28": _refused,
    "53": _full,
    "54": _data,
}
