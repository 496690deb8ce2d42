"""Round trips: what goes in comes out equal, on every engine."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ..._ids import uuid7
from ...conversations import Conversations
from ...database import Database
from ...state import State
from ...types import Message, Reply
from ..corpus import TEXTS
from ..strategies import json_values, messages
from ._base import Suite, contract, examples, say, texts, written

__all__ = ["RoundTripTests"]

_FUNCTION = {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
_CALL = {"id": "call_1", "type": "function", "function": _FUNCTION}

OPENAI: dict[str, dict[str, Any]] = {
    "system": {"role": "system", "content": "You are helpful."},
    "developer": {"role": "developer", "content": "Be brief."},
    "user": {"role": "user", "content": "hi", "name": "ada"},
    "assistant": {"role": "assistant", "content": "hello"},
    "no content": {"role": "assistant"},
    "content null": {"role": "assistant", "content": None},
    "content empty": {"role": "assistant", "content": ""},
    "content without parts": {"role": "user", "content": []},
    "name null": {"role": "user", "content": "hi", "name": None},
    "tool_calls null": {"role": "assistant", "content": "hi", "tool_calls": None},
    "tool_calls empty": {"role": "assistant", "content": "hi", "tool_calls": []},
    "calls": {"role": "assistant", "content": None, "tool_calls": [_CALL, _CALL | {"id": "2"}]},
    "call of a custom tool": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}}],
    },
    "call with streaming leftovers": {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"index": 0, "id": "", "type": None, "function": {"arguments": ""}}],
    },
    "result": {"role": "tool", "content": "12 °C", "tool_call_id": "call_1"},
    "result in parts": {
        "role": "tool",
        "content": [{"type": "text", "text": "12"}, {"type": "text", "text": ""}],
        "tool_call_id": "call_1",
    },
    "function call": {"role": "assistant", "content": None, "function_call": _FUNCTION},
    "function": {"role": "function", "content": "12 °C", "name": "get_weather"},
    "parts": {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
            },
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1", "filename": None}},
        ],
    },
    "refusal part": {
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "I can't help with that."}],
    },
    "refusal": {"role": "assistant", "content": None, "refusal": "I can't help with that."},
    "refusal null": {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
    "audio": {"role": "assistant", "content": None, "audio": {"id": "audio_1"}},
    "annotations": {
        "role": "assistant",
        "content": "See [1].",
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": 4,
                    "end_index": 7,
                    "title": "T",
                    "url": "https://example.org/?a=1&b=2",
                },
            }
        ],
    },
    "keys of others": {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "2 + 2",
        "cache_control": {"type": "ephemeral"},
        "provider": {"score": 1.0, "n": 1, "flag": False, "empty": {}, "": [[], [None], ""]},
        "seq": 7,
        "id": "msg_1",
        "metadata": {"theirs": True},
        "extra": "theirs",
    },
}
"""Every shape of OpenAI's chat format, and what endpoints that speak it add."""

_NUMBERS: list[Any] = [
    *(0, 1, -1, 1.0, 0.0, -0.0, -1.0, 0.1, 1 / 3, 1e16, 1e22, 123456789012345680.0),
    *(1e308, -1e308, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308),
    *(2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), True, False, None),
]


class _Kind(StrEnum):
    ALPHA = "alpha"


class _Level(IntEnum):
    LOW = 3


class RoundTripTests(Suite):
    """Fidelity: OpenAI's format, text, numbers, and times."""

    @contract
    async def test_openai_format(self, conversations: Conversations) -> None:
        """Every message of OpenAI's chat format comes out as it went in, key for key."""
        await conversations.append("s", list(OPENAI.values()))
        stored = [message.to_openai() for message in await conversations.read("s")]
        assert dict(zip(OPENAI, map(_keys, stored), strict=True)) == {
            name: _keys(message) for name, message in OPENAI.items()
        }

    async def test_fields_of_ours(self, conversations: Conversations) -> None:
        """Id, metadata, tokens and time come back beside what the format has."""
        message = say(
            "hi",
            id="my-id",
            metadata={"model": "m", "cost": 0.1},
            tokens=12,
            created_at=datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC),
        )
        await conversations.append("s", [message, replace(message, id="2", tokens=0)])
        stored = await conversations.read("s")
        assert written(stored[0]) == written(message)
        assert [one.tokens for one in stored] == [12, 0]

    @contract
    async def test_text(self, conversations: Conversations) -> None:
        """Text comes back character for character, with NUL and in every field that has text."""
        await conversations.append(
            "s",
            [
                Message(
                    role="tool",
                    content=text,
                    name=text,
                    tool_call_id=text or "c",
                    tool_calls=[text],
                    metadata={text: text},
                    extra={f"x{text}": text},
                )
                for text in TEXTS
            ],
        )
        stored = await conversations.read("s")
        assert texts(stored) == list(TEXTS)
        for message, text in zip(stored, TEXTS, strict=True):
            assert (message.name, message.tool_call_id) == (text, text or "c")
            assert (message.tool_calls, message.metadata) == ([text], {text: text})
            assert message.extra == {f"x{text}": text}

    async def test_text_beside_messages(self, conversations: Conversations) -> None:
        """Titles, agents and metadata of a session keep their text as well."""
        printable = [text for text in TEXTS if "\0" not in text and len(text.encode()) <= 512]
        agent = "\n".join(printable)[:100]
        await conversations.append("s", [say("x")], agent=agent)
        for text in printable:
            session = await conversations.update("s", title=text, metadata={text: [text]})
            assert session is not None
            assert (session.title, session.metadata) == (text, {text: [text]})
        session = await conversations.update("s", metadata={"\0": "a\0b"})
        assert session is not None
        assert (session.agent, session.metadata) == (agent, {"\0": "a\0b"})

    @contract
    async def test_numbers(self, conversations: Conversations, state: State) -> None:
        """Numbers keep their value and their kind: 1.0 is no 1, and no digit is lost."""
        content = [{"type": "x", "n": number} for number in _NUMBERS]
        message = Message(role="user", content=content, metadata={"n": _NUMBERS})
        await conversations.append("s", [message])
        assert [written(one) for one in await conversations.read("s")] == [written(message)]
        await state.put("k", _NUMBERS)
        value = await state.get("k")
        assert value is not None
        assert list(map(repr, value.value)) == list(map(repr, _NUMBERS))
        session = await conversations.update("s", metadata={"n": _NUMBERS})
        assert session is not None
        assert list(map(repr, session.metadata["n"])) == list(map(repr, _NUMBERS))

    async def test_text_of_a_subclass(self, database: Database) -> None:
        """A reply or an enum is stored as the text or number that it is, as an id too."""
        conversations, state = database.conversations, database.state.user(_Kind.ALPHA)
        value = {"text": Reply("hi"), "kind": _Kind.ALPHA, "level": _Level.LOW, _Kind.ALPHA: 1}
        message = Message(role="assistant", content=Reply("hello"), id=_Kind.ALPHA, metadata=value)
        await conversations.append(_Kind.ALPHA, [message], user_id=_Kind.ALPHA)
        await conversations.update(_Kind.ALPHA, title=Reply("T"), metadata=value)
        await state.put(_Kind.ALPHA, value)
        plain = {"text": "hi", "kind": "alpha", "level": 3, "alpha": 1}
        stored = (await conversations.read("alpha", user_id="alpha"))[0]
        assert (stored.id, stored.content, stored.metadata) == ("alpha", "hello", plain)
        session = await conversations.get("alpha")
        assert session is not None
        assert (session.user_id, session.title, session.metadata) == ("alpha", "T", plain)
        got = await state.get("alpha")
        assert got is not None
        assert (got.key, got.value) == ("alpha", plain)
        assert (await conversations.append("alpha", [message])).created == (False,)

    async def test_order_of_keys(self, conversations: Conversations, state: State) -> None:
        """The keys of an object come back in the order in which they were given."""
        value = {"z": 1, "a": {"y": 1, "b": 2}, "": 3, "10": 4, "9": 5, "B": 6}
        await conversations.append("s", [say("x", metadata=value, extra={"data": value})])
        stored = (await conversations.read("s"))[0]
        put = await state.put("k", value)
        got = await state.get("k")
        assert got is not None
        for one in (stored.metadata, stored.extra["data"], put.value, got.value):
            assert json.dumps(one) == json.dumps(value)

    @contract
    async def test_times(self, conversations: Conversations) -> None:
        """A time comes back in UTC, the same moment to the microsecond, from any zone and year."""
        moments = [
            datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2024, 3, 31, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=45))),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2038, 1, 19, 3, 14, 8, tzinfo=timezone(-timedelta(hours=9))),
        ]
        await conversations.append("s", [say("x", created_at=moment) for moment in moments])
        stored = await conversations.read("s")
        assert [message.created_at for message in stored] == moments
        assert {message.created_at.utcoffset() for message in stored} == {timedelta(0)}

    @examples(40)
    @given(batch=st.lists(messages(), min_size=1, max_size=4))
    async def test_generated_messages(
        self, conversations: Conversations, batch: list[Message]
    ) -> None:
        """Messages of any shape come back equal, and are repeats when they are sent again."""
        session_id = uuid7()
        first = await conversations.append(session_id, batch)
        stored = await conversations.read(session_id)
        utc = [replace(one, created_at=one.created_at.astimezone(UTC)) for one in batch]
        assert [written(message) for message in stored] == [written(message) for message in utc]
        again = await conversations.append(session_id, list(stored))
        assert (again.seqs, again.created) == (first.seqs, (False,) * len(batch))

    @examples(60)
    @given(value=json_values())
    async def test_generated_values(self, state: State, value: object) -> None:
        """Any JSON value comes back from the state equal, kind for kind."""
        await state.put("k", value)
        stored = await state.get("k")
        assert stored is not None
        assert json.dumps(stored.value) == json.dumps(value)


def _keys(message: dict[str, Any]) -> dict[str, str]:
    """Write each key's value down, so that the order of keys counts within and not without."""
    return {key: json.dumps(value) for key, value in message.items()}
