"""Sessions as JSON lines, and from an application's table."""

from __future__ import annotations

import gc
import json
import sqlite3
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from agentstore import Database, History, Message, connect
from agentstore._ids import derived
from agentstore.errors import (
    ConfigurationError,
    ConflictError,
    DataError,
    DriverError,
    MissingDependencyError,
    UnavailableError,
)
from agentstore.memory import MemoryDriver
from agentstore.registry import schemes
from agentstore.stores import Driver
from agentstore.testing.corpus import IDS, TEXTS
from agentstore.transfer import (
    ImportReport,
    Record,
    dump_line,
    export_sessions,
    import_sessions,
    load_line,
)
from agentstore.types import Limits
from agentstore.url import URL
from agentstore.wrappers import Operation, Wrapper
from agentstore_sql import read_table

pytestmark = pytest.mark.asyncio

T = TypeVar("T")

RECORDED = Path(__file__).parent / "data" / "agent_sessions.jsonl"
ENGINES = sorted({"json", "lmdb", "memory", "sqlite"} & set(schemes()))

on_every_engine = pytest.mark.parametrize("engine", ENGINES)

HALF_PAST_TWO = datetime(2024, 5, 15, 14, 30, 0, 123456, tzinfo=UTC)


def place(engine: str, directory: Path, name: str = "store") -> str:
    return "memory://" if engine == "memory" else f"{engine}:///{directory}/{name}"


def recorded() -> list[Record]:
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


async def import_recorded(database: Database) -> ImportReport:
    with RECORDED.open("rb") as file:
        return await import_sessions(database, file)


async def exported(database: Database, **options: Any) -> list[Record]:
    return [record async for record in export_sessions(database, **options)]


async def lines(database: Database, **options: Any) -> list[bytes]:
    return [dump_line(record) for record in await exported(database, **options)]


def plain(record: Record) -> Record:
    """Give a record as OpenAI's chat format has it."""
    messages = [
        {key: value for key, value in message.items() if key != "agentstore"}
        for message in record["messages"]
    ]
    return {"session_id": record["session_id"], "messages": messages}


def session(session_id: str = "s", *messages: dict[str, Any], **ours: Any) -> Record:
    given = list(messages) or [{"role": "user", "content": "hello"}]
    return {"session_id": session_id, "messages": given, "agentstore": ours}


@on_every_engine
async def test_recorded_sessions_come_out_as_they_went_in(engine: str, tmp_path: Path) -> None:
    """120 sessions of real agents are exported as they were imported, message for message."""
    async with connect(place(engine, tmp_path)) as database:
        report = await import_recorded(database)
        found = [plain(record) for record in await exported(database)]

    assert report == ImportReport(sessions=120, created=3202, repeated=0, left_out=0)
    assert report.messages == 3202
    assert found == sorted(recorded(), key=lambda record: record["session_id"])


@on_every_engine
async def test_a_second_import_changes_nothing(engine: str, tmp_path: Path) -> None:
    """The same lines again are all repeats, and the sessions are what they were."""
    async with connect(place(engine, tmp_path)) as database:
        await import_recorded(database)
        before = await lines(database), await all_sessions(database)
        report = await import_recorded(database)
        after = await lines(database), await all_sessions(database)

    assert report == ImportReport(sessions=120, created=0, repeated=3202, left_out=0)
    assert after == before


async def all_sessions(database: Database) -> list[Any]:
    return list(await database.conversations.sessions(prefix="", limit=1000))


@on_every_engine
async def test_a_window_of_a_recorded_session_cuts_no_exchange(engine: str, tmp_path: Path) -> None:
    """In a window of 20 each result has its call before it, however the session ends."""
    async with connect(place(engine, tmp_path)) as database:
        await import_recorded(database)
        for record in recorded():
            whole = record["messages"]
            window = await database.conversations.read(record["session_id"], last=20)
            shown = [message.to_openai() for message in window]
            assert shown == whole[-len(shown) :]
            assert len(shown) >= min(20, len(whole))
            called: set[str] = set()
            for message in shown:
                if message["role"] == "tool":
                    assert message["tool_call_id"] in called
                called |= {call["id"] for call in message.get("tool_calls") or ()}


@on_every_engine
async def test_lines_of_a_copy_equal_the_original(engine: str, tmp_path: Path) -> None:
    """Out of one store, into another and out again: not a byte is different."""
    async with connect("memory://") as original, connect(place(engine, tmp_path)) as copy:
        await fill(original)
        before = await lines(original, state=True)
        await import_sessions(copy, before)
        assert await lines(copy, state=True) == before
    assert len(before) == len(IDS) + 1


async def fill(database: Database) -> None:
    """Make sessions of all that can be in one."""
    await import_sessions(
        database,
        [
            session(id_, {"role": "user", "content": text})
            for id_, text in zip(IDS, cycle(TEXTS), strict=False)
        ],
    )
    await database.conversations.append(
        "everything",
        [
            Message(role="system", content="", created_at=HALF_PAST_TWO, tokens=0),
            Message(role="user", content=[{"type": "text", "text": "é\0"}], name=None, tokens=7),
            Message(role="assistant", content=None, metadata={"cost": [0.1, 1e22, -0.0, None]}),
            Message.from_openai(
                {
                    "refusal": None,
                    "agentstore": {"id": "theirs"},
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}],
                    "audio": {"z": 1, "a": 2},
                }
            ),
            Message(role="tool", content="4", tool_call_id="c", name="f", id="an id of one's own"),
            Message(role="user", content="later", created_at=HALF_PAST_TWO - timedelta(days=9)),
        ],
        user_id="ann",
        agent="helper",
        ttl=3600,
    )
    await database.conversations.update("everything", title="", metadata={"tags": ["é", {}]})
    for key in ("b", "a", "../c"):
        await database.state.session("everything").put(key, {"value": [key, None, 0.1]})


async def test_a_line_says_what_the_chat_format_lacks() -> None:
    """It is under the key `agentstore`, of the session and of the message."""
    message = Message(
        role="user", content="hello", id="m", tokens=3, metadata={"a": 1}, created_at=HALF_PAST_TWO
    )
    async with connect("memory://") as database:
        await database.conversations.append("s", [message], user_id="ann", agent="helper")
        await database.conversations.update("s", title="Hello", metadata={"b": 2})
        await database.state.session("s").put("mood", "good")
        assert await exported(database, state=True) == [
            {
                "session_id": "s",
                "agentstore": {
                    "user_id": "ann",
                    "agent": "helper",
                    "title": "Hello",
                    "metadata": {"b": 2},
                    "state": {"mood": "good"},
                },
                "messages": [
                    {
                        "role": "user",
                        "content": "hello",
                        "agentstore": {
                            "id": "m",
                            "created_at": "2024-05-15T14:30:00.123456+00:00",
                            "tokens": 3,
                            "metadata": {"a": 1},
                        },
                    }
                ],
            }
        ]


async def test_a_message_may_have_a_key_agentstore_of_its_own() -> None:
    """What a message has under our key lies one level deeper in the line, and comes back."""
    given = {"role": "user", "agentstore": ["theirs"], "other": 1}
    async with connect("memory://") as original, connect("memory://") as copy:
        await original.conversations.append("s", [given])
        (record,) = await exported(original)
        await import_sessions(copy, [record])
        (message,) = await copy.conversations.read("s")

    assert record["messages"][0]["agentstore"]["agentstore"] == ["theirs"]
    assert message.to_openai() == given


async def test_ids_are_derived_from_tenant_session_and_position() -> None:
    """A message that says no id has always the same one, and another in another tenant."""
    given = session("s", *({"role": "user", "content": text} for text in "aab"))
    async with connect("memory://", tenant="t") as database:
        await import_sessions(database, [given])
        messages = await database.conversations.read("s")
        await import_sessions(database.for_tenant(""), [given])
        others = await database.for_tenant("").conversations.read("s")

    assert [message.id for message in messages] == [derived("t", "s", str(i)) for i in range(3)]
    assert {message.id for message in messages} & {message.id for message in others} == set()


async def test_messages_that_come_later_are_added() -> None:
    """A longer version of the session adds what is new and repeats the rest."""
    turns = [{"role": "user", "content": text} for text in "abcd"]
    async with connect("memory://") as database:
        await import_sessions(database, [session("s", *turns[:2])])
        report = await import_sessions(database, [session("s", *turns)])
        messages = await database.conversations.read("s")

    assert report == ImportReport(sessions=1, created=2, repeated=2)
    assert [message.content for message in messages] == list("abcd")


async def test_what_is_stored_stays() -> None:
    """An import winds nothing back: not a title, not metadata, not state, not an expiry."""
    later = datetime.now(UTC) + timedelta(hours=1)
    given = session(title="old", metadata={"v": 1}, expires_at=str(later), state={"k": 1, "n": 0})
    async with connect("memory://") as database:
        await import_sessions(database, [given])
        await database.conversations.update("s", title="new", metadata={"v": 2}, ttl=None)
        await database.state.session("s").put("k", 2)
        before = await lines(database, state=True)
        await import_sessions(database, [given])
        assert await lines(database, state=True) == before


async def test_what_is_missing_is_added() -> None:
    """An import that broke off between messages and title is completed by the next."""
    given = session(title="title", metadata={"v": 1}, state={"k": 1})
    async with connect("memory://") as database:
        await import_sessions(database, [session()])
        await import_sessions(database, [given])
        (record,) = await exported(database, state=True)

    assert record["agentstore"] == given["agentstore"]


async def test_an_expiry_is_carried_to_the_second() -> None:
    """A session of a copy ends in the second in which the original ends."""
    async with connect("memory://") as original, connect("memory://") as copy:
        await original.conversations.append("s", [{"role": "user"}], ttl=100)
        await import_sessions(copy, export_sessions(original))
        first, second = [(await all_sessions(one))[0].expires_at for one in (original, copy)]

    assert timedelta() <= second - first.replace(microsecond=0) < timedelta(seconds=1)


async def test_expired_and_empty_sessions_are_left_out() -> None:
    """What no append makes is counted and not stored; the state of an empty session is."""
    async with connect("memory://") as database:
        report = await import_sessions(
            database,
            [
                session("expired", expires_at="2024-05-15T14:30:00Z", state={"k": 1}),
                {"session_id": "empty", "messages": [], "agentstore": {"state": {"k": 1}}},
                session("there"),
            ],
        )
        assert [found.session_id for found in await all_sessions(database)] == ["there"]
        assert await database.state.session("expired").get("k") is None
        assert await database.state.session("empty").get("k") is not None

    assert report == ImportReport(sessions=1, created=1, left_out=2)


async def test_an_export_can_be_of_one_user_or_prefix() -> None:
    """The sessions of others, or with other ids, are not in it."""
    async with connect("memory://") as database:
        for session_id, user in (("a1", "ann"), ("a2", "bob"), ("b1", "ann"), ("b2", None)):
            await import_sessions(database, [session(session_id, user_id=user)])

        async def ids(**options: Any) -> list[str]:
            return [record["session_id"] for record in await exported(database, **options)]

        assert await ids() == ["a1", "a2", "b1", "b2"]
        assert await ids(user_id="ann") == ["a1", "b1"]
        assert await ids(prefix="a") == ["a1", "a2"]
        assert await ids(user_id="ann", prefix="b") == ["b1"]


async def test_the_export_of_a_user_can_be_imported() -> None:
    """Its records of sessions are those of an export."""
    async with connect("memory://") as database:
        await import_sessions(database, [session("s", user_id="ann", state={"k": 1})])
        *records, own = [record async for record in database.export_user("ann")]
        assert records == await exported(database, user_id="ann", state=True)
        assert own == {"user_id": "ann", "state": {}}


BAD: dict[str, tuple[str | bytes, str]] = {
    "not JSON": ("{", "not a JSON object: Input data was truncated"),
    "a list": ("[]", "not a JSON object: Expected `object`, got `array`"),
    "NaN": ('{"session_id":"bad","messages":[{"role":"user","content":NaN}]}', "not a JSON object"),
    "not UTF-8": (b'{"session_id":"\xff"}', "not a JSON object: 'utf-8' codec"),
    "half a surrogate pair": (r'{"session_id":"\ud800"}', "not a JSON object"),
    "too deep to read": ('{"messages":' + "[" * 100_000, "not a JSON object"),
    "no session_id": ('{"messages":[]}', "missing required field `session_id`"),
    "no messages": ('{"session_id":"bad"}', "missing required field `messages`"),
    "a key of nobody": ('{"session_id":"bad","messages":[],"x":1}', "unknown field `x`"),
    "an empty id": ('{"session_id":"","messages":[]}', "session_id is empty"),
    "NUL in the id": (r'{"session_id":"a\u0000","messages":[]}', "session_id has a NUL"),
    "a long id": (f'{{"session_id":"{"x" * 513}","messages":[]}}', "513 bytes: 512 is the most"),
}
BAD_SESSION: dict[str, tuple[dict[str, Any], str]] = {
    "a field of nobody": ({"owner": "ann"}, "agentstore: Object contains unknown field `owner`"),
    "a number for a user": ({"user_id": 7}, "agentstore: Expected `str | null`, got `int`"),
    "an empty user": ({"user_id": ""}, "user_id is empty"),
    "an empty agent": ({"agent": ""}, "agent is empty"),
    "a long title": ({"title": "x" * 1025}, "title has 1025 bytes: 1024 is the most"),
    "large metadata": ({"metadata": {"x": "y" * 16384}}, "metadata has"),
    "an end without zone": ({"expires_at": "2050-01-01T00:00:00"}, "with a timezone"),
    "a large state": ({"state": {"k": "x" * 2**20}}, "state['k'] has"),
    "a key of state": ({"state": {"": 1}}, "key of state is empty"),
}
BAD_MESSAGE: dict[str, tuple[Any, str]] = {
    "text": ("hello", "Expected `object`, got `str` - at `$.messages[1]`"),
    "no role": ({"content": "x"}, "messages[1] has no role"),
    "a role of nobody": ({"role": "human"}, "messages[1]: role is 'human'"),
    "a result of no call": ({"role": "tool", "content": "4"}, "messages[1]: a tool's result needs"),
    "a number": ({"role": "user", "content": 4}, "messages[1].content is int"),
    "a long integer": ({"role": "user", "x": 2**64}, "messages[1].extra has an integer"),
    "too large": ({"role": "user", "content": "x" * 2**20}, "messages[1] has 10486"),
    "too deep": (
        {"role": "user", "content": json.loads("[" * 65 + "]" * 65)},
        "messages[1].content is nested too deeply",
    ),
    "our key for theirs": (
        {"role": "user", "agentstore": {"run": 1}},
        "messages[1].agentstore: Object contains unknown field `run`",
    ),
    "our key for text": (
        {"role": "user", "agentstore": "x"},
        "messages[1].agentstore: Expected `object`, got `str`",
    ),
    "an empty id": ({"role": "user", "agentstore": {"id": ""}}, "messages[1].id is empty"),
    "tokens": ({"role": "user", "agentstore": {"tokens": -1}}, "messages[1].tokens is -1"),
    "a time without zone": (
        {"role": "user", "agentstore": {"created_at": "2024-05-15T14:30:00"}},
        "messages[1].agentstore: Expected `datetime` with a timezone",
    ),
    "an id twice": (
        {"role": "user", "content": "other", "agentstore": {"id": "m"}},
        "messages[1] has the id of messages[0]: 'm'",
    ),
}


def bad_lines() -> Iterable[Any]:
    for name, (line, said) in BAD.items():
        yield pytest.param(line, "line 3: ", said, id=name)
    where = "line 3: session 'bad': "
    for name, (ours, said) in BAD_SESSION.items():
        yield pytest.param(json.dumps(session("bad", **ours)), where, said, id=f"session: {name}")
    good = {"role": "user", "content": "hello", "agentstore": {"id": "m"}}
    for name, (message, said) in BAD_MESSAGE.items():
        shape = "line 3: " if isinstance(message, str) else where
        line = json.dumps(session("bad", good, message))
        yield pytest.param(line, shape, said, id=f"message: {name}")


@pytest.mark.parametrize(("line", "where", "said"), list(bad_lines()))
async def test_a_bad_line_ends_the_import(line: str | bytes, where: str, said: str) -> None:
    """A `DataError` names the line and what is wrong; the lines before it stay, it does not.

    Blank lines are counted, so that the number is the one that an editor shows.
    """
    good = [dump_line(session("first")), b"\n"]
    async with connect("memory://") as database:
        with pytest.raises(DataError) as caught:
            await import_sessions(database, [*good, line, dump_line(session("last"))])
        assert [found.session_id for found in await all_sessions(database)] == ["first"]

    message = str(caught.value)
    assert message.startswith(where)
    assert said in message
    assert len(message) < 600


async def test_a_bad_record_is_named_by_its_number() -> None:
    """From Python there are no lines: the second record is the second."""
    async with connect("memory://") as database:
        with pytest.raises(DataError, match=r"^record 2: session 'bad': messages\[0\] has no role"):
            await import_sessions(database, [session("first"), session("bad", {"content": "x"})])


async def test_another_body_under_a_stored_id_is_a_conflict() -> None:
    """The error names the line and the session, and nothing of the session is written."""
    changed = session("s", {"role": "user", "content": "other"}, {"role": "user", "content": "b"})
    async with connect("memory://") as database:
        await import_sessions(database, [session()])
        before = await lines(database)
        with pytest.raises(ConflictError, match=r"append: line 1: session 's': message id"):
            await import_sessions(database, [dump_line(changed)])
        assert await lines(database) == before


async def test_a_session_of_another_user_is_a_conflict() -> None:
    """An import adds nothing to what belongs to somebody else."""
    async with connect("memory://") as database:
        await import_sessions(database, [session(user_id="ann")])
        before = await lines(database)
        with pytest.raises(ConflictError, match="record 1: session 's': .*another user"):
            await import_sessions(database, [session(user_id="bob")])
        assert await lines(database) == before


async def test_a_line_is_read_as_it_was_written() -> None:
    """`load_line` undoes `dump_line`, and a line is one line whatever is in it."""
    for text in TEXTS:
        record = session("s", {"role": "user", "content": text})
        line = dump_line(record)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert load_line(line) == load_line(line.decode()) == record


class Recording(Wrapper):
    """Notes the size of each append and of each read."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.appended: list[int] = []
        self.reads: list[int] = []

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        result = await super()._invoke(operation, call)
        if operation.name == "append":
            self.appended.append(len(result.seqs))  # type: ignore[attr-defined]
        if operation.name == "read":
            self.reads.append(len(result))  # type: ignore[arg-type]
        return result


async def test_a_long_session_goes_in_and_out_in_pages() -> None:
    """No call to the store holds more than 200 of the 20,000 messages."""
    recording = Recording(MemoryDriver(URL.parse("memory://")))
    database = Database(recording)
    turns = [{"role": "user", "content": str(number)} for number in range(20_000)]
    await database.open()
    await import_sessions(database, [session("s", *turns)])
    (record,) = await exported(database)
    await database.close()

    assert plain(record)["messages"] == turns
    assert recording.appended == [200] * 100
    assert recording.reads == [*[200] * 100, 0]


async def test_batches_heed_the_limits() -> None:
    """A batch holds a few megabytes, and no more messages than the database takes."""
    large = [{"role": "user", "content": "x" * 1_000_000} for _ in range(10)]
    recording = Recording(MemoryDriver(URL.parse("memory://")))
    database = Database(recording, limits=Limits(batch=7, page=3))
    await database.open()
    await import_sessions(database, [session("large", *large)])
    await import_sessions(database, [session("many", *({"role": "user"} for _ in range(16)))])
    for number in range(5):
        await import_sessions(database, [session(str(number))])
    assert len(await exported(database)) == 7
    await database.close()

    assert recording.appended == [4, 4, 2, 7, 7, 2, 1, 1, 1, 1, 1]


async def test_a_store_is_never_whole_in_memory(tmp_path: Path) -> None:
    """Copying 40 MB in 100 sessions takes less than a quarter of that."""
    turns = [{"role": "user", "content": "x" * 40_000} for _ in range(10)]
    async with (
        connect(place("sqlite", tmp_path, "original")) as original,
        connect(place("sqlite", tmp_path, "copy")) as copy,
    ):
        await import_sessions(original, (session(f"s{number}", *turns) for number in range(100)))
        gc.collect()
        tracemalloc.start()
        try:
            report = await import_sessions(copy, export_sessions(original))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert report == ImportReport(sessions=100, created=1000)
    assert peak < 10_000_000


class Down(Wrapper):
    """A store that can't be asked, and gives what is known of it."""

    def __init__(self, inner: Driver, **known: Any) -> None:
        super().__init__(inner)
        self._known = known

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        result = await super()._invoke(operation, call)
        if isinstance(result, History):
            return History(result, **self._known)  # type: ignore[return-value]
        return result


@pytest.mark.parametrize("known", [{"stale": True}, {"pending": 1}])
async def test_an_export_is_not_of_what_may_not_be_all(known: dict[str, Any]) -> None:
    """While the store is away, an export fails and doesn't give a part for the whole."""
    database = Database(Down(MemoryDriver(URL.parse("memory://")), **known))
    await database.open()
    await import_sessions(database, [session()])
    with pytest.raises(UnavailableError, match="may not be all of it"):
        await exported(database)
    await database.close()


ODD = """
CREATE TABLE "Chat Log" (
    "row" INTEGER PRIMARY KEY, "Thread Id" TEXT COLLATE NOCASE, "who?" TEXT, "select" TEXT,
    "at", "by" TEXT, "calls" TEXT, "of" TEXT, "cost" INTEGER, "note" TEXT
)
"""
ODD_COLUMNS: dict[str, str | list[str]] = {
    "session_id": "Thread Id",
    "role": "who?",
    "content": "select",
    "order": ["at", "row"],
    "id": "row",
    "created_at": "at",
    "user_id": "by",
    "tool_calls": "calls",
    "tool_call_id": "of",
    "tokens": "cost",
    "metadata": "note",
}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ODD_ROWS = [
    (1, "b", "ai", None, "2024-05-15T14:30:02", None, json.dumps([CALL]), None, 5, None),
    (2, "b", "tool", "4", "2024-05-15T14:30:03Z", None, None, "c", None, '{"ms": 7}'),
    (3, "b", "human", "2+2?", "2024-05-15 14:30:01.5", "ann", None, None, None, None),
    (4, "A", "human", "big", "2024-05-15T16:30:00+02:00", None, None, None, None, None),
    (5, "a", "human", "small", "2024-05-15T14:30:00Z", None, None, None, None, None),
    (6, "A", "ai", "BIG", "2024-05-15T16:30:00+02:00", None, None, None, None, None),
    (7, "a", "ai", "SMALL", "2024-05-15T14:30:00Z", None, None, None, None, None),
]
ROLES = {"human": "user", "ai": "assistant"}


@pytest.fixture
def application(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute(ODD)
        connection.executemany("INSERT INTO 'Chat Log' VALUES (?,?,?,?,?,?,?,?,?,?)", ODD_ROWS)
    connection.close()
    return path


async def table_records(*arguments: Any, **options: Any) -> list[Record]:
    async with aclosing(read_table(*arguments, **options)) as records:
        return [record async for record in records]


def by_id(records: Sequence[Record]) -> dict[str, Record]:
    found = {record["session_id"]: record for record in records}
    assert len(found) == len(records)
    return found


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
async def test_a_table_becomes_records(scheme: str, application: Path) -> None:
    """Odd names, other roles, NULLs, times and a collation that mixes sessions are all read."""
    url = f"{scheme}:///{application}"
    found = by_id(await table_records(url, "Chat Log", ODD_COLUMNS, roles=ROLES))
    assert found.keys() == {"A", "a", "b"}
    assert [message["content"] for message in found["A"]["messages"]] == ["big", "BIG"]
    assert [message["content"] for message in found["a"]["messages"]] == ["small", "SMALL"]
    assert found["b"] == {
        "session_id": "b",
        "agentstore": {"user_id": "ann"},
        "messages": [
            {
                "role": "user",
                "content": "2+2?",
                "agentstore": {"id": "3", "created_at": "2024-05-15T14:30:01.500000+00:00"},
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [CALL],
                "agentstore": {
                    "id": "1",
                    "created_at": "2024-05-15T14:30:02+00:00",
                    "tokens": 5,
                },
            },
            {
                "role": "tool",
                "content": "4",
                "tool_call_id": "c",
                "agentstore": {
                    "id": "2",
                    "created_at": "2024-05-15T14:30:03+00:00",
                    "metadata": {"ms": 7},
                },
            },
        ],
    }


@on_every_engine
async def test_a_table_is_imported(engine: str, application: Path, tmp_path: Path) -> None:
    """Twice: the first time it is stored, the second time nothing changes."""
    async with connect(place(engine, tmp_path)) as database:
        reports = [
            await import_sessions(
                database,
                read_table(f"sqlite:///{application}", "Chat Log", ODD_COLUMNS, roles=ROLES),
            )
            for _ in range(2)
        ]
        history = await database.conversations.read("b", user_id="ann")

    assert reports == [ImportReport(sessions=3, created=7), ImportReport(sessions=3, repeated=7)]
    assert [message.content for message in history] == ["2+2?", None, "4"]
    assert history[0].created_at == datetime(2024, 5, 15, 14, 30, 1, 500000, tzinfo=UTC)


async def test_an_engine_that_is_handed_in_stays_open() -> None:
    """Synchronous or asynchronous: whoever opened it closes it."""
    # A database in memory ends with its only connection.
    memory = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
    engine = sa.create_engine("sqlite://", **memory)
    with engine.begin() as connection:
        fill_table(connection)
    async_engine = create_async_engine("sqlite+aiosqlite://", **memory)
    async with async_engine.begin() as async_connection:
        await async_connection.run_sync(fill_table)

    for source in (engine, async_engine, engine, async_engine):
        (record,) = await table_records(source, "t", COLUMNS | {"created_at": "o"})
        assert record == {
            "session_id": "1",
            "agentstore": {},
            "messages": [
                {
                    "role": "user",
                    "content": "hello",
                    "agentstore": {"created_at": "1970-01-01T00:00:01.500000+00:00"},
                }
            ],
        }
    engine.dispose()
    await async_engine.dispose()


COLUMNS = {"session_id": "s", "role": "r", "content": "c", "order": "o"}


def fill_table(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE t (s, r, c, o)")
    connection.exec_driver_sql("INSERT INTO t VALUES (1, 'user', 'hello', 1.5)")


async def test_a_table_is_read_in_parts(tmp_path: Path) -> None:
    """Of 40 MB in the table less than a sixth is in memory."""
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (s TEXT, o INTEGER, c TEXT)")
        rows = ((f"s{number // 10}", number, "x" * 4_000) for number in range(10_000))
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        connection.execute("CREATE VIEW v AS SELECT s, o, c, 'user' AS r FROM t")
    connection.close()
    tracemalloc.start()
    try:
        async with aclosing(read_table(f"sqlite:///{path}", "v", COLUMNS)) as records:
            sizes = [len(record["messages"]) async for record in records]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sizes == [10] * 1000
    assert peak < 6_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thread": "x"}, "columns has 'thread': known are session_id, role, content, order"),
        ({"order": None}, "columns lacks 'order': name the table's column for it"),
        ({"order": []}, "columns has 0 columns for 'order'"),
        ({"role": ["a", "b"]}, "columns has 2 columns for 'role': give one"),
        ({"role": "speaker"}, "'Chat Log' has no column 'speaker': row, Thread Id, who?, select"),
        ({"order": ["row", "when"]}, "'Chat Log' has no column 'when'"),
    ],
)
async def test_a_wrong_mapping_is_refused(
    change: dict[str, Any], said: str, application: Path
) -> None:
    """A `ConfigurationError` says what there is."""
    columns = {key: name for key, name in (ODD_COLUMNS | change).items() if name is not None}
    with pytest.raises(ConfigurationError) as caught:
        await table_records(f"sqlite:///{application}", "Chat Log", columns)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("url", "table", "kind", "said"),
    [
        ("sqlite:///{}", "chat", ConfigurationError, "there is no table 'chat'"),
        ("sqlite:///{}.typo", "t", ConfigurationError, "there is no file "),
        ("sqlite+aiosqlite:///{}.typo", "t", ConfigurationError, "there is no file "),
        ("sqlite:///{}.txt", "t", ConfigurationError, "the file is not a SQLite database"),
        ("sqlite+aiosqlite:///{}.txt", "t", ConfigurationError, "the file is not a SQLite"),
        ("app.db", "t", ConfigurationError, "no URL that SQLAlchemy reads"),
        ("nosql://u:secret@h/d", "t", ConfigurationError, "no URL that SQLAlchemy reads"),
        ("postgresql://u:secret@h:port/d", "t", ConfigurationError, "no URL that SQLAlchemy reads"),
        ("oracle+oracledb://u:secret@h/d", "t", MissingDependencyError, "pip install oracledb"),
        ("mysql+pymysql://u:secret@127.0.0.1:1/d", "t", DriverError, "the table can't be read"),
    ],
)
async def test_a_wrong_source_is_refused(
    url: str, table: str, kind: type[Exception], said: str, application: Path
) -> None:
    """The error says what is wrong, shows no password, and no file is made."""
    application.with_suffix(".db.txt").write_text("not a database at all" * 100)
    before = sorted(application.parent.iterdir())
    with pytest.raises(kind) as caught:
        await table_records(url.format(application), table, ODD_COLUMNS)
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert sorted(application.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("Thread Id", None, "session_id is NoneType: text, an integer or a UUID"),
        ("Thread Id", b"b", "session_id is bytes: text, an integer or a UUID"),
        ("by", "bob", "session 'b', messages[2]: user_id is another than before"),
        ("at", "yesterday", "session 'b', messages[2]: created_at is no time"),
        ("at", 1e300, "session 'b', messages[0]: created_at is no time"),
        ("at", 1715783400000, "session 'b', messages[0]: created_at is no time"),
        ("note", "{", "session 'b', messages[2]: metadata is text, and not JSON"),
        ("calls", b"\xff", "session 'b', messages[2]: tool_calls is text, and not JSON"),
    ],
)
async def test_a_bad_value_of_a_table_is_named(
    column: str, value: object, said: str, application: Path
) -> None:
    """A `DataError` says where it is and what is wrong with it, and shows no content."""
    with sqlite3.connect(application) as connection:
        statement = f'UPDATE "Chat Log" SET "{column}" = ? WHERE "row" = 2'  # noqa: S608 - ours
        connection.execute(statement, (value,))
    connection.close()
    columns = ODD_COLUMNS | {"order": "at"}
    with pytest.raises(DataError) as caught:
        await table_records(f"sqlite:///{application}", "Chat Log", columns, roles=ROLES)
    assert str(caught.value).startswith(said)
