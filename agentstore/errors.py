"""Every error that agentstore raises.

::

    AgentStoreError
    ├── ConfigurationError (ValueError)
    │   ├── DriverNotFoundError (LookupError)
    │   └── MissingDependencyError (ImportError)
    └── StoreError
        ├── UnavailableError
        │   ├── DeadlineError (TimeoutError)
        │   └── OutcomeUnknownError
        ├── OverloadedError
        ├── AuthenticationError
        ├── TLSError
        ├── CapacityError
        ├── ConflictError
        ├── UnsupportedError (NotImplementedError)
        ├── DataError
        │   └── DecryptionError
        ├── ClosedError
        └── DriverError

Whether a failure may be tried again is a fact on the error, set where the failure was seen
(`StoreError.retryable`, `StoreError.outcome_unknown`); nobody further out has to guess.

No message holds a password or the text of a conversation.
"""

from __future__ import annotations

from typing import ClassVar


class AgentStoreError(Exception):
    """The root: catch this to catch everything that agentstore raises."""


class ConfigurationError(AgentStoreError, ValueError):
    """The program is set up wrongly: a URL, an option, a database name, a missing file."""


class DriverNotFoundError(ConfigurationError, LookupError):
    """No installed driver serves the URL's scheme."""


class MissingDependencyError(ConfigurationError, ImportError):
    """A package that this feature needs is not installed; the message has the command."""


class StoreError(AgentStoreError):
    """A store refused, failed or can't be reached.

    `backend` and `operation` say where.
    `code` is the server's own code for the failure, where it has one.
    `retryable` means that the same call may succeed later; it is false once retries are used up.
    `outcome_unknown` means that a write was sent and no answer came: it may have been applied.
    """

    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        backend: str = "",
        operation: str = "",
        code: str | None = None,
        retryable: bool | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.backend = backend
        self.operation = operation
        self.code = code
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.outcome_unknown = outcome_unknown

    def __str__(self) -> str:
        message = str(self.args[0])
        where = " ".join(part for part in (self.backend, self.operation) if part)
        code = f" [{self.code}]" if self.code else ""
        return f"{where}: {message}{code}" if where else f"{message}{code}"


class UnavailableError(StoreError):
    """The backend can't be reached, or says that it can't serve now."""

    retryable_by_default = True


class DeadlineError(UnavailableError, TimeoutError):
    """No answer came within the deadline; for a write, `outcome_unknown` is true."""


class OutcomeUnknownError(UnavailableError):
    """A write was sent and the connection broke: it may or may not have been applied.

    Sending it again under the same id is safe; sending it under a new one may store it twice.
    """


class OverloadedError(StoreError):
    """The store works, but has no room for this call now: a busy pool, a locked database."""

    retryable_by_default = True


class AuthenticationError(StoreError):
    """The credentials were refused, or lack the right to do this."""


class TLSError(StoreError):
    """No connection that is encrypted and verified as asked could be made."""


class CapacityError(StoreError):
    """The disk or the memory of the store is full; nothing was written."""


class ConflictError(StoreError):
    """Another write came first, or an id stands for something else; nothing was written."""


class UnsupportedError(StoreError, NotImplementedError):
    """The backend can't do this, and says so in its capabilities."""


class DataError(StoreError):
    """The value can't be stored as it is, or what is stored can't be read."""


class DecryptionError(DataError):
    """What is stored can't be decrypted with the keys that were given."""


class ClosedError(StoreError):
    """The store is closed, or was not opened."""


class DriverError(StoreError):
    """A bug: a statement the server rejects, a missing table, a code that nobody knows."""
