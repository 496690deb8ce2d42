"""Hypothesis strategies for what a store takes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec.structs import replace

from ..types import UNSET, Message
from .corpus import IDS, TEXTS

__all__ = ["conversations", "identifiers", "json_values", "messages", "texts"]

_INT64 = 1 << 63
_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id"}
_ZONES = (UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9)))


def identifiers() -> SearchStrategy[str]:
    """Generate ids: hostile ones, and any text of 1 to 512 bytes without NUL."""
    letters = st.characters(codec="utf-8", exclude_characters="\0")
    return st.sampled_from(IDS) | st.text(letters, min_size=1, max_size=128)


def texts() -> SearchStrategy[str]:
    """Generate text, hostile and other, with NUL."""
    return st.sampled_from(TEXTS) | st.text()


def json_values() -> SearchStrategy[Any]:
    """Generate whatever JSON holds and a store has to give back equal."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-_INT64, _INT64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from((0, -1, 1.0, -0.0, 1e308, 5e-324, 1e16, 0.1, 2**53 + 1, math.pi))
        | texts()
    )
    return st.recursive(scalars, lambda inner: st.lists(inner) | _objects(inner), max_leaves=6)


def messages() -> SearchStrategy[Message]:
    """Generate messages: any of their fields absent, null, empty or full."""
    roles = st.sampled_from(("system", "developer", "user", "assistant", "function"))
    call_ids = st.sampled_from((UNSET, None)) | texts()
    return _messages(roles, call_ids) | _messages(st.just("tool"), texts().filter(bool))


def _messages(roles: SearchStrategy[str], call_ids: SearchStrategy[Any]) -> SearchStrategy[Message]:
    absent = st.sampled_from((UNSET, None))
    return st.builds(
        Message,
        role=roles,
        content=absent | texts() | st.lists(json_values(), max_size=3),
        name=absent | texts(),
        tool_calls=absent | st.lists(json_values(), max_size=3),
        tool_call_id=call_ids,
        metadata=_objects(json_values()),
        extra=_objects(json_values()).map(
            lambda extra: {key: value for key, value in extra.items() if key not in _FIELDS}
        ),
        tokens=st.none() | st.integers(0, _INT64 - 1),
        # A day from either end of the calendar, so that no time zone leads out of it.
        created_at=st.datetimes(
            datetime(1, 1, 2),  # noqa: DTZ001 - as Hypothesis wants them
            datetime(9999, 12, 30),  # noqa: DTZ001
            timezones=st.sampled_from(_ZONES),
        ),
    )


def _objects(values: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts(), values, max_size=4)


_call_ids = st.sampled_from(("c0", "c1", "c2", "c3", "c4"))
# Hypothesis prefers small numbers; many calls, and long sessions, are what windows are about.
_numbers = st.sampled_from((1, 2, 3, 7, 20))
_moves = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(("user", "assistant", "system"))),
    st.tuples(st.just("call"), st.lists(_call_ids, min_size=1, max_size=3)),
    st.tuples(st.just("call"), _numbers.map(lambda n: [f"p{i}" for i in range(n)])),
    st.tuples(st.just("answer"), _numbers),
    st.tuples(st.just("answer newest"), _numbers),
    st.tuples(st.just("orphan"), _call_ids | st.just("never called")),
    st.tuples(st.just("function call"), st.sampled_from(("f", "g", "c0"))),
    st.tuples(st.just("function"), st.sampled_from(("f", "g", "h"))),
)


_scripts = st.sampled_from((0, 2, 8, 25)).flatmap(
    lambda least: st.lists(_moves, min_size=least, max_size=least + 10)
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Generate sessions with tools, as agents leave them.

    Up to 20 calls at once, answered in any order and between other turns, or never; call ids that
    come again, within one message too; results without a call; functions of the old kind.
    Each message says its place, and costs up to 9 tokens.
    """
    session: list[Message] = []
    waiting: list[str] = []
    for move, subject in draw(_scripts):
        match move:
            case "say":
                session.append(Message(role=subject))
            case "call":
                calls = [{"id": one, "type": "function", "function": _F} for one in subject]
                session.append(Message(role="assistant", content=None, tool_calls=calls))
                waiting += subject
            case "answer":
                session += map(_result, waiting[:subject])
                del waiting[:subject]
            case "answer newest":
                session += map(_result, reversed(waiting[-subject:]))
                del waiting[-subject:]
            case "orphan":
                session.append(_result(subject))
            case "function call":
                call = {"name": subject, "arguments": "{}"}
                session.append(Message(role="assistant", extra={"function_call": call}))
            case _:
                session.append(Message(role="function", name=subject))
    costs = draw(st.lists(st.integers(0, 9), min_size=len(session), max_size=len(session)))
    return [
        replace(message, content=str(place), tokens=cost)
        for place, (message, cost) in enumerate(zip(session, costs, strict=True))
    ]


_F = {"name": "f", "arguments": "{}"}


def _result(call_id: str) -> Message:
    return Message(role="tool", tool_call_id=call_id)
