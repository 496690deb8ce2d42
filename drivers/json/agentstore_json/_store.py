"""An open store: what all calls share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentstore.driver import key_hash

from ._catalog import Catalog, Entry
from ._directory import open_directory
from ._records import is_past
from ._session import SessionFile
from ._shelf import Shelf
from ._versions import Versions

# The most that is kept in memory, in bytes of the sessions' files.
_KEPT = 64 << 20


class Store:
    """What lies in the directory, and the way to it.

    ::

        format.json                     the version of all this
        catalog.jsonl                   the list of all sessions
        conversations/ab/ab12….jsonl    a session: a hash of its tenant and id
        state/ab/ab34…/567890….json     a value: a hash of its scope, and one of its key
        versions.json                   how many versions of values were given
        locks/ab                        the lock of all whose hash begins with ab
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.base, self.locks = open_directory(path, timeout)
        self.catalog = Catalog(self.base, self.locks)
        self.versions = Versions(self.base / "versions.json", self.locks)
        self._shelf = Shelf(_KEPT)

    @contextmanager
    def sessions(self, tenant: str, *session_ids: str) -> Iterator[list[SessionFile]]:
        """Lock sessions for the block, and give them as their files say they are."""
        names = [key_hash(tenant, session_id).hex() for session_id in session_ids]
        with self.locks.hold(*(name[:2] for name in names)):
            found = []
            for name, session_id in zip(names, session_ids, strict=True):
                path = self.base / "conversations" / name[:2] / f"{name}.jsonl"
                session = self._shelf.take(name) or SessionFile(path, tenant, session_id)
                session.pull()
                found.append(session)
            yield found
            # Not after an error: then memory may be ahead of the file.
            for name, session in zip(names, found, strict=True):
                self._shelf.give(name, session)

    @contextmanager
    def session(self, tenant: str, session_id: str) -> Iterator[SessionFile]:
        """Lock one session for the block."""
        with self.sessions(tenant, session_id) as (session,):
            yield session

    def commit(self, session: SessionFile) -> None:
        """Write what was changed of a session, and have the catalog list it.

        The catalog hears of a session before it is there, and of its deletion afterwards: so that
        whatever a killed process leaves, no session is missing in a listing.
        """
        entry = Entry.of(session.tenant, session.session_id, session.head)
        relist, listed = session.relist, entry.updated_at is not None
        if relist and listed:
            self.catalog.note(entry)
        session.commit()
        if relist and not listed:
            self.catalog.note(entry)

    def recheck(self, session: SessionFile) -> None:
        """Have the catalog say what a session's file says, where it may say something else.

        A tombstone that is old enough goes, and what a killed process has begun and not finished.
        """
        entry = Entry.of(session.tenant, session.session_id, session.head)
        if entry.updated_at is None and (entry.due is None or is_past(entry.due)):
            session.remove()
            entry = Entry.of(session.tenant, session.session_id, None)
        self.catalog.note(entry)
