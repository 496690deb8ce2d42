"""What MySQL's and MariaDB's codes mean for a caller."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

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

NO_TABLE = "1146"
NULL = "1048"
"""A column got nothing that may not be empty."""
READ_ONLY = ("1290", "1792", "1836")
"""The server became a replica: every connection to it is of no more use."""
NO_TLS = 2026
TOO_LARGE = 1153
"""The codes that the clients' own connections raise, as MySQL's own client does."""

_BACKEND = "mysql"

_Make: TypeAlias = Callable[[str], AgentStoreError]


def translate(failure: Exception, phase: Phase) -> AgentStoreError:
    """Turn a failure into an error of ours: by its code, and by when it came.

    Neither client's classes say anything: both raise `OperationalError` for most.
    """
    if isinstance(failure, PoolTimeoutError):
        return OverloadedError(
            "every connection of the pool is busy: `pool_timeout` says how long to wait for one",
            backend=_BACKEND,
            code="pool",
        )
    original: BaseException = failure
    if isinstance(failure, DBAPIError) and failure.orig is not None:
        original = failure.orig
    number = original.args[0] if original.args else None
    code = str(number) if isinstance(number, int) and number else type(original).__name__
    if _is_tls(original):
        return _insecure(code)
    if isinstance(original, TimeoutError) and phase != "connect":
        return _silent(phase)
    if code in _LOST or isinstance(original, OSError) or _is_closed(original):
        return _lost(code, original, phase)
    return _CODES.get(code, _bug)(code)


def _is_tls(error: BaseException) -> bool:
    """Tell a refusal of TLS: to the clients it is one more server that can't be reached."""
    return error.args[:1] == (NO_TLS,) or isinstance(error.__cause__ or error, ssl.SSLError)


def _is_closed(error: BaseException) -> bool:
    """Tell what a client says of a connection that it has closed itself: there is no code."""
    return error.args[:1] == (0,) or any(
        word in str(error) for word in ("Not connected", "Cancelled during", "network operation")
    )


def _lost(code: str, error: BaseException, phase: Phase) -> StoreError:
    if phase == "write":
        return OutcomeUnknownError(
            "the connection broke before the answer came",
            backend=_BACKEND,
            code=code,
            outcome_unknown=True,
        )
    if isinstance(error.__cause__, socket.gaierror):
        return UnavailableError("the server's name is unknown", backend=_BACKEND, code=code)
    return UnavailableError("the server can't be reached", backend=_BACKEND, code=code)


def _silent(phase: Phase) -> StoreError:
    return DeadlineError(
        "no answer within `statement_timeout`", backend=_BACKEND, outcome_unknown=phase == "write"
    )


def _insecure(code: str) -> StoreError:
    return TLSError(
        "no encrypted connection: the server offers none, or its certificate is not trusted",
        backend=_BACKEND,
        code=code,
    )


def _stopping(code: str) -> StoreError:
    return UnavailableError("the server starts or stops", backend=_BACKEND, code=code)


def _read_only(code: str) -> StoreError:
    return UnavailableError("the server is read-only, as a replica is", backend=_BACKEND, code=code)


def _refused(code: str) -> StoreError:
    return AuthenticationError("user or password was refused", backend=_BACKEND, code=code)


def _forbidden(code: str) -> StoreError:
    return AuthenticationError("the user lacks a right to do this", backend=_BACKEND, code=code)


def _no_database(code: str) -> ConfigurationError:
    return ConfigurationError(f"there is no such database [{code}]")


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


def _too_large(code: str) -> StoreError:
    return DataError(
        "the value is larger than the server's max_allowed_packet", backend=_BACKEND, code=code
    )


def _data(code: str) -> StoreError:
    return DataError("the server can't store this value", backend=_BACKEND, code=code)


def _bug(code: str) -> StoreError:
    return DriverError("the server refused a statement", backend=_BACKEND, code=code)


# 1927 is MariaDB's for a connection that was killed, 4031 MySQL's for one that was idle too long.
_LOST = ("1159", "1160", "1161", "1927", "2002", "2003", "2005", "2006", "2013", "2055", "4031")
_CODES: dict[str, _Make] = {
    **dict.fromkeys(("1044", "1142", "1143", "1227", "1370"), _forbidden),
    **dict.fromkeys(("1045", "1130", "1251", "1524", "1698", "1862", "2059", "3118"), _refused),
    "1049": _no_database,
    **dict.fromkeys(("1040", "1129", "1203", "1226"), _too_many),
    **dict.fromkeys(("1021", "1037", "1038", "1041", "1114", "3675"), _full),
    **dict.fromkeys(("1053", "1079"), _stopping),
    **dict.fromkeys(READ_ONLY, _read_only),
    **dict.fromkeys(("1020", "1205", "1213", "1637", "3101", "3572"), _locked),
    # Galera's, of a node that is not part of the cluster for now.
    "1047": _stopping,
    **dict.fromkeys(("1317", "1969", "3024"), _cancelled),
    **dict.fromkeys(("1062", "1586"), _taken),
    str(TOO_LARGE): _too_large,
    **dict.fromkeys(("1264", "1292", "1300", "1301", "1366", "1406"), _data),
}
