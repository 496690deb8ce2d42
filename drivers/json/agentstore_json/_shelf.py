"""The sessions that a process keeps in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ._session import SessionFile

# What a session takes besides its messages.
_EACH = 4096


class Shelf:
    """The sessions used last, as many as fit into so many bytes of their files.

    One that is in use is not here, but with its user, who holds its lock.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._sessions: OrderedDict[str, SessionFile] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str) -> SessionFile | None:
        """Take a session out."""
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is not None:
                self._held -= session.size + _EACH
            return session

    def give(self, name: str, session: SessionFile) -> None:
        """Put a session in, and those used least out."""
        with self._lock:
            self._sessions[name] = session
            self._held += session.size + _EACH
            while self._held > self._most:
                _, least = self._sessions.popitem(last=False)
                self._held -= least.size + _EACH
