"""Exchanges: windows that keep them whole, and lists of messages that every endpoint accepts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentstore import ConfigurationError, Message
from agentstore.driver import _window, read_messages
from agentstore.exchanges import answerable, sendable
from openai_server import complaint

JSON = dict[str, Any]

# A busy machine is no finding.
often = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def call(call_id: str, name: str = "f") -> JSON:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


# Few ids, so that they come again; one that is also a function's name.
_ids = st.sampled_from(["a", "b", "c", "f"])
_calls = st.lists(_ids.map(call), max_size=4)
_contents = st.none() | st.sampled_from(["", "text"]) | st.just([{"type": "text", "text": "part"}])


def _assistant(content: object, tool_calls: list[JSON], function: str | None) -> Message:
    given: JSON = {"role": "assistant", "content": content}
    if tool_calls:
        given["tool_calls"] = tool_calls
    if function:
        given["function_call"] = {"name": function, "arguments": "{}"}
    return Message.from_openai(given)


_messages = st.one_of(
    st.builds(lambda text: Message(role="user", content=text), st.sampled_from(["hi", ""])),
    st.builds(_assistant, _contents, _calls, st.none() | st.sampled_from(["f", "g"])),
    st.builds(lambda one: Message(role="tool", tool_call_id=one, content="result"), _ids),
    st.builds(lambda one: Message(role="tool", tool_call_id=one, content="result"), _ids),
    st.builds(
        lambda one: Message(role="function", name=one, content="result"),
        st.sampled_from(["f", "g"]),
    ),
)


@st.composite
def sessions(draw: st.DrawFn, max_size: int = 25) -> list[Message]:
    """Draw messages as a store gives them: `seq` rises with gaps, some tell what they cost."""
    drawn, seq = list[Message](), 0
    for message in draw(st.lists(_messages, max_size=max_size)):
        seq += draw(st.integers(1, 3))
        tokens = draw(st.none() | st.integers(0, 9))
        drawn.append(Message(**{**_fields(message), "seq": seq, "tokens": tokens}))
    return drawn


def _fields(message: Message) -> JSON:
    return {name: getattr(message, name) for name in message.__struct_fields__}


# --- windows, against a definition that looks at the whole session


def _needs(session: Sequence[Message]) -> list[int]:
    """For each message the place that a window with it has to begin at, or before."""
    made: dict[tuple[str, str], int] = {}
    needs = []
    for place, message in enumerate(session):
        mine = place
        if message.role == "tool":
            mine = made.get(("tool", str(message.tool_call_id)), place)
        elif message.role == "function":
            mine = made.get(("function", str(message.name)), place)
        needs.append(mine)
        for one in message.tool_calls or ():
            made["tool", one["id"]] = place
        if function := message.extra.get("function_call"):
            made["function", function["name"]] = place
    return needs


def _clean(session: Sequence[Message]) -> list[int]:
    needs = _needs(session)
    return [start for start in range(len(session)) if min(needs[start:]) >= start]


def _expected(
    session: Sequence[Message], last: int | None, max_tokens: int | None
) -> Sequence[Message]:
    starts = _clean(session)
    if last is not None:
        wanted = max(0, len(session) - last)
        floor = max((start for start in starts if start <= wanted), default=0)
        starts = [start for start in starts if start >= floor]
    if not starts:
        return []
    if max_tokens is None:
        return session[starts[0] :]
    fitting = [
        start
        for start in starts
        if sum(_window.estimate_tokens(one) for one in session[start:]) <= max_tokens
    ]
    return session[min(fitting, default=starts[-1]) :]


class Slices:
    """A session, in slices; counts what was fetched."""

    def __init__(self, session: Sequence[Message]) -> None:
        self.session = session
        self.fetched = 0

    async def __call__(
        self, *, after: int | None, before: int | None, limit: int | None, newest: bool
    ) -> Sequence[Message]:
        low, high = -1 if after is None else after, 10**9 if before is None else before
        within = [message for message in self.session if low < (message.seq or 0) < high]
        given = within if limit is None else within[-limit:] if newest else within[:limit]
        self.fetched += len(given)
        return given


def read(session: Sequence[Message], **asked: int | None) -> Sequence[Message]:
    bounds = dict.fromkeys(("first", "last", "before", "after", "max_tokens"))
    return asyncio.run(read_messages(Slices(session), **{**bounds, **asked}))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reading go back step by step in short sessions too."""
    monkeypatch.setattr(_window, "_CHUNK", 3)
    monkeypatch.setattr(_window, "_MARGIN", 2)


@often
@given(sessions(), st.integers(1, 30))
def test_window_of_messages(session: list[Message], last: int) -> None:
    """`last` gives the shortest end of at least so many messages that cuts no exchange."""
    assert list(read(session, last=last)) == list(_expected(session, last, None))


@often
@given(sessions(), st.integers(1, 120))
def test_window_of_tokens(session: list[Message], budget: int) -> None:
    """`max_tokens` gives the longest end that fits and cuts no exchange, and never nothing."""
    window = read(session, max_tokens=budget)
    assert list(window) == list(_expected(session, None, budget))
    assert bool(window) == bool(session)


@often
@given(sessions(), st.integers(1, 30), st.integers(1, 120))
def test_window_of_both(session: list[Message], last: int, budget: int) -> None:
    """`max_tokens` narrows what `last` asks for, and never widens it."""
    window = read(session, last=last, max_tokens=budget)
    assert list(window) == list(_expected(session, last, budget))


@often
@given(sessions(), st.integers(1, 60), st.integers(0, 70), st.integers(0, 70))
def test_window_within_bounds(session: list[Message], budget: int, after: int, before: int) -> None:
    """With bounds, a window of tokens is that of a session which has nothing beyond them."""
    within = [message for message in session if after < (message.seq or 0) < before]
    window = read(session, max_tokens=budget, after=after, before=before)
    assert list(window) == list(_expected(within, None, budget))


@often
@given(sessions(), st.integers(1, 7), st.sampled_from(["first", "last"]))
def test_pages(session: list[Message], size: int, end: str) -> None:
    """Pages in either direction follow one another without gap or repeat."""
    got: list[Message] = []
    bound: int | None = None
    while True:
        if end == "last":
            # Without a bound it would be a window.
            page = list(read(session, last=size, before=bound or 10**6))
            got = [*page, *got]
        else:
            page = list(read(session, first=size, after=bound))
            got += page
        if not page:
            break
        bound = page[0 if end == "last" else -1].seq
    assert got == session


@pytest.mark.parametrize(
    "asked", [{"last": 20}, {"max_tokens": 200}, {"last": 20, "max_tokens": 9}]
)
def test_cost_of_a_window(asked: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of a long session reads about what it gives, not the session."""
    monkeypatch.undo()
    session = [Message(role="user", content="x", tokens=4, seq=seq) for seq in range(1, 20_001)]
    slices = Slices(session)
    bounds = dict.fromkeys(("first", "last", "before", "after", "max_tokens"))
    asyncio.run(read_messages(slices, **{**bounds, **asked}))
    assert slices.fetched <= 128


def test_orphan_in_a_long_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result whose call is nowhere near doesn't make a window read the whole session."""
    monkeypatch.undo()
    session = [Message(role="user", content="x", seq=seq) for seq in range(1, 20_001)]
    session.append(Message(role="tool", tool_call_id="gone", content="x", seq=20_001))
    slices = Slices(session)
    bounds = dict.fromkeys(("first", "last", "before", "after", "max_tokens"))
    window = asyncio.run(read_messages(slices, **{**bounds, "last": 5}))
    assert len(window) == 5
    assert slices.fetched <= 4_000


# --- what is sent


@often
@given(sessions(max_size=40))
def test_sendable_is_accepted(session: list[Message]) -> None:
    """Whatever lies in a session, what is sent of it is accepted by an endpoint."""
    sent = sendable([Message(role="user", content="first"), *session])
    assert complaint(sent) is None


_malformed_calls = st.sampled_from(
    [
        {},
        {"id": "a"},
        {"id": "", "function": {"name": "f", "arguments": "{}"}},
        {"id": 7, "function": {"name": "f"}},
        {"id": None, "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "a", "function": None},
        {"id": "a", "function": {}},
        {"id": "a", "function": {"name": 7}},
        {"id": "a", "type": ["function"], "function": {"name": "f"}},
        {"id": "a", "type": "custom", "function": {"name": "f"}},
        "a",
        None,
        7,
    ]
)
_odd = st.one_of(
    _messages,
    st.builds(
        Message,
        role=st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"]),
        content=st.none() | st.sampled_from(["", "text", []]),
        name=st.none() | st.just("f"),
        tool_calls=st.none() | st.lists(_malformed_calls | _ids.map(call), max_size=3),
        tool_call_id=st.none() | _ids,
        extra=st.sampled_from(
            [{}, {"function_call": None}, {"function_call": "f"}, {"refusal": None, "x": []}]
        ),
    ),
)


@often
@given(st.lists(_odd, max_size=20))
def test_sendable_of_anything(session: list[Message]) -> None:
    """Calls without an id, results without a call, nulls and empty lists are sent to nobody."""
    sent = sendable([Message(role="user", content="first"), *session])
    assert complaint(sent) is None
    for message in sent:
        assert message.get("content") != []
        for one in message.get("tool_calls", ()):
            assert one["id"]
            assert one[one.get("type", "function")]["name"]


@often
@given(sessions())
def test_sendable_loses_nothing(session: list[Message]) -> None:
    """Every message that is no result is sent, in its order; nothing is changed in the session."""
    before = [message.to_openai() for message in session]
    sent = sendable(session)
    assert [message.to_openai() for message in session] == before
    kept = [message for message in sent if message["role"] not in ("tool", "function")]
    said = [message for message in before if message["role"] not in ("tool", "function")]
    assert [message.get("content") or "" for message in kept] == [
        message.get("content") or "" for message in said
    ]


def test_sendable_leaves_whole_sessions_alone() -> None:
    """What an endpoint accepts as it is, is sent as it is, key for key."""
    session: list[JSON] = [
        {"role": "system", "content": "Be brief.", "name": "house"},
        {"role": "user", "content": [{"type": "text", "text": "sums?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]},
        {"role": "tool", "tool_call_id": "a", "content": "3"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "assistant", "tool_calls": [call("a")], "reasoning": "again"},
        {"role": "tool", "tool_call_id": "a", "content": "4"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "g", "input": "x"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "5"},
        {"role": "assistant", "content": "done", "refusal": "no"},
    ]
    assert sendable([Message.from_openai(message) for message in session]) == session


def test_what_endpoints_answer_with() -> None:
    """Nulls and empty lists of an answer are not sent back: endpoints refuse them."""
    answers: list[JSON] = [
        {"role": "assistant", "content": "hi", "tool_calls": [], "refusal": None},
        {"role": "assistant", "content": "hi", "tool_calls": None, "function_call": None},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
    ]
    assert sendable([Message.from_openai(answer) for answer in answers]) == [
        {"role": "assistant", "content": "hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
    ]


def test_calls_of_two_kinds_with_one_name() -> None:
    """A function's name and a call's id may be the same text, with NUL too."""
    odd = "\0f"
    session = [
        Message.from_openai(
            {
                "role": "assistant",
                "tool_calls": [call("f"), call(odd)],
                "function_call": {"name": "f", "arguments": "{}"},
            }
        ),
        Message(role="function", name="f", content="of the function"),
        Message(role="tool", tool_call_id="f", content="of the call"),
    ]
    assert [(m["role"], m["content"]) for m in sendable(session)[1:]] == [
        ("tool", "of the call"),
        ("tool", "No result: the call was broken off."),
        ("function", "of the function"),
    ]


# --- calls that a model made


def test_answerable_fills_in() -> None:
    """A call without an id gets one, one without arguments an empty object; others stay equal."""
    whole = call("a")
    function = {"name": "f"}
    first, second, third = answerable(
        [whole, {"id": "", "function": function}, {"function": {"name": "f", "arguments": None}}]
    )
    assert first == whole
    assert second["function"] == third["function"] == {"name": "f", "arguments": "{}"}
    assert second["id"] != third["id"]
    assert second["id"].startswith("call_")
    assert function == {"name": "f"}


@pytest.mark.parametrize(
    "calls",
    [
        "f",
        {"id": "a"},
        [None],
        ["f"],
        [{}],
        [{"id": "a"}],
        [{"id": "a", "function": "f"}],
        [{"id": "a", "function": {"arguments": "{}"}}],
        [{"id": "a", "function": {"name": 7}}],
        [{"id": 7, "function": {"name": "f"}}],
        [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
    ],
)
def test_answerable_refuses(calls: object) -> None:
    """A call that names no function is an error that says what a call needs."""
    with pytest.raises(ConfigurationError, match="the model"):
        answerable(calls)
