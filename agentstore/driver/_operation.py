"""Which call this is: the same id for every attempt at it."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .._ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Iterator

_current: ContextVar[str | None] = ContextVar("agentstore_operation", default=None)


def operation_id() -> str:
    """Name the call that is under way.

    A driver stores it with what the call wrote. When the answer was lost and the call is made
    again, the driver finds its own id there and gives the first answer, not a conflict.
    """
    return _current.get() or uuid7()


@contextmanager
def one_operation() -> Iterator[None]:
    """Make every attempt within the block the same operation."""
    token = _current.set(uuid7())
    try:
        yield
    finally:
        _current.reset(token)
