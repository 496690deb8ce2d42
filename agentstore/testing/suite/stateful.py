"""Any sequence of calls, compared with a model after each of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from ..._ids import uuid7
from ...database import Database, connect
from ...errors import ConflictError
from ...types import UNSET, Message, Session
from ..model import Conflict, Entry, Model, Talk
from ._base import Suite, contract, examples

__all__ = ["ModelTests"]

T = TypeVar("T")
R = TypeVar("R")

# Few of each, and alike, so that calls meet.
_sessions = st.sampled_from(("s", "S"))
_users = st.sampled_from((None, None, None, "u", "U"))
_keys = st.sampled_from(("k", "K", "k/1", "k_"))
_contents = st.sampled_from(("a", "b", None))
_metadata = st.sampled_from(({}, {"k": 1}, {"k": [None, 1.5]}))
_sizes = st.none() | st.integers(1, 4)
_ends = st.sampled_from(("first", "last"))
_places = st.none() | st.integers(0, 99)
_expected = st.sampled_from((None, None, "right", "wrong", "nothing"))


class ModelTests(Suite):
    """The whole contract but expiry and concurrency, against `agentstore.testing.model`."""

    @contract
    async def test_any_sequence_of_calls(self, database_url: str) -> None:
        """Whatever is called in whatever order, the store answers as the model does."""
        # In a thread: Hypothesis drives the machine, and the machine drives a loop of its own.
        await asyncio.to_thread(_run, database_url)


def _run(database_url: str) -> None:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        opening = connect(database_url)
        database = runner.run(opening.__aenter__())
        try:
            run_state_machine_as_test(
                # It is called for each example and need not be the class itself.
                partial(_Machine, runner, database),  # type: ignore[arg-type]
                settings=examples(40, steps=40),
            )
        finally:
            runner.run(opening.__aexit__(None, None, None))


class _Machine(RuleBasedStateMachine):
    """One tenant of the store, and the model of it."""

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        super().__init__()
        self._run = runner.run
        self._can = database.capabilities
        view = database.for_tenant(uuid7())
        self._store, self._state = view.conversations, view.state.app()
        self._model = Model()
        self._touched = "s"
        self._made = 0
        self._sent: defaultdict[str, list[Message]] = defaultdict(list)

    def _both(
        self,
        modelled: Callable[[], T],
        call: Callable[[], Coroutine[Any, Any, R]],
        *,
        detects: bool = True,
    ) -> tuple[T, R] | None:
        """Make a call on the model and on the store; `None` where both see a conflict.

        A store that doesn't detect such a conflict isn't called then.
        """
        try:
            expected = modelled()
        except Conflict:
            if detects:
                with pytest.raises(ConflictError):
                    self._run(call())
            return None
        return expected, self._run(call())

    def _seq(self, session_id: str, place: int | None) -> int | None:
        """Choose a `seq`: that of a message, 0, or one that is yet to come."""
        talk = self._model.talks.get(session_id)
        beyond = self._model.highest.get(session_id, 0) + 1
        seqs = [0, *(entry.seq for entry in talk.entries), beyond] if talk else [0]
        return None if place is None else seqs[place % len(seqs)]

    def _append(
        self, session_id: str, batch: list[Message], user_id: str | None, expected: str | None
    ) -> None:
        self._touched = session_id
        self._sent[session_id] += batch
        talk = self._model.talks.get(session_id)
        how: dict[str, Any] = {"user_id": user_id}
        if self._can.conflict_detection:
            how["expect_seq"] = _version(talk.last_seq if talk else 0, expected)
        both = self._both(
            lambda: self._model.append(session_id, batch, **how),
            lambda: self._store.append(session_id, batch, **how),
            detects=self._can.conflict_detection,
        )
        if both:
            assert both[1].created == both[0]
            self._model.number(session_id, batch, both[1].seqs)

    def _new(self, content: str | None, metadata: dict[str, Any]) -> Message:
        self._made += 1
        return Message(role="user", content=content, metadata=metadata, id=f"m{self._made}")

    @rule(
        session_id=_sessions,
        bodies=st.lists(st.tuples(_contents, _metadata), min_size=1, max_size=4),
        user_id=_users,
        expected=_expected,
    )
    def append(
        self,
        session_id: str,
        bodies: list[tuple[str | None, dict[str, Any]]],
        user_id: str | None,
        expected: str | None,
    ) -> None:
        self._append(session_id, [self._new(*body) for body in bodies], user_id, expected)

    @rule(
        session_id=_sessions,
        picks=st.lists(st.tuples(st.integers(0, 99), _contents), min_size=1, max_size=2),
        change=st.sampled_from((False, False, True)),
        more=st.lists(_contents, max_size=2),
        expected=_expected,
    )
    def append_again(
        self,
        session_id: str,
        picks: list[tuple[int, str | None]],
        change: bool,  # noqa: FBT001 - Hypothesis calls it
        more: list[str | None],
        expected: str | None,
    ) -> None:
        """Send what was sent before, stored still or not, and perhaps with another body."""
        sent = self._sent[session_id]
        batch = [sent[number % len(sent)] for number, _ in picks if sent]
        if change:
            contents = [content for _, content in picks]
            batch = [
                replace(message, content=content)
                for message, content in zip(batch, contents, strict=False)
            ]
        batch += [self._new(content, {}) for content in more]
        if batch:
            self._append(session_id, batch, None, expected)

    @rule(session_id=_sessions, user_id=_users, size=_sizes, end=_ends, low=_places, high=_places)
    def read(  # noqa: PLR0917 - Hypothesis calls it, by name
        self,
        session_id: str,
        user_id: str | None,
        size: int | None,
        end: str,
        low: int | None,
        high: int | None,
    ) -> None:
        page: dict[str, Any] = {
            end: size,
            "after": self._seq(session_id, low),
            "before": self._seq(session_id, high),
        }
        stored = self._run(self._store.read(session_id, user_id=user_id, **page))
        talk = self._model.talks.get(session_id)
        hidden = talk is not None and user_id not in (None, talk.user_id)
        assert list(map(_entry, stored)) == ([] if hidden else self._model.read(session_id, **page))

    @rule(
        session_id=_sessions,
        number=st.integers(0, 99),
        content=_contents,
        metadata=st.none() | _metadata,
    )
    def replace(
        self, session_id: str, number: int, content: str | None, metadata: dict[str, Any] | None
    ) -> None:
        self._touched = session_id
        talk = self._model.talks.get(session_id)
        ids = [*(entry.id for entry in talk.entries), "unknown"] if talk else ["unknown"]
        message_id = ids[number % len(ids)]
        new = UNSET if metadata is None else metadata
        replaced = self._run(
            self._store.replace(session_id, message_id, content=content, metadata=new)
        )
        assert replaced is self._model.replace(session_id, message_id, content, metadata)

    @rule(session_id=_sessions, place=st.integers(0, 99))
    def rewind(self, session_id: str, place: int) -> None:
        self._touched = session_id
        to = self._seq(session_id, place) or 0
        dropped = self._run(self._store.rewind(session_id, to=to))
        assert dropped == self._model.rewind(session_id, to)

    @rule(session_id=_sessions, new_session_id=_sessions, place=_places)
    def fork(self, session_id: str, new_session_id: str, place: int | None) -> None:
        self._touched = new_session_id
        upto = self._seq(session_id, place)
        both = self._both(
            lambda: self._model.fork(session_id, new_session_id, upto),
            lambda: self._store.fork(session_id, new_session_id, upto=upto),
        )
        if both:
            _check(both[1], both[0])

    @rule(session_id=_sessions, title=st.sampled_from((None, "T")), metadata=st.none() | _metadata)
    def update(self, session_id: str, title: str | None, metadata: dict[str, Any] | None) -> None:
        self._touched = session_id
        new = UNSET if metadata is None else metadata
        session = self._run(self._store.update(session_id, title=title, metadata=new))
        _check(session, self._model.update(session_id, title=title, metadata=metadata))

    @rule(session_id=_sessions)
    def delete(self, session_id: str) -> None:
        self._touched = session_id
        assert self._run(self._store.delete(session_id)) is self._model.delete(session_id)

    @rule(
        user_id=_users,
        prefix=st.sampled_from((None, "", "s", "s_")),
        limit=st.integers(1, 5),
    )
    def sessions(self, user_id: str | None, prefix: str | None, limit: int) -> None:
        if self._can.listing != "exact":
            return
        found: list[Session] = []
        cursor: str | None = None
        while not found or cursor:
            page = self._run(
                self._store.sessions(user_id=user_id, prefix=prefix, limit=limit, cursor=cursor)
            )
            found += page
            cursor = page.cursor
            if not page:
                break
        ids = [session.session_id for session in found]
        assert (ids if prefix is not None else sorted(ids)) == sorted(
            session_id
            for session_id, talk in self._model.talks.items()
            if session_id.startswith(prefix or "") and user_id in (None, talk.user_id)
        )
        for session in found:
            _check(session, self._model.talks[session.session_id])

    def _expect(self, key: str, expected: str | None) -> int | None:
        version = self._model.version(key)
        return _version(version, expected) if self._can.compare_and_set else None

    @rule(key=_keys, value=_contents, expected=_expected)
    def put(self, key: str, value: str | None, expected: str | None) -> None:
        expect = self._expect(key, expected)
        both = self._both(
            lambda: self._model.put(key, value, expect),
            lambda: self._state.put(key, value, expect=expect),
        )
        if both:
            self._model.stamp(key, both[1].version)
            stored = self._run(self._state.get(key))
            assert stored == both[1]

    @rule(key=_keys, expected=_expected)
    def drop(self, key: str, expected: str | None) -> None:
        # To expect nothing and delete it has no meaning.
        expect = self._expect(key, expected) or None
        both = self._both(
            lambda: self._model.drop(key, expect), lambda: self._state.delete(key, expect=expect)
        )
        assert both is None or both[0] is both[1]

    @rule(prefix=st.sampled_from((None, "", "k", "k_", "k/")), limit=st.integers(1, 5))
    def items(self, prefix: str | None, limit: int) -> None:
        page = self._run(self._state.items(prefix=prefix, limit=limit))
        keys = sorted(key for key in self._model.state if key.startswith(prefix or ""))
        assert [item.key for item in page] == keys[:limit]
        assert (page.cursor is None) is (len(keys) <= limit)
        for item in page:
            assert (item.value, item.version) == self._model.state[item.key]

    @invariant()
    def stored_is_modelled(self) -> None:
        session_id = self._touched
        _check(self._run(self._store.get(session_id)), self._model.talks.get(session_id))
        stored = self._run(self._store.read(session_id))
        assert list(map(_entry, stored)) == self._model.read(session_id)


def _version(stored: int, expected: str | None) -> int | None:
    return {None: None, "right": stored, "wrong": stored + 1, "nothing": 0}[expected]


def _entry(message: Message) -> Entry:
    return Entry(message.id, message.content, message.metadata, message.seq or 0)


def _check(session: Session | None, talk: Talk | None) -> None:
    assert (session is None) is (talk is None)
    if session is not None and talk is not None:
        assert (session.user_id, session.title) == (talk.user_id, talk.title)
        assert (session.metadata, session.message_count) == (talk.metadata, len(talk.entries))
