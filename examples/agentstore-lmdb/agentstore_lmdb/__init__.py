"""agentstore over LMDB: lmdb:///directory keeps everything in two files of that directory."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice, takewhile
from pathlib import Path
from threading import Lock, Thread
from traceback import clear_frames
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import lmdb

from agentstore import errors
from agentstore.driver import OrderedDriver, Transaction, take_options, translated
from agentstore.types import Capabilities, Limits
from agentstore.url import URL

T = TypeVar("T")
Pairs = Iterator[tuple[bytes, bytes]]

# LMDB bears one handle on a directory in a process: it is shared, and closes with its last user.
handles = WeakValueDictionary[tuple[int, str], lmdb.Environment]()
lock = Lock()  # keeps such a close and the next opening apart
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
jobs = set[Future[Any]]()  # without one, a forked child lets go of its parent's handles
os.register_at_fork(after_in_child=lambda: jobs or [*map(lmdb.Environment.close, handles.values())])


class LMDBTransaction:
    def __init__(self, transaction: "lmdb.Transaction[bytes]") -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        return self._transaction.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value)

    def delete(self, key: bytes) -> None:
        self._transaction.delete(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Pairs:
        cursor = self._transaction.cursor()
        found = cursor.set_range(stop if reverse else start)
        if reverse:  # from the last key, or from the one found, which is beyond
            return takewhile(lambda pair: pair[0] >= start, islice(cursor.iterprev(), found, None))
        return takewhile(lambda pair: pair[0] < stop, cursor.iternext() if found else ())


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
        size = str(take_options(url, options, known=("map_size",)).get("map_size", 2**36))
        path = url.decoded_path[1:]
        if url.authority or not path or "\0" in path:
            raise errors.ConfigurationError(f"{url} names no directory: lmdb:///agents does")
        if not size.isdecimal() or not 0 < int(size) < 2**47:
            raise errors.ConfigurationError("map_size has to be a number of bytes, below 2**47")
        self._path, self._size = Path(path).absolute(), int(size)
        self._handle: lmdb.Environment | None = None
        self._turns = asyncio.Lock(), asyncio.Lock()  # one transaction reads and one writes

    async def open(self) -> None:
        self._handle = await in_thread(self._open)

    async def close(self) -> None:
        async with self._turns[True], self._turns[False]:  # behind all that was begun
            with lock:  # and in no thread, because at exit none may begin
                self._handle = None

    async def ping(self) -> None:
        await self.transact(lambda transaction: transaction.get(b"ping"), write=False)

    async def transact(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        def run() -> T:
            if (handle := self._handle) is None:
                raise errors.ClosedError("the store is closed")
            handle.reader_check()  # what killed processes were reading is free again
            while True:
                try:
                    with handle.begin(write=write) as transaction:
                        return work(LMDBTransaction(transaction))
                except lmdb.MapResizedError:  # by a process with a larger `map_size`
                    handle.set_mapsize(0)

        async with self._turns[write]:
            return await in_thread(run)

    def _open(self) -> lmdb.Environment:
        key = os.getpid(), str(self._path.resolve())
        with lock:
            handle = handles.get(key) or lmdb.open(key[1], self._size, mode=0o700, max_readers=1024)
            return handles.setdefault(key, handle)


async def in_thread(job: Callable[[], T]) -> T:
    """Run a job in a thread of its own: a daemon, because LMDB waits for its lock without end."""
    done = Future[T]()
    done.set_running_or_notify_cancel()
    jobs.add(done)
    done.add_done_callback(jobs.discard)
    Thread(target=_run, args=(job, done), daemon=True).start()
    answer = asyncio.wrap_future(done)
    return await translated(answer, failures=(lmdb.Error, OSError), translate=translate)


def _run(job: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(job())
    except BaseException as failure:  # noqa: BLE001 - it is the caller's
        clear_frames(failure.__traceback__)  # of what holds on to the handle
        done.set_exception(failure)


def translate(failure: Exception) -> errors.StoreError | errors.ConfigurationError:
    number = getattr(failure, "code", getattr(failure, "errno", 0))
    match code := errno.errorcode.get(number, type(failure).__name__):
        case "MapFullError" | "TxnFullError" | "ENOSPC" | "EDQUOT" | "ENOMEM":
            return errors.CapacityError(
                "map_size is reached, or the disk full; nothing was written", code=code
            )
        case "ReadersFullError" | "EINVAL" | "Error":
            return errors.OverloadedError("other readers or handles are in the way", code=code)
        case "EIO":
            return errors.OutcomeUnknownError("the disk failed", code=code, outcome_unknown=True)
        case "ENOENT" | "ENOTDIR" | "EEXIST" | "EACCES" | "EPERM" | "EROFS" | "InvalidError":
            return errors.ConfigurationError(f"no LMDB directory can be opened there [{code}]")
        case _:
            return errors.DriverError("LMDB failed", code=code)
