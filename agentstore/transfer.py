"""Sessions as JSON lines: out of one store and into another.

A line is a session: its id, its messages in OpenAI's chat format, and under the key `agentstore`,
of the session and of each message, what that format has no place for.
It holds what an import can put back and nothing else, so that a copy's lines equal the original's.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict as _asdict
from msgspec.structs import replace as _replace

from . import _validate as check
from ._ids import derived
from .database import Database
from .driver._rows import encode_body
from .errors import DataError, StoreError, UnavailableError
from .state import every
from .types import Limits, Message, Session

__all__ = ["ImportReport", "Record", "dump_line", "export_sessions", "import_sessions", "load_line"]

T = TypeVar("T")

Record: TypeAlias = dict[str, Any]
"""A session as JSON: what a line says."""

_KEY = "agentstore"
# How much is read or written at a time: little enough to be done well within a deadline.
_SESSIONS = 50
_MESSAGES = 200
_BYTES = 4 * 1024 * 1024

_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an import.

    `created` messages are new, `repeated` ones were stored before.
    `left_out` sessions have expired or have no messages, and no append makes such a one.
    """

    sessions: int = 0
    created: int = 0
    repeated: int = 0
    left_out: int = 0

    @property
    def messages(self) -> int:
        """The messages that are stored, whenever that was."""
        return self.created + self.repeated

    def __add__(self, other: ImportReport) -> ImportReport:
        return ImportReport(
            sessions=self.sessions + other.sessions,
            created=self.created + other.created,
            repeated=self.repeated + other.repeated,
            left_out=self.left_out + other.left_out,
        )


def dump_line(record: Record) -> bytes:
    """Write a record as a line, with its end."""
    return msgspec.json.encode(record) + b"\n"


def load_line(line: str | bytes) -> Record:
    """Read a line; `DataError` where it is not a JSON object."""
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}") from None


async def export_sessions(
    database: Database, *, user_id: str | None = None, prefix: str = "", state: bool = False
) -> AsyncIterator[Record]:
    """Give the sessions as records, by id; with `state`, the state of each session too.

    One session is in memory at a time.
    What is written meanwhile may be in it or not.
    """
    limit = min(_SESSIONS, database.limits.page)
    cursor: str | None = None
    while True:
        page = await database.conversations.sessions(
            user_id=user_id, prefix=prefix, limit=limit, cursor=cursor
        )
        for session in page:
            ours = _session_fields(session)
            if state:
                items = every(database.state.session(session.session_id))
                if values := {item.key: item.value async for item in items}:
                    ours["state"] = values
            messages = [_shown(one) async for one in _read(database, session.session_id, user_id)]
            yield {
                "session_id": session.session_id,
                **({_KEY: ours} if ours else {}),
                "messages": messages,
            }
        if (cursor := page.cursor) is None:
            return


async def import_sessions(
    database: Database,
    records: AsyncIterable[Record | str | bytes] | Iterable[Record | str | bytes],
) -> ImportReport:
    """Store sessions given as records, or as the lines of an open file.

    What is stored already stays as it is, so that the same import again changes nothing.
    A message without an id gets one derived from tenant, session and position; one without a
    time gets that of the import.

    A record is checked whole before any of it is written.
    The first that can't be stored ends the import, with an error that names it; what came before
    it stays.
    """
    report, number = ImportReport(), 0
    async for given in _each(records):
        number += 1
        if not isinstance(given, str | bytes):
            with _named(f"record {number}"):
                report += await _take(database, given)
        elif given.strip():
            with _named(f"line {number}"):
                report += await _take(database, load_line(given))
    return report


async def _take(database: Database, record: Record) -> ImportReport:
    line = _convert(record, _Line, "")
    check.identifier(line.session_id, "session_id")
    with _named(f"session {line.session_id!r}"):
        ours = _convert(line.agentstore, _SessionFields, _KEY)
        _check(ours, database.limits)
        messages = _messages(line, database)
        if ours.expires_at is not None and ours.expires_at <= datetime.now(UTC):
            return ImportReport(left_out=1)
        created = await _store(database, line.session_id, ours, messages)
    if not messages:
        return ImportReport(left_out=1)
    return ImportReport(sessions=1, created=created, repeated=len(messages) - created)


async def _store(
    database: Database, session_id: str, ours: _SessionFields, messages: Sequence[Message]
) -> int:
    """Add what is missing of a session, and tell how many messages that were."""
    conversations, created = database.conversations, 0
    stored = await conversations.get(session_id)
    # The expiry comes with the first messages or not at all: a session that lives is not given
    # an end by a copy of what it was once.
    ttl = None
    if stored is None and ours.expires_at is not None:
        ttl = (ours.expires_at - datetime.now(UTC)).total_seconds()
    for batch in _batches(messages, database.limits.batch):
        result = await conversations.append(
            session_id, batch, user_id=ours.user_id, agent=ours.agent, ttl=ttl
        )
        ttl = None
        created += sum(result.created)
    missing: dict[str, Any] = {}
    if ours.title is not None and (stored is None or stored.title is None):
        missing["title"] = ours.title
    if ours.metadata and (stored is None or not stored.metadata):
        missing["metadata"] = ours.metadata
    if missing:
        await conversations.update(session_id, **missing)
    state = database.state.session(session_id)
    absent = 0 if database.state_capabilities.compare_and_set else None
    for key, value in ours.state.items():
        if await state.get(key) is None:
            await state.put(key, value, expect=absent)
    return created


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    session_id: str
    messages: list[dict[str, Any]]
    agentstore: dict[str, Any] = msgspec.field(default_factory=dict)


class _SessionFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user_id: str | None = None
    agent: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    expires_at: _Moment | None = None
    state: dict[str, Any] = msgspec.field(default_factory=dict)


class _MessageFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str | UnsetType = UNSET
    created_at: _Moment | UnsetType = UNSET
    tokens: int | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    # What the message itself has under this key.
    agentstore: Any = UNSET


def _session_fields(session: Session) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    for name in ("user_id", "agent", "title"):
        if (value := getattr(session, name)) is not None:
            ours[name] = value
    if session.metadata:
        ours["metadata"] = session.metadata
    if session.expires_at is not None:
        # The contract takes seconds to live: whole ones survive the time that the call takes.
        ours["expires_at"] = _iso(session.expires_at.replace(microsecond=0))
    return ours


async def _read(database: Database, session_id: str, user_id: str | None) -> AsyncIterator[Message]:
    after: int | None = None
    while True:
        page = await database.conversations.read(
            session_id, first=_MESSAGES, after=after, user_id=user_id
        )
        if page.stale or page.pending:
            raise UnavailableError("the store can't be reached, so this may not be all of it")
        for message in page:
            yield message
        if len(page) < _MESSAGES:
            return
        after = page[-1].seq


def _shown(message: Message) -> dict[str, Any]:
    ours: dict[str, Any] = {"id": message.id, "created_at": _iso(message.created_at)}
    if message.tokens is not None:
        ours["tokens"] = message.tokens
    if message.metadata:
        ours["metadata"] = message.metadata
    shown = message.to_openai()
    if _KEY in shown:
        ours[_KEY] = shown.pop(_KEY)
    return {**shown, _KEY: ours}


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _messages(line: _Line, database: Database) -> list[Message]:
    found: list[Message] = []
    places: dict[str, int] = {}
    for place, given in enumerate(line.messages):
        name = f"messages[{place}]"
        fields = _convert(given.pop(_KEY, {}), _MessageFields, f"{name}.{_KEY}")
        ours = {key: value for key, value in _asdict(fields).items() if value is not UNSET}
        if _KEY in ours:
            given[_KEY] = ours.pop(_KEY)
        ours.setdefault("id", derived(database.tenant, line.session_id, str(place)))
        message = _replace(check._from_mapping(given, name), **ours)
        found.append(check._message(message, name, database.limits))
        # The store would take the second for a repeat of the first, and keep one.
        if places.setdefault(message.id, place) != place:
            raise DataError(f"{name} has the id of messages[{places[message.id]}]: {message.id!r}")
    return found


def _check(ours: _SessionFields, limits: Limits) -> None:
    check.optional_identifier(ours.user_id, "user_id")
    check.optional_identifier(ours.agent, "agent")
    check.title_text(ours.title)
    check.metadata(ours.metadata, limits)
    for key, value in ours.state.items():
        check.identifier(key, "key of state")
        check.json_value(value, f"state[{key!r}]", limit=limits.state, depth=limits.depth)


def _batches(messages: Iterable[Message], most: int) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        weight = len(encode_body(message))
        if batch and (len(batch) == min(_MESSAGES, most) or size + weight > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += weight
    if batch:
        yield batch


def _convert(value: object, kind: type[T], name: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # It tells names and types, and no values.
        raise DataError(f"{name}: {error}" if name else str(error)) from None


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in an error what it is about."""
    try:
        yield
    except StoreError as error:
        error.args = (f"{name}: {error.args[0]}",)
        raise


async def _each(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
