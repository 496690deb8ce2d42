"""The memory driver: the reference for all others, and where a fallback keeps its writes.

Everything happens between two awaits, so each method is atomic by itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .driver import (
    TOMBSTONE_AGE,
    TOUCH_INTERVAL,
    Ledger,
    decode_cursor,
    dump,
    encode_cursor,
    from_micros,
    load,
    now,
    operation_id,
    read_messages,
    take_options,
)
from .errors import ClosedError, ConflictError, UnsupportedError
from .stores import API_VERSION
from .types import (
    UNSET,
    AppendResult,
    Capabilities,
    Durability,
    History,
    Hit,
    Message,
    Page,
    Scope,
    Session,
    UnsetType,
    Versioned,
)
from .url import URL

__all__ = ["MemoryDriver"]

_CAPABILITIES = Capabilities(
    atomic_batch=True,
    conflict_detection=True,
    compare_and_set=True,
    ttl=True,
    order="commit",
    listing="exact",
    search=False,
    shared=False,
    invalidation=False,
    durability="none",
    embedded=True,
)


class MemoryDriver:
    """Keep everything in this process: `memory://`; gone when it is closed."""

    api_version = API_VERSION
    capabilities = _CAPABILITIES

    def __init__(self, url: URL, **options: Any) -> None:
        take_options(url, options, known=())
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)
        self._last_version = 0
        self._is_open = False

    async def open(self) -> None:
        """Begin."""
        self._is_open = True

    async def close(self) -> None:
        """Forget everything."""
        self._is_open = False
        self._tenants.clear()

    async def ping(self) -> None:
        """Raise where the store is closed."""
        self._check_open()

    def conversations(self, tenant: str) -> MemoryConversations:
        """Give the conversations of a tenant."""
        return MemoryConversations(self, tenant)

    def state(self, tenant: str, scope: Scope) -> MemoryState:
        """Give the state of a scope."""
        return MemoryState(self, tenant, scope)

    def tenant(self, name: str) -> _Tenant:
        """Give what is kept of a tenant; `ClosedError` where nothing is."""
        self._check_open()
        return self._tenants[name]

    def next_version(self) -> int:
        """Draw a version, which no value of state had before."""
        self._last_version += 1
        return self._last_version

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError("the store is not open", backend="memory")


@dataclass(slots=True, eq=False)
class _Kept:
    """A session: its row, its messages, and what the last change to it was."""

    session_id: str
    created: int
    touched: int
    user_id: str | None = None
    agent: str | None = None
    title: str | None = None
    metadata: str = "{}"
    expires: int | None = None
    deleted: int | None = None
    operation: str = ""
    dropped: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def shown(self, tenant: str) -> Session:
        return Session(
            session_id=self.session_id,
            tenant=tenant,
            user_id=self.user_id,
            agent=self.agent,
            title=self.title,
            metadata=load(self.metadata),
            created_at=from_micros(self.created),
            updated_at=from_micros(self.touched),
            expires_at=None if self.expires is None else from_micros(self.expires),
            message_count=len(self.ledger),
        )


@dataclass(slots=True)
class _Value:
    """A value of state, as JSON so that nobody shares it by accident."""

    value: str
    version: int
    expires: int | None
    operation: str


class _Listing:
    """Session ids in the two orders in which they are listed.

    Python orders text by code point, which is the order of its UTF-8 bytes.
    """

    def __init__(self) -> None:
        self._newest: list[tuple[int, str]] = []
        self._by_id: list[str] = []

    def add(self, kept: _Kept) -> None:
        insort(self._newest, (-kept.touched, kept.session_id))
        insort(self._by_id, kept.session_id)

    def remove(self, kept: _Kept) -> None:
        del self._newest[bisect_left(self._newest, (-kept.touched, kept.session_id))]
        del self._by_id[bisect_left(self._by_id, kept.session_id)]

    def newest(self, cursor: str | None) -> Iterator[str]:
        place = 0
        if cursor is not None:
            touched, session_id = decode_cursor(cursor, int, str)
            place = bisect_right(self._newest, (-touched, session_id))
        return (self._newest[i][1] for i in range(place, len(self._newest)))

    def by_id(self, prefix: str, cursor: str | None) -> Iterator[str]:
        place = bisect_left(self._by_id, prefix)
        if cursor is not None:
            place = max(place, bisect_right(self._by_id, decode_cursor(cursor, str)[0]))
        for i in range(place, len(self._by_id)):
            if not self._by_id[i].startswith(prefix):
                return
            yield self._by_id[i]


class _Tenant:
    """All that is kept of one tenant; deleted sessions stay for a while as tombstones."""

    def __init__(self) -> None:
        self.sessions: dict[str, _Kept] = {}
        # The listing of all sessions is under None, beside one for each user.
        self.listings: defaultdict[str | None, _Listing] = defaultdict(_Listing)
        self.state: defaultdict[Scope, dict[str, _Value]] = defaultdict(dict)

    def find(self, session_id: str, user_id: str | None = None) -> _Kept | None:
        kept = self.sessions.get(session_id)
        if kept is None or kept.deleted is not None or _is_past(kept.expires):
            return None
        return None if user_id is not None and user_id != kept.user_id else kept

    def begin(self, session_id: str, user_id: str | None, agent: str | None) -> _Kept:
        """Make a session, or make it anew: then its `seq` goes on where it was."""
        self.end(session_id, operation="")
        before = self.sessions.get(session_id)
        moment = now()
        kept = _Kept(session_id, moment, moment, user_id, agent)
        if before:
            # A delete that comes again knows itself by its operation, and spares the new session.
            kept.operation, kept.ledger = before.operation, Ledger(before.ledger.next_seq)
        self.sessions[session_id] = kept
        self._list(kept)
        return kept

    def end(self, session_id: str, *, operation: str) -> None:
        """Leave no more of a session than a tombstone."""
        kept = self.sessions.get(session_id)
        if kept is None or kept.deleted is not None:
            return
        self._unlist(kept)
        grave = _Kept(session_id, kept.created, kept.touched, deleted=now(), operation=operation)
        grave.ledger = Ledger(kept.ledger.next_seq)
        self.sessions[session_id] = grave

    def touch(self, kept: _Kept) -> None:
        moment = now()
        if moment - kept.touched >= TOUCH_INTERVAL:
            self._unlist(kept)
            kept.touched = moment
            self._list(kept)

    def _list(self, kept: _Kept) -> None:
        for owner in {None, kept.user_id}:
            self.listings[owner].add(kept)

    def _unlist(self, kept: _Kept) -> None:
        for owner in {None, kept.user_id}:
            self.listings[owner].remove(kept)


class MemoryConversations:
    """The conversations of one tenant in memory."""

    def __init__(self, driver: MemoryDriver, tenant: str) -> None:
        self._driver = driver
        self._name = tenant

    @property
    def _tenant(self) -> _Tenant:
        return self._driver.tenant(self._name)

    async def append(
        self,
        session_id: str,
        messages: Sequence[Message],
        *,
        user_id: str | None = None,
        agent: str | None = None,
        ttl: float | None = None,
        expect_seq: int | None = None,
    ) -> AppendResult:
        """Store messages at the end of a session."""
        tenant = self._tenant
        kept = tenant.find(session_id)
        if kept is not None and user_id is not None and user_id != kept.user_id:
            raise ConflictError("the session belongs to another user", backend="memory")
        before = kept or tenant.sessions.get(session_id)
        ledger = kept.ledger if kept else Ledger(before.ledger.next_seq if before else 1)
        plan = ledger.plan(messages, expect_seq)
        kept = kept or tenant.begin(session_id, user_id, agent)
        kept.ledger.add(plan.rows)
        if ttl is not None:
            kept.expires = _after(ttl)
        tenant.touch(kept)
        return plan.result(Durability.BUFFERED)

    async def read(
        self,
        session_id: str,
        *,
        first: int | None = None,
        last: int | None = None,
        before: int | None = None,
        after: int | None = None,
        max_tokens: int | None = None,
        user_id: str | None = None,
    ) -> History:
        """Read messages, oldest first."""
        kept = self._tenant.find(session_id, user_id)
        if kept is None:
            return History(())
        ledger = kept.ledger

        async def fetch(
            *, after: int | None, before: int | None, limit: int | None, newest: bool
        ) -> list[Message]:
            rows = ledger.slice(after=after, before=before, limit=limit, newest=newest)
            return [row.message() for row in rows]

        messages = await read_messages(
            fetch, first=first, last=last, before=before, after=after, max_tokens=max_tokens
        )
        return History(messages)

    async def get(self, session_id: str, *, user_id: str | None = None) -> Session | None:
        """Tell what is known of a session."""
        kept = self._tenant.find(session_id, user_id)
        return None if kept is None else kept.shown(self._name)

    async def update(
        self,
        session_id: str,
        *,
        title: str | None | UnsetType = UNSET,
        metadata: dict[str, Any] | UnsetType = UNSET,
        ttl: float | None | UnsetType = UNSET,
    ) -> Session | None:
        """Replace what is given of a session."""
        tenant = self._tenant
        kept = tenant.find(session_id)
        if kept is None:
            return None
        if title is not UNSET:
            kept.title = title
        if metadata is not UNSET:
            kept.metadata = dump(metadata)
        if ttl is not UNSET:
            kept.expires = _after(ttl)
        tenant.touch(kept)
        return kept.shown(self._name)

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        prefix: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Session]:
        """List sessions."""
        tenant = self._tenant
        listing = tenant.listings[user_id]
        ids = listing.newest(cursor) if prefix is None else listing.by_id(prefix, cursor)
        found: list[_Kept] = []
        for session_id in ids:
            kept = tenant.find(session_id)
            if kept is None:
                continue
            if len(found) == limit:
                tail = found[-1]
                place = (tail.touched, tail.session_id) if prefix is None else (tail.session_id,)
                return Page([one.shown(self._name) for one in found], cursor=encode_cursor(*place))
            found.append(kept)
        return Page([one.shown(self._name) for one in found])

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """Refuse: there is no index of words here."""
        raise UnsupportedError("the memory driver has no search", backend="memory")

    async def replace(
        self,
        session_id: str,
        message_id: str,
        *,
        content: str | list[Any] | None,
        metadata: dict[str, Any] | UnsetType = UNSET,
    ) -> bool:
        """Put other content in the place of one message's."""
        kept = self._tenant.find(session_id)
        row = kept and kept.ledger.find(message_id)
        if not kept or not row:
            return False
        kept.ledger.put(row.replaced(content, metadata))
        return True

    async def rewind(self, session_id: str, *, to: int) -> int:
        """Drop every message behind `seq` `to`."""
        kept = self._tenant.find(session_id)
        if kept is None:
            return 0
        operation = operation_id()
        if kept.operation != operation:
            kept.operation, kept.dropped = operation, kept.ledger.rewind(to)
        return kept.dropped

    async def fork(
        self, session_id: str, new_session_id: str, *, upto: int | None = None
    ) -> Session:
        """Copy a session under a new id."""
        tenant, operation = self._tenant, operation_id()
        taken = tenant.find(new_session_id)
        if taken is not None and taken.operation == operation:
            return taken.shown(self._name)
        source = tenant.find(session_id)
        if source is None or taken is not None:
            what = f"no session {session_id!r} to fork" if source is None else "the new id is taken"
            raise ConflictError(what, backend="memory")
        kept = tenant.begin(new_session_id, source.user_id, source.agent)
        kept.title, kept.metadata, kept.expires = source.title, source.metadata, source.expires
        kept.operation = operation
        before = None if upto is None else upto + 1
        kept.ledger.add(source.ledger.slice(after=None, before=before, limit=None, newest=False))
        return kept.shown(self._name)

    async def delete(self, session_id: str) -> bool:
        """Delete a session and its messages."""
        tenant, operation = self._tenant, operation_id()
        kept = tenant.sessions.get(session_id)
        if kept is not None and kept.operation == operation:
            return True
        if tenant.find(session_id) is None:
            return False
        tenant.end(session_id, operation=operation)
        return True

    async def purge_expired(self, *, limit: int = 1000) -> int:
        """Free the space of what has expired."""
        tenant = self._tenant
        past = [kept for kept in tenant.sessions.values() if _is_past(kept.expires)][:limit]
        for kept in past:
            tenant.end(kept.session_id, operation="")
        graves = [k for k in tenant.sessions.values() if _is_past(k.deleted, TOMBSTONE_AGE)]
        for grave in graves:
            del tenant.sessions[grave.session_id]
        values = [
            (entries, key)
            for entries in tenant.state.values()
            for key, value in entries.items()
            if _is_past(value.expires)
        ][: limit - len(past)]
        for entries, key in values:
            del entries[key]
        return len(past) + len(values)


class MemoryState:
    """The state of one scope in memory."""

    def __init__(self, driver: MemoryDriver, tenant: str, scope: Scope) -> None:
        self._driver = driver
        self._tenant = tenant
        self._scope = scope

    @property
    def _values(self) -> dict[str, _Value]:
        return self._driver.tenant(self._tenant).state[self._scope]

    def _find(self, key: str) -> _Value | None:
        value = self._values.get(key)
        return None if value is None or _is_past(value.expires) else value

    async def get(self, key: str) -> Versioned | None:
        """Read one value."""
        stored = self._find(key)
        if stored is None:
            return None
        return Versioned(key=key, value=load(stored.value), version=stored.version)

    async def put(
        self,
        key: str,
        value: Any,  # noqa: ANN401 - any JSON
        *,
        expect: int | None = None,
        ttl: float | None = None,
    ) -> Versioned:
        """Write one value."""
        stored, operation = self._find(key), operation_id()
        if stored is None or stored.operation != operation:
            _check_version(stored, expect)
            version = self._driver.next_version()
            stored = _Value(dump(value), version, _after(ttl), operation)
            self._values[key] = stored
        return Versioned(key=key, value=value, version=stored.version)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Delete one value."""
        stored = self._find(key)
        _check_version(stored, expect)
        self._values.pop(key, None)
        return stored is not None

    async def items(
        self, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Versioned]:
        """List values by key."""
        behind = "" if cursor is None else decode_cursor(cursor, str)[0]
        keys = sorted(
            key
            for key in self._values
            if key.startswith(prefix or "") and key > behind and self._find(key)
        )
        found = [await self.get(key) for key in keys[:limit]]
        more = len(keys) > limit
        return Page(
            [value for value in found if value],
            cursor=encode_cursor(keys[limit - 1]) if more else None,
        )


def _after(ttl: float | None) -> int | None:
    return None if ttl is None else now() + round(ttl * 1_000_000)


def _is_past(moment: int | None, age: int = 0) -> bool:
    return moment is not None and moment + age <= now()


def _check_version(stored: _Value | None, expect: int | None) -> None:
    version = stored.version if stored else 0
    if expect is not None and expect != version:
        raise ConflictError(f"expected version {expect}, and the stored one is {version}")
