"""agentstore over LMDB: lmdb:///directory keeps everything in two files of that directory."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import Any, ClassVar, TypeVar

import lmdb

from agentstore import errors
from agentstore.driver import OrderedDriver, Transaction, take_options, translated
from agentstore.types import Capabilities, Limits
from agentstore.url import URL

T = TypeVar("T")


class LMDBTransaction:
    """A transaction, while it lasts."""

    def __init__(self, transaction: lmdb.Transaction[bytes]) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        return self._transaction.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value)

    def delete(self, key: bytes) -> None:
        self._transaction.delete(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._transaction.cursor()  # ends with the transaction
        found = cursor.set_range(stop if reverse else start)
        if reverse:
            found = cursor.prev() if found else cursor.last()
        pairs = cursor.iterprev() if reverse else cursor.iternext()
        return takewhile(lambda pair: start <= pair[0] < stop, pairs if found else ())


class Environment:
    """A directory that this process has open: only once, since LMDB bears no second handle."""

    known: ClassVar[dict[tuple[int, int], Environment]] = {}
    lock: ClassVar = Lock()

    def __init__(self, path: Path, map_size: int) -> None:
        self._engine = lmdb.open(
            str(path), map_size=map_size, create=False, mode=0o600, max_readers=1024
        )
        self._engine.reader_check()  # the places of killed processes, and what they hold
        self._users = self._running = 0
        self._idle = Condition()

    @classmethod
    @contextmanager
    def shared(cls, path: Path, map_size: int) -> Iterator[Environment]:
        file = path / "data.mdb"
        with cls.lock:
            if not file.exists():
                path.mkdir(0o700, exist_ok=True)
                file.touch(0o600)
                for directory in (path, path.parent):
                    flush(directory)
            key = (file.stat().st_dev, file.stat().st_ino)  # under whatever path
            if key not in cls.known:
                cls.known[key] = cls(path, map_size)
            environment = cls.known[key]
            environment._users += 1
        try:
            yield environment
        finally:
            with cls.lock:
                environment._users -= 1
                if not environment._users:
                    cls.known.pop(key)._engine.close()

    @classmethod
    def forget(cls) -> None:
        """In a forked child: these handles are the parent's, and this process has none."""
        for environment in cls.known.values():
            if not environment._running:  # otherwise closing would touch the transaction
                environment._engine.close()
        cls.known, cls.lock = {}, Lock()

    def transact(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        while True:
            with self._idle:
                self._running += 1
            try:
                with self._engine.begin(write=write) as transaction:
                    return work(LMDBTransaction(transaction))
            except lmdb.MapResizedError:
                pass
            except (lmdb.MapFullError, lmdb.ReadersFullError):
                if not self._engine.reader_check():
                    raise
                continue
            finally:
                with self._idle:
                    self._running -= 1
                    self._idle.notify_all()
            with self._idle:  # another process has a larger map: take its size
                self._idle.wait_for(lambda: not self._running)
                self._engine.set_mapsize(0)


os.register_at_fork(after_in_child=Environment.forget)


def flush(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Worker(Thread):
    """Runs one job after the other.

    It is a daemon, because a job may wait for another process's lock, and LMDB has no timeout.
    """

    def __init__(self) -> None:
        super().__init__(name="lmdb", daemon=True)
        self._jobs = SimpleQueue[Callable[[], bool]]()
        self.start()

    def run(self) -> None:
        while self._jobs.get()():
            pass

    def stop(self) -> None:
        self._jobs.put(lambda: False)

    def call(self, job: Callable[[], T]) -> Awaitable[T]:
        done = Future[T]()

        def run() -> bool:
            if done.set_running_or_notify_cancel():  # what is cancelled in the queue never runs
                try:
                    done.set_result(job())
                except BaseException as failure:  # noqa: BLE001 - the caller's to see
                    done.set_exception(failure)
            return True

        self._jobs.put(run)
        return translated(
            asyncio.wrap_future(done), failures=(lmdb.Error, OSError), translate=translate
        )


class LMDBDriver(OrderedDriver):
    """Conversations and state in one directory, which may hold `map_size` bytes."""

    capabilities = Capabilities(
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
        limits=Limits(message=2**28, state=2**28, metadata=2**20, batch=10_000, page=10_000),
    )

    def __init__(self, url: URL, **options: Any) -> None:
        known = take_options(url, options, known=("map_size",))
        path = url.decoded_path[1:]
        if url.authority or not path or "\0" in path:
            raise errors.ConfigurationError(f"{url} names no directory: lmdb:///agents does")
        self._path = Path(path).absolute()
        try:
            self._map_size = int(known.get("map_size", 2**36))
        except (TypeError, ValueError):
            self._map_size = 0
        if not 0 < self._map_size < 2**47:
            raise errors.ConfigurationError("map_size has to be a number of bytes, below 2**47")
        self._workers: tuple[Worker, Worker, ExitStack] | None = None

    async def open(self) -> None:
        # Reads don't wait behind a write; a transaction lives in one thread.
        reader, writer, stack = self._workers = Worker(), Worker(), ExitStack()
        shared = Environment.shared(self._path, self._map_size)
        try:
            self._environment = await writer.call(lambda: stack.enter_context(shared))
        except BaseException:
            self._leave()
            raise

    async def close(self) -> None:
        if self._workers is not None:
            await asyncio.shield(self._leave())

    def _leave(self):
        """Behind everything that was begun."""
        reader, writer, stack = self._workers
        self._workers = None
        reader.stop()

        def leave():
            reader.join()
            stack.close()

        left = writer.call(leave)
        writer.stop()
        return left

    async def ping(self) -> None:
        await self.transact(lambda transaction: transaction.get(b"ping"), write=False)

    async def transact(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        if self._workers is None:
            raise errors.ClosedError("the store is closed")
        environment = self._environment
        return await self._workers[write].call(lambda: environment.transact(work, write=write))


def translate(failure): ...
