"""Locks that hold between threads and between processes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agentstore.errors import MissingDependencyError, OverloadedError

from . import _files as files

try:
    import fcntl
except ImportError:
    raise MissingDependencyError(
        "json:// locks its files with fcntl, which Windows doesn't have: use sqlite:// there"
    ) from None


class Locks:
    """Locks by name, each an empty file that is never removed.

    They are apart from the files that they guard, because those are replaced, and a lock on a
    file that has been replaced guards nothing.
    The system frees what a killed process held.
    """

    def __init__(self, directory: Path, timeout: float) -> None:
        self._directory = directory
        self._timeout = timeout
        self._threads: dict[str, threading.Lock] = {}

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Hold locks for the block; `OverloadedError` where others hold them for too long.

        Several are taken in one order everywhere, so that no two calls wait for each other.
        """
        deadline = time.monotonic() + self._timeout
        with ExitStack() as held:
            for name in sorted(set(names)):
                # Threads wait for each other here, where waiting needs no asking again.
                thread = self._threads.setdefault(name, threading.Lock())
                if not thread.acquire(timeout=max(0, deadline - time.monotonic())):
                    raise self._busy()
                held.callback(thread.release)
                path = self._directory / name
                fd = held.enter_context(files.opened(path, os.O_RDWR | os.O_CREAT))
                self._lock(fd, deadline)
                # Closing alone wouldn't free it while a forked child has the descriptor too.
                held.callback(fcntl.flock, fd, fcntl.LOCK_UN)
            yield

    def _lock(self, fd: int, deadline: float) -> None:
        # The system can't wait with a deadline, so this asks again and again.
        pause = 0.0005
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._busy() from None
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
                pause = min(2 * pause, 0.02)
            else:
                return

    def _busy(self) -> OverloadedError:
        return OverloadedError(
            f"the files are locked by another call or process for {self._timeout:g} s: "
            "`timeout` says how long to wait"
        )
