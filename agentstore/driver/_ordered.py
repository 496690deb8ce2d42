"""A whole driver over any engine with ordered keys and transactions.

The engine brings `transact`; how conversations and state lie in it is told in `_ordered_keys`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from ..stores import API_VERSION
from ..types import Capabilities, Scope
from ._ordered_conversations import OrderedConversations
from ._ordered_keys import Batch, Transaction
from ._ordered_state import OrderedState

__all__ = ["OrderedDriver", "Transaction"]

T = TypeVar("T")


class OrderedDriver(ABC):
    """Conversations and state by every rule of the contract, for a subclass that has an engine.

    Every call of a store is one call of `transact` (a long window takes several).
    """

    api_version = API_VERSION

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do; final once it is open."""

    @abstractmethod
    async def open(self) -> None:
        """Open the engine."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, and let go of everything that `open` took."""

    @abstractmethod
    async def ping(self) -> None:
        """Ask the engine for a sign of life, or raise."""

    @abstractmethod
    async def transact(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        """Run `work` in one transaction, and give what it gives.

        `work` sees one snapshot, and its writes are durable when this returns.
        Two transactions that write the same key run one after the other, reads included, or one
        of them runs again: snapshot isolation is enough.

        `work` waits for nothing but the engine, so it may run in a thread. It keeps nothing of a
        run, so it may run again. Without `write` it only reads.
        It reads first and then writes: after its first `put` or `delete` it neither reads nor
        raises. What it raises before goes to the caller as it is.
        """

    def conversations(self, tenant: str) -> OrderedConversations:
        """Give the conversations of a tenant."""
        return OrderedConversations(self, tenant)

    def state(self, tenant: str, scope: Scope) -> OrderedState:
        """Give the state of a scope."""
        return OrderedState(self, tenant, scope)

    async def _look(self, work: Callable[[Batch], T]) -> T:
        """Read in one transaction."""
        return await self.transact(lambda tx: work(Batch(tx)), write=False)

    async def _change(self, work: Callable[[Batch], T]) -> T:
        """Read, and then write, in one transaction."""

        def run(tx: Transaction) -> T:
            batch = Batch(tx)
            result = work(batch)
            batch.flush()
            return result

        return await self.transact(run, write=True)
