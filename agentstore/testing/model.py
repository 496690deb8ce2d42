"""A store as the contract describes it, in lists and dicts: slow, small and obvious.

It shares no code with any driver, so that a mistake in what drivers share shows against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..types import Message

__all__ = ["Conflict", "Entry", "Model", "Talk"]


class Conflict(Exception):  # noqa: N818 - an outcome, as `ConflictError` is the store's
    """The store has to refuse this."""


@dataclass
class Entry:
    """A stored message; the store says what `seq` it gave."""

    id: str
    content: object
    metadata: dict[str, Any]
    seq: int = 0

    def is_body_of(self, message: Message) -> bool:
        """Say whether the message would be a repeat of this one."""
        return (self.content, self.metadata) == (message.content, message.metadata)


@dataclass
class Talk:
    """A session."""

    user_id: str | None
    entries: list[Entry] = field(default_factory=list)
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def find(self, message_id: str) -> Entry | None:
        """Look for a message by its id."""
        return next((entry for entry in self.entries if entry.id == message_id), None)

    @property
    def last_seq(self) -> int:
        """The `seq` of the newest message, 0 where there is none."""
        return self.entries[-1].seq if self.entries else 0


class Model:
    """What a store of one tenant holds, and what each call has to do to it."""

    def __init__(self) -> None:
        self.talks: dict[str, Talk] = {}
        self.state: dict[str, tuple[object, int]] = {}
        self.highest: dict[str, int] = {}
        self.versions: set[int] = set()

    def append(
        self,
        session_id: str,
        batch: list[Message],
        *,
        user_id: str | None = None,
        expect_seq: int | None = None,
    ) -> tuple[bool, ...]:
        """Append, and tell what was created; `number` has to follow."""
        talk = self.talks.get(session_id) or Talk(user_id)
        if user_id is not None and talk.user_id != user_id:
            raise Conflict
        after = list(talk.entries)
        created = []
        for message in batch:
            stored = next((entry for entry in after if entry.id == message.id), None)
            if stored is None:
                after.append(Entry(message.id, message.content, message.metadata))
            elif not stored.is_body_of(message):
                raise Conflict
            created.append(stored is None)
        if any(created) and expect_seq is not None and expect_seq != talk.last_seq:
            raise Conflict
        talk.entries = after
        self.talks[session_id] = talk
        return tuple(created)

    def number(self, session_id: str, batch: list[Message], seqs: tuple[int | None, ...]) -> None:
        """Take over the `seq` that the store gave: higher than all before, or as it was."""
        assert len(seqs) == len(batch)
        for message, seq in zip(batch, seqs, strict=True):
            entry = self.talks[session_id].find(message.id)
            assert entry is not None
            assert seq is not None
            if entry.seq == 0:
                assert seq > self.highest.get(session_id, 0), "a seq came again"
                self.highest[session_id] = entry.seq = seq
            assert entry.seq == seq

    def read(
        self,
        session_id: str,
        *,
        first: int | None = None,
        last: int | None = None,
        before: int | None = None,
        after: int | None = None,
    ) -> list[Entry]:
        """List messages between two bounds, from one end."""
        talk = self.talks.get(session_id)
        found = [
            entry
            for entry in (talk.entries if talk else [])
            if (after is None or entry.seq > after) and (before is None or entry.seq < before)
        ]
        return found[-last:] if last is not None else found[:first]

    def replace(
        self,
        session_id: str,
        message_id: str,
        content: str | None,
        metadata: dict[str, Any] | None,
    ) -> bool:
        """Put other content in the place of one message's; no `metadata` leaves it."""
        talk = self.talks.get(session_id)
        entry = talk.find(message_id) if talk else None
        if entry is None:
            return False
        entry.content = content
        if metadata is not None:
            entry.metadata = metadata
        return True

    def rewind(self, session_id: str, to: int) -> int:
        """Drop what lies behind `to`."""
        talk = self.talks.get(session_id)
        if talk is None:
            return 0
        kept = [entry for entry in talk.entries if entry.seq <= to]
        dropped = len(talk.entries) - len(kept)
        talk.entries = kept
        return dropped

    def fork(self, session_id: str, new_session_id: str, upto: int | None) -> Talk:
        """Copy a session."""
        source = self.talks.get(session_id)
        if source is None or new_session_id in self.talks:
            raise Conflict
        copies = [replace(entry) for entry in source.entries if upto is None or entry.seq <= upto]
        copy = replace(source, entries=copies)
        self.talks[new_session_id] = copy
        self.highest[new_session_id] = max(self.highest.get(new_session_id, 0), copy.last_seq)
        return copy

    def update(
        self, session_id: str, *, title: str | None, metadata: dict[str, Any] | None
    ) -> Talk | None:
        """Set the title, and the metadata where it is given."""
        talk = self.talks.get(session_id)
        if talk is not None:
            talk.title = title
            talk.metadata = talk.metadata if metadata is None else metadata
        return talk

    def delete(self, session_id: str) -> bool:
        """Forget a session, but not how far its `seq` had come."""
        return self.talks.pop(session_id, None) is not None

    def put(self, key: str, value: object, expect: int | None) -> None:
        """Write a value; `stamp` has to follow."""
        if expect is not None and expect != self.version(key):
            raise Conflict
        self.state[key] = (value, 0)

    def stamp(self, key: str, version: int) -> None:
        """Take over the version that the store gave: one that no value ever had."""
        assert version > 0
        assert version not in self.versions, "a version came again"
        self.versions.add(version)
        self.state[key] = (self.state[key][0], version)

    def drop(self, key: str, expect: int | None) -> bool:
        """Delete a value."""
        if expect is not None and expect != self.version(key):
            raise Conflict
        return self.state.pop(key, None) is not None

    def version(self, key: str) -> int:
        """Tell the version of a value, 0 where there is none."""
        return self.state[key][1] if key in self.state else 0
