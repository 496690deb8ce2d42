"""What can't be stored: a `DataError` that names it, and nothing half-written."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from ...database import Database
from ...errors import DataError
from ...types import Message
from ._base import Suite, say, taken, texts

__all__ = ["RefusalTests"]

_Calls = dict[str, Callable[[], Awaitable[object]]]

_IDS: dict[str, Any] = {
    "empty": "",
    "NUL": "a\0b",
    "NUL alone": "\0",
    "half a surrogate pair": "a\ud800",
    "513 bytes": "a" * 513,
    "513 bytes of 3-byte characters": "€" * 171,
    "bytes": b"abc",
    "a number": 7,
    "a list": ["a"],
}

_NOT_JSON: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "2^63": 2**63,
    "-2^63-1": -(2**63) - 1,
    "half a surrogate pair": "\ud800",
    "the other half": {"k": ["\udfff"]},
    "half a pair in a key": {"\udc00": 1},
    "a key that is no text": {1: "a"},
    "bytes": b"abc",
    "a set": {1},
    "a tuple": (1, 2),
    "a datetime": datetime(2024, 1, 1),  # noqa: DTZ001 - refused with or without a zone
    "an object": object(),
}

_EAST = timezone(timedelta(hours=9))

_MESSAGES: dict[str, Any] = {
    "unknown role": {"role": "robot", "content": "x"},
    "no role": {"content": "x"},
    "role null": {"role": None, "content": "x"},
    "role in capitals": {"role": "User", "content": "x"},
    "role a list": {"role": ["user"], "content": "x"},
    "result without its call": {"role": "tool", "content": "x"},
    "result whose call is null": {"role": "tool", "content": "x", "tool_call_id": None},
    "result whose call is empty": {"role": "tool", "content": "x", "tool_call_id": ""},
    "result whose call is a number": {"role": "tool", "content": "x", "tool_call_id": 7},
    "content a number": {"role": "user", "content": 1},
    "content a dict": {"role": "user", "content": {"type": "text"}},
    "name a number": {"role": "user", "content": "x", "name": 1},
    "name with half a pair": {"role": "user", "content": "x", "name": "\ud800"},
    "calls a dict": {"role": "assistant", "tool_calls": {"id": "c"}},
    "half a pair in the content": {"role": "user", "content": "a\ud83d"},
    "half a pair in a part": {"role": "user", "content": [{"type": "text", "text": "\ude00"}]},
    "half a pair in an unknown key": {"role": "user", "content": "x", "\ud800": 1},
    "NaN in a part": {"role": "user", "content": [{"n": math.nan}]},
    "NaN in a call": {"role": "assistant", "tool_calls": [{"n": math.nan}]},
    "NaN in an unknown key": {"role": "assistant", "content": "x", "logprob": math.nan},
    "metadata a list": say("x", metadata=[]),
    "metadata null": say("x", metadata=None),
    "extra a list": say("x", extra=["k"]),
    "extra an empty list": say("x", extra=[]),
    "extra null": say("x", extra=None),
    "extra with a field": say("x", extra={"content": "y"}),
    "id with NUL": say("x", id="a\0"),
    "id empty": say("x", id=""),
    "id of 513 bytes": say("x", id="a" * 513),
    "tokens below 0": say("x", tokens=-1),
    "tokens a fraction": say("x", tokens=1.5),
    "tokens of 65 bits": say("x", tokens=2**64),
    "time without a zone": say("x", created_at=datetime(2024, 1, 1)),  # noqa: DTZ001
    "time before the year 1": say("x", created_at=datetime(1, 1, 1, tzinfo=_EAST)),
    "time as text": say("x", created_at="2024-01-01"),
    "a string": "hello",
    "null": None,
}

_COUNTS = [0, -1, 1.0, "1", True, 1 << 63]
_BOUNDS = [-1, 1.0, "1", True, 1 << 63]
_LIMITS = [0, -1, None, 1.0, True]
_TTLS = [0, -1, math.nan, math.inf, "1", True, 1e12]


class RefusalTests(Suite):
    """The refusals of rule 9; every one leaves the store as it was."""

    async def test_bad_messages(self, database: Database) -> None:
        """A message that can't be stored keeps its whole batch out, and is named by its place."""
        calls: _Calls = {
            name: partial(database.conversations.append, "s", [say("good"), bad, say("good")])
            for name, bad in _MESSAGES.items()
        }
        assert await taken(calls, DataError, "messages[1]") == []
        assert await database.conversations.get("s") is None
        assert list(await database.conversations.read("s")) == []

    async def test_bad_batch_changes_nothing(self, database: Database) -> None:
        """After a refused batch a session reads as before, and takes the good ones of it."""
        conversations = database.conversations
        await conversations.append("s", [say("old")])
        good = say("good")
        with pytest.raises(DataError) as caught:
            await conversations.append("s", [good, say("bad\ud800")])
        assert (caught.value.retryable, caught.value.outcome_unknown) == (False, False)
        assert texts(await conversations.read("s")) == ["old"]
        assert (await conversations.append("s", [good])).created == (True,)

    async def test_bad_json(self, database: Database) -> None:
        """What isn't JSON is refused in messages, metadata and state alike, however deep."""
        conversations, state = database.conversations, database.state.app()
        message = say("x")
        await conversations.append("s", [message])
        calls: _Calls = {}
        for name, bad in _NOT_JSON.items():
            value: Any = {"list": [1, {"deep": bad}]}
            batches: dict[str, Message] = {
                "content": Message(role="user", content=[value]),
                "tool_calls": Message(role="assistant", tool_calls=[value]),
                "metadata": say("x", metadata=value),
                "extra": say("x", extra=value),
            }
            for field, one in batches.items():
                calls[f"{name} in {field}"] = partial(conversations.append, "s", [one])
            replacing = partial(conversations.replace, "s", message.id)
            calls |= {
                f"{name} in a session": partial(conversations.update, "s", metadata=value),
                f"{name} in a replacement": partial(replacing, content=[value]),
                f"{name} beside a replacement": partial(replacing, content="y", metadata=value),
                f"{name} in state": partial(state.put, "k", value),
                f"{name} as state": partial(state.put, "k", bad),
            }
        assert await taken(calls, DataError) == []
        session = await conversations.get("s")
        assert session is not None
        assert (session.metadata, session.message_count) == ({}, 1)
        assert texts(await conversations.read("s")) == ["x"]
        assert await state.get("k") is None

    async def test_bad_ids(self, database: Database) -> None:
        """What can't be an id is refused by every method, under the name of its argument."""
        conversations, states = database.conversations, database.state
        state = states.app()
        message = say("x")
        methods: dict[str, list[Callable[[Any], Awaitable[object]]]] = {
            "session_id": [
                lambda bad: conversations.append(bad, [message]),
                conversations.read,
                conversations.get,
                lambda bad: conversations.update(bad, title="T"),
                lambda bad: conversations.replace(bad, "m", content="x"),
                lambda bad: conversations.rewind(bad, to=0),
                lambda bad: conversations.fork(bad, "t"),
                conversations.delete,
                database.delete_session,
                lambda bad: _later(lambda: states.session(bad)),
            ],
            "new_session_id": [lambda bad: conversations.fork("s", bad)],
            "message_id": [lambda bad: conversations.replace("s", bad, content="x")],
            "user_id": [
                lambda bad: conversations.append("s", [message], user_id=bad),
                lambda bad: conversations.read("s", user_id=bad),
                lambda bad: conversations.get("s", user_id=bad),
                lambda bad: conversations.sessions(user_id=bad),
                database.erase_user,
                lambda bad: _later(lambda: states.user(bad)),
            ],
            "agent": [lambda bad: conversations.append("s", [message], agent=bad)],
            "key": [
                state.get,
                lambda bad: state.put(bad, 1),
                state.delete,
            ],
        }
        for argument, calls in methods.items():
            cases: _Calls = {
                f"{name} as {argument} [{place}]": partial(call, bad)
                for name, bad in _IDS.items()
                for place, call in enumerate(calls)
            }
            assert await taken(cases, DataError, argument) == []
        assert await conversations.get("s") is None

    async def test_bad_prefixes_and_tenants(self, database: Database) -> None:
        """Prefixes and tenants may be empty; otherwise they are as ids are."""
        for name, bad in _IDS.items():
            if name == "empty":
                continue
            prefixes: _Calls = {
                f"{name} for sessions": partial(database.conversations.sessions, prefix=bad),
                f"{name} for items": partial(database.state.app().items, prefix=bad),
            }
            assert await taken(prefixes, DataError, "prefix") == []
            tenants: _Calls = {name: partial(_later, partial(database.for_tenant, bad))}
            assert await taken(tenants, DataError, "tenant") == []

    async def test_bad_numbers(self, database: Database) -> None:
        """Counts, bounds and times that make no sense are refused, under their names."""
        conversations, state = database.conversations, database.state.app()
        batch = [say("x")]
        cases: list[tuple[str, Callable[..., Awaitable[object]], list[Any]]] = [
            ("first", partial(conversations.read, "s"), _COUNTS),
            ("last", partial(conversations.read, "s"), _COUNTS),
            ("max_tokens", partial(conversations.read, "s"), _COUNTS),
            ("before", partial(conversations.read, "s"), _BOUNDS),
            ("after", partial(conversations.read, "s"), _BOUNDS),
            ("to", partial(conversations.rewind, "s"), [*_BOUNDS, None]),
            ("upto", partial(conversations.fork, "s", "t"), _BOUNDS),
            ("limit", conversations.sessions, [*_LIMITS, 10**9]),
            ("limit", conversations.purge_expired, _LIMITS),
            ("limit", state.items, [*_LIMITS, 10**9]),
            ("expect_seq", partial(conversations.append, "s", batch), _BOUNDS),
            ("expect", partial(state.put, "k", 1), _BOUNDS),
            ("expect", partial(state.delete, "k"), _BOUNDS),
            ("ttl", partial(conversations.append, "s", batch), _TTLS),
            ("ttl", partial(conversations.update, "s"), _TTLS),
            ("ttl", partial(state.put, "k", 1), _TTLS),
        ]
        for name, call, values in cases:
            calls: _Calls = {
                f"{name}={value!r}": partial(call, **{name: value}) for value in values
            }
            assert await taken(calls, DataError, name) == []
        assert await conversations.get("s") is None
        assert await state.get("k") is None

    async def test_contradictory_reads(self, database: Database) -> None:
        """`first` goes with neither `last` nor `max_tokens`."""
        calls: _Calls = {
            "last": partial(database.conversations.read, "s", first=1, last=1),
            "max_tokens": partial(database.conversations.read, "s", first=1, max_tokens=1),
        }
        assert await taken(calls, DataError, "first") == []

    async def test_bad_batches(self, database: Database) -> None:
        """A batch is a list of at least one message."""
        one = say("x")
        batches: list[Any] = [[], (), None, "x", b"x", one, {"role": "user"}, {1}, iter([one]), 7]
        calls: _Calls = {
            repr(batch): partial(database.conversations.append, "s", batch) for batch in batches
        }
        assert await taken(calls, DataError) == []
        assert await database.conversations.get("s") is None

    async def test_bad_cursors(self, database: Database) -> None:
        """A cursor that no listing gave is refused, whatever it is."""
        conversations = database.conversations
        listings: list[Callable[..., Awaitable[object]]] = [
            conversations.sessions,
            partial(conversations.sessions, prefix=""),
            database.state.app().items,
        ]
        bad: list[Any] = [7, b"x", ["a"], "", "nonsense", "\ud800", "é", "\0", "W10", "a" * 10_000]
        for listing in listings:
            calls: _Calls = {repr(cursor): partial(listing, cursor=cursor) for cursor in bad}
            assert await taken(calls, DataError, "cursor") == []

    async def test_bad_titles(self, database: Database) -> None:
        """A title is text without NUL, or none."""
        await database.conversations.append("s", [say("x")])
        bad: list[Any] = ["a\0", "\ud800", 7, b"x", ["x"]]
        calls: _Calls = {
            repr(title): partial(database.conversations.update, "s", title=title) for title in bad
        }
        assert await taken(calls, DataError, "title") == []
        session = await database.conversations.get("s")
        assert session is not None
        assert session.title is None


async def _later(call: Callable[[], object]) -> object:
    return call()
