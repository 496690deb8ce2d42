"""What the stores need of an engine: two ways to run a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from agentstore.types import Durability

from ._statements import Statements

T = TypeVar("T")


class Engine(Protocol):
    """A job is a plain function over a SQLAlchemy connection.

    Where it runs is the engine's business: in SQLite's thread, or on the loop in a greenlet.
    """

    statements: Statements
    durability: Durability
    """How safe a write is once its job has ended."""

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run a job that only reads, on one snapshot."""

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run a job in a transaction of its own: when this returns, it is durable."""
