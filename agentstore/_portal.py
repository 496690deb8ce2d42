"""The event loop behind the blocking methods: one daemon thread per process.

A `Portal` runs coroutines on its own loop, for threads that have none and for tasks of other loops.
What is opened there stays on that one loop, whoever uses it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar, cast

from .errors import ClosedError, ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")
Closer = Callable[[], Coroutine[Any, Any, object]]

CANCEL_SECONDS: Final = 2.0  # for what was cancelled to end
EXIT_SECONDS: Final = 5.0  # for all closers together
TURN_SECONDS: Final = 1.0  # for one closer, before the next begins beside it

_MORE: Final = True
_ENOUGH: Final = False

_log = logging.getLogger("agentstore")


class Portal:
    """An event loop in a thread of its own, and the ways to it.

    What runs there sees the caller's context variables; changes to them don't come back.
    A forked child has another `portal()`: whoever holds the parent's must open anew.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._callers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._closers: dict[Closer, None] = {}
        self._silent = False
        # A daemon, and so by inheritance are the threads that drivers start on the loop.
        self._thread = threading.Thread(target=self._serve, name="agentstore", daemon=True)
        self._thread.start()

    def run(
        self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a coroutine function on the loop and block until it has ended.

        Ctrl-C cancels it, and is raised once it has ended or two seconds have passed.
        """
        box: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()
        begin, cancel = self._work(lambda: function(*args, **kwargs), box.put)
        try:
            begin()
            task = box.get()
        except BaseException:  # Ctrl-C, or what another signal handler raised
            cancel()
            _last(box, CANCEL_SECONDS)
            raise
        try:
            return task.result()
        finally:
            del begin, cancel, task  # or an error and its task keep each other alive

    async def call(
        self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a coroutine function on the loop and await its end on the caller's own.

        A cancellation is passed on, and raised once the coroutine has ended, even with a result.
        If it ends with an error of its own, that is raised instead.
        """
        if asyncio.get_running_loop() is self._loop:
            return await function(*args, **kwargs)
        box: _Mailbox[asyncio.Task[T]] = _Mailbox()
        begin, cancel = self._work(lambda: function(*args, **kwargs), box.send)
        begin()
        try:
            return (await _areceive(box, cancel)).result()
        finally:
            del begin, cancel

    def iterate(
        self, function: Callable[P, AsyncGenerator[T, None]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T, None, None]:
        """Iterate over an async generator that lives on the loop.

        It runs only while an item is waited for, and is closed with this iterator.
        """
        box: queue.SimpleQueue[tuple[T] | asyncio.Task[None]] = queue.SimpleQueue()
        wanted: asyncio.Queue[bool] = asyncio.Queue()
        begin, cancel = self._work(
            lambda: _pump(function(*args, **kwargs), box.put, wanted), box.put
        )
        try:
            begin()
            while not isinstance(item := box.get(), asyncio.Task):
                yield item[0]
                self._check_alive()
                self._loop.call_soon_threadsafe(wanted.put_nowait, _MORE)
        except GeneratorExit:
            if self._thread.is_alive():  # not at the very end, nor in a forked child
                cancel()
                # The garbage collector closes a lost iterator in any thread, even in this one.
                if threading.current_thread() is not self._thread:
                    ended = _last(box, timeout=None)
                    if ended is not None and not ended.cancelled():
                        ended.result()
            raise
        except BaseException:  # Ctrl-C may come anywhere above
            if self._thread.is_alive():
                cancel()
                _last(box, CANCEL_SECONDS)
            raise
        item.result()

    async def aiterate(
        self, function: Callable[P, AsyncGenerator[T, None]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        """Iterate on the caller's own loop over an async generator that lives on the portal's.

        It runs only while an item is awaited, and is closed with this iterator.
        """
        if asyncio.get_running_loop() is self._loop:
            async with contextlib.aclosing(function(*args, **kwargs)) as items:
                async for each in items:
                    yield each
            return
        box: _Mailbox[tuple[T] | asyncio.Task[None]] = _Mailbox()
        wanted: asyncio.Queue[bool] = asyncio.Queue()
        begin, cancel = self._work(
            lambda: _pump(function(*args, **kwargs), box.send, wanted), box.send
        )
        begin()
        while not isinstance(item := await _areceive(box, cancel), asyncio.Task):
            try:
                yield item[0]
            except BaseException:
                self._loop.call_soon_threadsafe(wanted.put_nowait, _ENOUGH)
                cast("asyncio.Task[None]", await _areceive(box, cancel)).result()
                raise
            self._loop.call_soon_threadsafe(wanted.put_nowait, _MORE)
        item.result()

    def on_exit(self, close: Closer) -> None:
        """Run `close` on the loop when the interpreter exits, the newest first.

        One that takes longer than a second no longer holds up the next.
        After five seconds those that still run are cancelled, with a warning in the log.
        """
        self._closers[close] = None

    def forget(self, close: Closer) -> None:
        """Take `on_exit` back; a closer that runs at exit is forgotten already."""
        self._closers.pop(close, None)

    def settle(self) -> None:
        """Wait for the threads that use the portal, then run the closers.

        The interpreter waits for them as well, but later, when all would be closed under them.
        An executor's threads are left out: they end only when it tells them to, later still.
        """
        workers = concurrent.futures.thread._threads_queues
        for thread in threading.enumerate():
            mine = thread in self._callers and thread is not threading.main_thread()
            if mine and not thread.daemon and thread not in workers:
                thread.join()
        self._close()

    def stop(self) -> None:
        """Run the closers that came after `settle`, cancel what is left and end the thread."""
        self._close()
        # Who still waits is a daemon thread, about to freeze: woken, it would only complain.
        self._silent = True
        begin, _ = self._work(self._end, lambda _: None)
        begin()
        self._thread.join(CANCEL_SECONDS)

    def _work(
        self,
        start: Callable[[], Coroutine[Any, Any, T]],
        ended: Callable[[asyncio.Task[T]], object],
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """Prepare a task on the loop; return what begins it, and what cancels it at any time.

        They are two, because Ctrl-C may come while the one wakes the loop: the task is far on then.
        """
        thread = threading.current_thread()
        if thread is self._thread:
            raise ConfigurationError(
                "a blocking call on this event loop would wait for itself: await the async method"
            )
        self._check_alive()
        self._callers.add(thread)
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:  # runs in a copy of the caller's context, which the task inherits
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: self._silent or ended(task))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        coroutine = start()
        call = self._loop.call_soon_threadsafe
        return partial(call, begin), partial(call, cancel)

    def _check_alive(self) -> None:
        if not self._thread.is_alive():
            raise ClosedError(
                "the event loop has ended: the process is exiting, or is a fork and must open anew"
            )

    def _serve(self) -> None:
        while True:
            # A task's SystemExit or KeyboardInterrupt is its result, for the caller to raise, but
            # it breaks off run_forever as well, and the other callers still need the loop.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()
                break
        self._loop.close()

    def _close(self) -> None:
        if self._closers:
            ended = threading.Event()
            begin, _ = self._work(self._run_closers, lambda _: ended.set())
            begin()
            ended.wait(EXIT_SECONDS + CANCEL_SECONDS)  # not for ever: the loop may be blocked

    async def _run_closers(self) -> None:
        names: dict[asyncio.Task[object], str] = {}
        end = self._loop.time() + EXIT_SECONDS
        while self._closers:
            close, _ = self._closers.popitem()
            task = self._loop.create_task(close())
            names[task] = repr(close)
            await asyncio.wait([task], timeout=min(TURN_SECONDS, end - self._loop.time()))
        if not names:  # what was to be closed was forgotten meanwhile
            return
        _, late = await asyncio.wait(names, timeout=end - self._loop.time())
        for task in late:
            _log.warning("gave up %s after %g seconds", names[task], EXIT_SECONDS)
        await _cancel(late)

    async def _end(self) -> None:
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})
        self._loop.stop()


class _Mailbox(asyncio.Queue[T]):
    """A queue of the loop that makes it, filled from other threads."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()

    def send(self, item: T) -> None:
        self._home.call_soon_threadsafe(self.put_nowait, item)


def _last(box: queue.SimpleQueue[Any], timeout: float | None) -> asyncio.Task[Any] | None:
    """Block until the task itself is sent, or until nothing has come for so many seconds."""
    item = None
    with contextlib.suppress(queue.Empty):
        while not isinstance(item, asyncio.Task):
            item = box.get(timeout=timeout)
    return item


async def _areceive(box: asyncio.Queue[T], cancel: Callable[[], object]) -> T:
    """Await what the task sends; pass a cancellation on and await the task's end."""
    try:
        return await box.get()
    except asyncio.CancelledError:
        cancel()
        item = None
        while not isinstance(item, asyncio.Task):
            try:
                item = await box.get()
            except asyncio.CancelledError:
                cancel()
        if not item.cancelled():
            item.result()
        raise


async def _pump(
    items: AsyncGenerator[T, None], put: Callable[[tuple[T]], object], wanted: asyncio.Queue[bool]
) -> None:
    """Send the items, each when it is wanted.

    One task runs the generator from its first line to its close: a timeout, a task group or a
    context variable that it sets around a `yield` would break in a new task for each item.
    """
    async with contextlib.aclosing(items):
        async for item in items:
            put((item,))
            if not await wanted.get():
                return


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS)


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """Return the portal of this process; the first call starts it."""
    global _portal  # noqa: PLW0603
    if _portal is None:
        with _lock:
            if _portal is None:
                _portal = Portal()
    return _portal


def _begin_anew() -> None:
    global _lock, _portal  # noqa: PLW0603
    # Another thread of the parent may have held the old lock. The old portal is left as it is:
    # closing anything would talk on sockets that are still the parent's.
    _lock = threading.Lock()
    _portal = None


def _before_threads_are_joined() -> None:
    if _portal is not None:
        _portal.settle()


def _at_exit() -> None:
    if _portal is not None:
        _portal.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

# The interpreter exits in this order: threading's own hooks, the newest first; the join of all
# non-daemon threads; `atexit`; daemon threads freeze.
# `atexit` is too late for the closers. A driver's non-daemon thread that ends only when it is
# closed would hang the join, and `asyncio.to_thread` refuses work after the hook of
# concurrent.futures, which is imported above so that ours is the newer one and runs first.
# The hook is private, but no public one is as early, and concurrent.futures stands on it too.
threading._register_atexit(_before_threads_are_joined)  # type: ignore[attr-defined]
atexit.register(_at_exit)
