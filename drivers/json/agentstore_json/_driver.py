"""JSON files: `json:///directory`, `json:////absolute/directory`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agentstore.driver import take_options, translated
from agentstore.errors import ClosedError, ConfigurationError
from agentstore.stores import API_VERSION
from agentstore.types import AppendResult, Capabilities, Scope
from agentstore.url import URL

from ._conversations import JSONConversations, append_together
from ._errors import translate
from ._groups import Groups
from ._session import Append
from ._state import JSONState
from ._store import Store

T = TypeVar("T")

# They mostly wait, for the disk or for a lock. They are our own, because those of the event loop
# may all be busy with somebody's calls of a model.
_THREADS = 8

_CAPABILITIES = Capabilities(
    atomic_batch=True,
    conflict_detection=True,
    compare_and_set=True,
    ttl=True,
    order="commit",
    listing="exact",
    search=False,
    shared=True,
    invalidation=False,
    durability="strong",
    embedded=True,
)


class JSONDriver:
    """Conversations and state in a directory of files that people can read.

    Option: `timeout`, the seconds to wait for another call's or process's lock (10).
    """

    api_version = API_VERSION
    capabilities = _CAPABILITIES

    def __init__(self, url: URL, **options: Any) -> None:
        known = take_options(url, options, known=("timeout",))
        self._path = _path(url)
        self._timeout = _seconds(known.get("timeout", 10))
        self._store: Store | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._appends = Groups(self._append)

    def conversations(self, tenant: str) -> JSONConversations:
        """Give the conversations of a tenant."""
        return JSONConversations(self, tenant)

    def state(self, tenant: str, scope: Scope) -> JSONState:
        """Give the state of a scope."""
        return JSONState(self, tenant, scope)

    async def open(self) -> None:
        """Open the directory, and make it where it is missing."""
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="agentstore-json")
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(threads, Store, self._path, self._timeout)
        self._store = await translated(opening, failures=(OSError,), translate=translate)
        self._threads = threads

    async def close(self) -> None:
        """Carry out what was begun."""
        await self._appends.close()
        threads, self._threads, self._store = self._threads, None, None
        if threads is not None:
            # For those too whose callers were cancelled.
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)

    async def ping(self) -> None:
        """Look for the directory."""
        await self.run(lambda store: store.base.stat())

    async def run(self, work: Callable[[Store], T]) -> T:
        """Do a piece of work in a thread: once begun, to its end, whoever is cancelled."""
        return await translated(self._run(work), failures=(OSError,), translate=translate)

    async def append(self, session: tuple[str, str], append: Append) -> AppendResult:
        """Append to a session, together with others that wait for it."""
        answer = self._appends.call(session, append)
        return await translated(answer, failures=(OSError,), translate=translate)

    def _append(
        self, session: tuple[str, str], appends: Sequence[Append]
    ) -> asyncio.Future[Sequence[AppendResult | Exception]]:
        return self._run(lambda store: append_together(store, session, appends))

    def _run(self, work: Callable[[Store], T]) -> asyncio.Future[T]:
        if self._store is None:
            raise ClosedError("the store is not open")
        return asyncio.get_running_loop().run_in_executor(self._threads, work, self._store)


def _path(url: URL) -> Path:
    """Read the path as SQLAlchemy does SQLite's: three slashes and a relative one, four and not."""
    if url.authority:
        raise ConfigurationError(
            f"{url} names a host: a directory takes three slashes, as in json:///agents"
        )
    path = url.decoded_path[1:]
    if not path or "\0" in path:
        raise ConfigurationError(f"{url} names no directory: give one, as in json:///agents")
    return Path(path).absolute()


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        raise ConfigurationError(f"timeout is {value!r}: give it in seconds") from None
    if not 0 <= seconds <= 3600:  # noqa: PLR2004 - an hour, plainly
        raise ConfigurationError(f"timeout is {value!r}: 0 to 3600 seconds")
    return seconds
