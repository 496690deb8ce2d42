"""What the system's error codes mean for a caller."""

from __future__ import annotations

import errno
import os

from agentstore.errors import (
    CapacityError,
    ConfigurationError,
    DataError,
    DriverError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    UnavailableError,
)

from ._files import UnsyncedError


def translate(failure: OSError) -> StoreError | ConfigurationError:
    """Turn a failure of the system into an error of ours, by its code."""
    code = errno.errorcode.get(failure.errno or 0, "unknown")
    where = failure.filename or "a file of the store"
    error: StoreError | ConfigurationError
    match failure.errno:
        case _ if isinstance(failure, UnsyncedError):
            error = OutcomeUnknownError("the disk didn't confirm a write", outcome_unknown=True)
            error.retryable = False  # a disk that failed is no better a moment later
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            error = CapacityError("the disk is full; nothing was written")
        case errno.EMFILE | errno.ENFILE | errno.ENOLCK | errno.ENOMEM:
            error = OverloadedError("the system is short of open files, locks or memory")
        case errno.EIO | errno.ENOENT | errno.ESTALE:
            error = UnavailableError(f"{where} can't be reached", retryable=False)
        case errno.ELOOP | errno.EISDIR | errno.ENOTDIR:
            error = DataError(f"{where} is a link or a directory, and has to be a file")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENAMETOOLONG:
            reason = os.strerror(failure.errno)
            return ConfigurationError(f"{where} can't be opened for writing: {reason} [{code}]")
        case _:
            error = DriverError(f"{where} can't be used")
    error.code = code
    return error
