"""A database: conversations and state on the stores that URLs name."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import _validate as check
from ._engine import Timeouts, engines, fitting
from ._turns import Turn, Turns
from .conversations import Conversations
from .errors import AgentStoreError, ConfigurationError
from .state import State, States, every
from .stores import Driver
from .types import Capabilities, EngineHealth, ErasureReceipt, Health, Limits, Scope
from .wrappers import Bound

if TYPE_CHECKING:
    from .sync import SyncDatabase

__all__ = ["Database", "connect"]

_PAGE = 100

_PAGE = 100


class Database:
    """Conversations and state, of one tenant.

    Made by `connect()` for the event loop that runs, or by `db()` for everybody.
    """

    def __init__(
        self,
        driver: Driver,
        state_driver: Driver | None = None,
        *,
        tenant: str = "",
        limits: Limits | None = None,
        names: Sequence[str] = (),
        blocking: bool = False,
    ) -> None:
        self._driver = driver
        self._state_driver = state_driver or driver
        self._tenant = check.tenant_name(tenant)
        self._wanted_limits = limits
        self._limits = fitting(limits, self._drivers())
        # How errors and `health` call the stores: by URLs without their secrets.
        self._names = tuple(names) or tuple(type(one).__name__ for one in self._drivers())
        self._blocking = blocking
        self._turns = Turns()

    @property
    def tenant(self) -> str:
        """The tenant whose data this handle sees."""
        return self._tenant

    @property
    def limits(self) -> Limits:
        """The largest values that are taken; final once the stores are open."""
        return self._limits

    @property
    def capabilities(self) -> Capabilities:
        """What the store of the conversations can do."""
        return self._driver.capabilities

    @property
    def state_capabilities(self) -> Capabilities:
        """What the store of the state can do."""
        return self._state_driver.capabilities

    @property
    def conversations(self) -> Conversations:
        """The conversations."""
        return self._conversations(self._driver, self._names[0])

    @property
    def state(self) -> States:
        """Handles on state: `state.app()`, `state.user(id)`, `state.session(id)`."""
        return States(self._scoped)

    @property
    def sync(self) -> SyncDatabase:
        """The same without `await`, for a database that was made by `db()`."""
        self.require_blocking("sync")
        from .sync import SyncDatabase

        return SyncDatabase(self)

    def require_blocking(self, use: str) -> None:
        """Raise `ConfigurationError` where `use` needs `db()` and this is of `connect()`."""
        if not self._blocking:
            raise ConfigurationError(
                f"{use} blocks, and this database belongs to an event loop: "
                "make it with db(), or use the async methods"
            )

    def turn(self, session_id: str) -> Turn:
        """Hold the turn of a session: in this process they come one after the other."""
        return self._turns.take((self._tenant, session_id))

    def for_tenant(self, tenant: str) -> Database:
        """Give a view on another tenant's data, over the same connections."""
        view = copy.copy(self)
        view._tenant = check.tenant_name(tenant)
        return view

    async def open(self) -> None:
        """Open the stores; whoever does it closes them."""
        async with AsyncExitStack() as opened:
            for driver in self._drivers():
                await driver.open()
                opened.push_async_callback(driver.close)
            self._limits = fitting(self._wanted_limits, self._drivers())
            opened.pop_all()

    async def close(self) -> None:
        """Close the stores; what was acknowledged is safe before and after."""
        async with AsyncExitStack() as closing:
            for driver in self._drivers():
                closing.push_async_callback(driver.close)

    async def health(self) -> Health:
        """Ask each store for a sign of life; never raises for one that is down."""
        engines = []
        for driver, name in zip(self._drivers(), self._names, strict=True):
            error = None
            try:
                await driver.ping()
            except AgentStoreError as failure:
                error = str(failure)
            engines.append(EngineHealth(backend=name, ok=error is None, error=error))
        return Health(engines=tuple(engines))

    async def delete_session(self, session_id: str) -> bool:
        """Delete a conversation and the state of its session.

        The state goes first, so that a call that broke off can be made again.
        """
        await self._clear(Scope("session", check.identifier(session_id, "session_id")))
        return await self.conversations.delete(session_id)

    async def erase_user(self, user_id: str) -> ErasureReceipt:
        """Delete everything of a user: sessions with their state, and the user's own state.

        It goes session by session; a call that broke off can be made again and goes on.
        What had expired and was not yet purged goes too, of every user.
        """
        check.identifier(user_id, "user_id")  # None would be every user
        for driver, name in zip(self._drivers(), self._names, strict=True):
            while await self._conversations(driver, name).purge_expired():
                pass
        conversations = self.conversations
        sessions = messages = state = 0
        more = True
        while more:
            more = False
            cursor: str | None = None
            while True:
                page = await conversations.sessions(
                    user_id=user_id, limit=min(_PAGE, self._limits.page), cursor=cursor
                )
                for session in page:
                    state += await self._clear(Scope("session", session.session_id))
                    if await conversations.delete(session.session_id):
                        sessions, messages = sessions + 1, messages + session.message_count
                        more = True
                if (cursor := page.cursor) is None:
                    break
        state += await self._clear(Scope("user", user_id))
        return ErasureReceipt(
            user_id=user_id,
            sessions=sessions,
            messages=messages,
            state=state,
            erased_at=datetime.now(UTC),
        )

    async def export_user(self, user_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Give everything of a user, as JSON: a record for each session, then the user's state."""
        from .transfer import export_sessions

        check.identifier(user_id, "user_id")
        async for record in export_sessions(self, user_id=user_id, state=True):
            yield record
        values = {item.key: item.value async for item in every(self.state.user(user_id))}
        yield {"user_id": user_id, "state": values}

    def _conversations(self, driver: Driver, name: str) -> Conversations:
        store = driver.conversations(self._tenant)
        return Conversations(store, backend=name, limits=self._limits)

    def _scoped(self, scope: Scope) -> State:
        store = self._state_driver.state(self._tenant, scope)
        return State(store, backend=self._names[-1], limits=self._limits)

    def _drivers(self) -> tuple[Driver, ...]:
        both = (self._driver, self._state_driver)
        return both if self._driver is not self._state_driver else both[:1]

    async def _clear(self, scope: Scope) -> int:
        """Delete all state of a scope, and tell how many values there were."""
        state, deleted = self._scoped(scope), 0
        async for item in every(state):
            deleted += await state.delete(item.key)
        return deleted


@asynccontextmanager
async def connect(
    database_url: str | None,
    *,
    state_url: str | None = None,
    tenant: str = "",
    limits: Limits | None = None,
    connect_timeout: float = 5.0,
    attempt_timeout: float = 5.0,
    operation_timeout: float = 15.0,
    **options: Any,
) -> AsyncIterator[Database]:
    """Open a database on the running event loop, and close it at the end of the block.

    `state_url` puts the state into another store than the conversations.
    `options` are the driver's own; they may stand in the URL's query too.
    Timeouts are seconds: to connect, for one attempt at an operation, and for the whole of it.

    `ConfigurationError` where the URL or an option is wrong, `StoreError` where the store can't
    be opened.
    """
    timeouts = Timeouts(
        connect=connect_timeout, attempt=attempt_timeout, operation=operation_timeout
    )
    found = engines(database_url, state_url, timeouts=timeouts, options=options)
    database = Database(
        *(Bound(engine.build()) for engine in found),
        tenant=tenant,
        limits=limits,
        names=tuple(str(engine.url) for engine in found),
    )
    await database.open()
    try:
        yield database
    finally:
        await database.close()
