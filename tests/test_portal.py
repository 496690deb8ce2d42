from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import ContextVar
from pathlib import Path
from textwrap import dedent

import pytest

import agentstore
from agentstore._portal import portal
from agentstore.errors import ConfigurationError

PROMPT = 5.0  # seconds: ample to start, do next to nothing and exit, on a busy machine

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


async def echo(value: str, *, times: int = 1) -> str:
    await asyncio.sleep(0)
    return value * times


async def fail(message: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(message)


async def change_variable() -> str:
    before = VARIABLE.get()
    VARIABLE.set("changed over there")
    return before


async def current_task() -> asyncio.Task[object] | None:
    return asyncio.current_task()


async def current_thread() -> threading.Thread:
    return threading.current_thread()


class Work:
    """Work that says how far it got, and may answer a cancellation in its own way."""

    def __init__(self, *, answer: str = "") -> None:
        self.begun = threading.Event()
        self.seen: list[str] = []
        self._answer = answer

    async def forever(self) -> str:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            await asyncio.sleep(0.05)
            self.seen.append("cleaned up")
            if self._answer == "fail":
                raise LookupError("the clean-up failed") from None
            if self._answer != "succeed":
                raise
        return "done in spite of it"


class Numbers:
    """An async generator that notes which tasks run it, and where it was when it was closed."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[object] | None] = set()
        self.asked = 0
        self.closed_after: int | None = None

    async def upto(self, end: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(end):
                self.asked = number + 1
                self.tasks.add(asyncio.current_task())
                # A timeout belongs to one task: leaving it in another one is an error.
                async with asyncio.timeout(30):
                    yield number
        finally:
            self.tasks.add(asyncio.current_task())
            await asyncio.sleep(0)
            self.closed_after = self.asked


async def broken(after: int) -> AsyncGenerator[int, None]:
    for number in range(after):
        yield number
    raise LookupError("the stream broke")


async def variables() -> AsyncGenerator[str, None]:
    yield VARIABLE.get()
    VARIABLE.set("changed over there")
    yield VARIABLE.get()


# --- run


def test_run_returns_the_result() -> None:
    """A coroutine function runs with its arguments, and its result comes back."""
    assert portal().run(echo, "ab", times=2) == "abab"


def test_run_raises_the_error() -> None:
    """What the coroutine raises is raised to the caller as it is."""
    with pytest.raises(LookupError, match="no such thing"):
        portal().run(fail, "no such thing")


def test_run_raises_a_wrong_call() -> None:
    """Wrong arguments are an error of the caller's, and don't leave it waiting."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'time'"):
        portal().run(echo, "ab", time=2)  # type: ignore[call-arg]


def test_an_error_leaves_no_cycle() -> None:
    """An error goes away with its last reference, without the garbage collector."""

    class Failure(Exception):  # noqa: N818 - built-in errors have no weak references
        pass

    async def raise_it() -> None:
        raise Failure

    def failing() -> weakref.ref[Failure]:
        try:
            portal().run(raise_it)
        except Failure as failure:
            return weakref.ref(failure)
        raise AssertionError

    gc.disable()
    try:
        assert failing()() is None
    finally:
        gc.enable()


def test_context_variables_go_in_and_stay_there() -> None:
    """The coroutine sees the caller's context variables, and its changes don't come back."""
    token = VARIABLE.set("of the caller")
    try:
        assert portal().run(change_variable) == "of the caller"
        assert VARIABLE.get() == "of the caller"
    finally:
        VARIABLE.reset(token)


def test_many_threads_at_once() -> None:
    """Each of many threads gets its own results, and all run in the portal's one thread."""

    def calls(name: str) -> list[str]:
        return [portal().run(echo, f"{name}.{number}") for number in range(50)]

    names = [str(number) for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(calls, names)) == [
            [f"{name}.{number}" for number in range(50)] for name in names
        ]
        assert len(set(pool.map(lambda _: portal().run(current_thread), names))) == 1


@pytest.mark.asyncio
async def test_run_blocks_a_running_loop() -> None:
    """Where a loop runs already, as in a notebook, a blocking call works, and blocks it."""
    assert portal().run(echo, "ab") == "ab"


def test_run_on_the_portals_loop_is_refused() -> None:
    """A blocking call that could never end says what to do instead."""

    async def blocking() -> str:
        return portal().run(echo, "ab")

    with pytest.raises(ConfigurationError, match="await the async method"):
        portal().run(blocking)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_is_the_callers(error: type[BaseException]) -> None:
    """SystemExit and KeyboardInterrupt of a coroutine go to its caller, and the loop goes on."""

    async def leave() -> None:
        raise error("leaving")

    with pytest.raises(error, match="leaving"):
        portal().run(leave)
    assert portal().run(echo, "ab") == "ab"


# --- call


@pytest.mark.asyncio
async def test_call_returns_the_result() -> None:
    """The coroutine runs in the portal's thread, and its result comes back to another loop."""
    assert await portal().call(echo, "ab", times=2) == "abab"
    assert await portal().call(current_thread) is not threading.current_thread()


@pytest.mark.asyncio
async def test_call_raises_the_error() -> None:
    """What the coroutine raises is raised across as it is."""
    with pytest.raises(LookupError, match="no such thing"):
        await portal().call(fail, "no such thing")


@pytest.mark.asyncio
async def test_call_leaves_the_loop_free() -> None:
    """Calls of one loop run at the same time, and its other tasks go on."""
    barrier = asyncio.Barrier(3)  # waited for on the portal's loop

    places = await asyncio.gather(*(portal().call(barrier.wait) for _ in range(3)))

    assert sorted(places) == [0, 1, 2]


@pytest.mark.asyncio
async def test_call_carries_context_variables() -> None:
    """The coroutine sees the context variables of the task that awaits it."""
    VARIABLE.set("of the task")
    assert await portal().call(change_variable) == "of the task"
    assert VARIABLE.get() == "of the task"


def test_call_from_one_loop_after_another() -> None:
    """Loops come and go; the portal serves each."""
    assert [asyncio.run(portal().call(echo, name)) for name in "abc"] == ["a", "b", "c"]


def test_call_on_the_portals_loop_only_awaits() -> None:
    """There, a call runs in the task that makes it."""

    async def both() -> bool:
        return await portal().call(current_task) is asyncio.current_task()

    assert portal().run(both) is True


@pytest.mark.parametrize("answer", ["", "succeed"])
@pytest.mark.asyncio
async def test_cancelling_a_call_cancels_the_work(answer: str) -> None:
    """A cancellation crosses over, and is raised when the work has ended, whatever its result."""
    work = Work(answer=answer)
    task = asyncio.create_task(portal().call(work.forever))
    await asyncio.to_thread(work.begun.wait, 5)

    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task

    assert work.seen == ["cancelled", "cleaned up"]


@pytest.mark.asyncio
async def test_an_error_on_cancellation_is_raised() -> None:
    """A clean-up that fails is heard of, as it is where no loop is crossed."""
    work = Work(answer="fail")
    task = asyncio.create_task(portal().call(work.forever))
    await asyncio.to_thread(work.begun.wait, 5)

    task.cancel()
    with pytest.raises(LookupError, match="the clean-up failed"):
        await task


@pytest.mark.asyncio
async def test_every_cancellation_crosses_over() -> None:
    """Work that is cleaning up is cancelled again when its caller is."""
    begun, cleaning_up = threading.Event(), threading.Event()

    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cleaning_up.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(portal().call(stubborn))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    await asyncio.to_thread(cleaning_up.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.asyncio
async def test_a_call_cancelled_before_it_begins() -> None:
    """A call that is cancelled at once ends at once."""
    work = Work()
    task = asyncio.create_task(portal().call(work.forever))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


@pytest.mark.asyncio
async def test_a_timeout_around_a_call() -> None:
    """`asyncio.timeout` works across loops."""
    work = Work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await portal().call(work.forever)
    assert work.seen == ["cancelled", "cleaned up"]


# --- iterate and aiterate


def test_iterate_yields_the_items() -> None:
    """The items come in order, and the generator has ended when the iterator has."""
    numbers = Numbers()
    assert list(portal().iterate(numbers.upto, 5)) == [0, 1, 2, 3, 4]
    assert numbers.closed_after == 5


def test_iterate_raises_the_error() -> None:
    """What the generator raises comes behind the items before it."""
    items = portal().iterate(broken, 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(LookupError, match="the stream broke"):
        next(items)


def test_iterate_runs_on_demand() -> None:
    """The generator isn't run ahead of its consumer."""
    numbers = Numbers()
    items = portal().iterate(numbers.upto, 5)
    assert next(items) == 0
    portal().run(asyncio.sleep, 0.05)
    assert numbers.asked == 1
    items.close()


def test_closing_an_iterator_closes_the_generator() -> None:
    """When `close` returns the generator's clean-up has run."""
    numbers = Numbers()
    items = portal().iterate(numbers.upto, 5)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert numbers.closed_after == 2
    assert next(items, None) is None


def test_leaving_a_loop_closes_the_generator() -> None:
    """So does an error in the body of a `for`, or a `break`, once the iterator is gone."""
    numbers = Numbers()
    for _ in portal().iterate(numbers.upto, 5):
        break
    assert numbers.closed_after == 1


def test_one_task_runs_the_generator() -> None:
    """From its first line to its close a generator is in one task; timeouts depend on it."""
    numbers = Numbers()
    items = portal().iterate(numbers.upto, 5)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert len(numbers.tasks) == 1


def test_iterate_keeps_the_context() -> None:
    """A generator sees its consumer's context variables, and keeps its own changes."""
    token = VARIABLE.set("of the caller")
    try:
        assert list(portal().iterate(variables)) == ["of the caller", "changed over there"]
        assert VARIABLE.get() == "of the caller"
    finally:
        VARIABLE.reset(token)


def test_a_failing_close_is_heard_of() -> None:
    """What the generator raises while it is closed is raised by `close`."""

    async def clumsy() -> AsyncGenerator[int, None]:
        try:
            yield 0
        finally:
            raise LookupError("the clean-up failed")

    items = portal().iterate(clumsy)
    next(items)
    with pytest.raises(LookupError, match="the clean-up failed"):
        items.close()


def test_a_lost_iterator_is_closed_by_the_collector() -> None:
    """The garbage collector may run in the portal's own thread, and closing doesn't hang it."""
    numbers = Numbers()

    def lose() -> None:
        items = portal().iterate(numbers.upto, 5)
        next(items)
        cycle: list[object] = [items]
        cycle.append(cycle)

    async def collect() -> None:
        gc.collect()

    gc.disable()
    try:
        lose()
        portal().run(collect)
    finally:
        gc.enable()
    portal().run(asyncio.sleep, 0.05)
    assert numbers.closed_after == 1


@pytest.mark.asyncio
async def test_aiterate_yields_the_items() -> None:
    """The items come across in order, out of one task, and the generator has ended."""
    numbers = Numbers()
    assert [item async for item in portal().aiterate(numbers.upto, 5)] == [0, 1, 2, 3, 4]
    assert numbers.closed_after == 5
    assert len(numbers.tasks) == 1


@pytest.mark.asyncio
async def test_aiterate_raises_the_error() -> None:
    """What the generator raises comes across behind the items before it."""
    items = portal().aiterate(broken, 2)
    assert [await anext(items), await anext(items)] == [0, 1]
    with pytest.raises(LookupError, match="the stream broke"):
        await anext(items)


@pytest.mark.asyncio
async def test_closing_aiterate_closes_the_generator() -> None:
    """When `aclose` returns the clean-up over there has run, in the task of the items."""
    numbers = Numbers()
    async with aclosing(portal().aiterate(numbers.upto, 5)) as items:
        assert [await anext(items), await anext(items)] == [0, 1]
    assert numbers.closed_after == 2
    assert len(numbers.tasks) == 1


@pytest.mark.asyncio
async def test_cancelling_the_consumer_cancels_the_generator() -> None:
    """A cancellation while an item is awaited goes into the generator, and awaits its end."""
    work = Work()

    async def slow() -> AsyncGenerator[str, None]:
        yield "at once"
        yield await work.forever()

    seen: list[str] = []

    async def consume() -> None:
        async for item in portal().aiterate(slow):
            seen.append(item)  # noqa: PERF401 - what came before the cancellation counts

    task = asyncio.create_task(consume())
    await asyncio.to_thread(work.begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["at once"]
    assert work.seen == ["cancelled", "cleaned up"]


def test_aiterate_on_the_portals_loop_only_iterates() -> None:
    """There, the generator runs in its consumer's task."""
    numbers = Numbers()

    async def consume() -> asyncio.Task[object] | None:
        async with aclosing(portal().aiterate(numbers.upto, 5)) as items:
            assert await anext(items) == 0
        return asyncio.current_task()

    assert {portal().run(consume)} == numbers.tasks
    assert numbers.closed_after == 1


# --- processes: Ctrl-C, fork, exit


PREAMBLE = """
import asyncio, atexit, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from agentstore import _portal
from agentstore._portal import Portal, portal
from agentstore.errors import ClosedError

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

def say(*words):
    print(*words, flush=True)

async def echo(value):
    return value

def saying(word):
    async def close():
        say(word)
    return close
"""


def python(script: str) -> subprocess.Popen[str]:
    home = str(Path(agentstore.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-W", "always::ResourceWarning", "-c", PREAMBLE + dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def outcome(process: subprocess.Popen[str], *, within: float = PROMPT) -> tuple[list[str], str]:
    """Return what a script printed: the lines of its output, and what it complained of."""
    with process:
        try:
            output, complaints = process.communicate(timeout=within)
        finally:
            with suppress(ProcessLookupError):  # all have ended, as they should
                os.killpg(process.pid, signal.SIGKILL)
    return output.splitlines(), complaints


def test_many_first_uses_make_one_portal() -> None:
    """Threads that ask for the portal at the same time get the same, and it has one thread."""
    process = python("""
        barrier = threading.Barrier(16)
        def first(_):
            barrier.wait()
            return portal()
        say(threading.active_count())
        with ThreadPoolExecutor(16) as pool:
            say(len(set(pool.map(first, range(16)))))
        say(threading.active_count())
    """)
    assert outcome(process) == (["1", "1", "2"], "")


def interrupted(script: str) -> tuple[list[str], str]:
    process = python(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)  # from the loop's word to the main thread's wait
    process.send_signal(signal.SIGINT)
    return outcome(process)


def test_an_interrupt_cancels_the_work() -> None:
    """Ctrl-C during `run` cancels the coroutine, waits for its end, and goes on."""
    lines = interrupted("""
        async def work():
            say("waiting")
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.2)
                say("cleaned up")
        try:
            portal().run(work)
        except KeyboardInterrupt:
            say("interrupted")
        say(portal().run(echo, "next"))
    """)
    assert lines == (["cleaned up", "interrupted", "next"], "")


def test_an_interrupt_does_not_wait_for_ever() -> None:
    """Ctrl-C goes on after two seconds when the coroutine goes on as well."""
    lines, _ = interrupted("""
        async def work():
            say("waiting")
            for _ in range(2):
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    say("ignored")
        begun = time.monotonic()
        try:
            portal().run(work)
        except KeyboardInterrupt:
            say(2 <= time.monotonic() - begun < 4)
    """)
    assert lines == ["ignored", "True", "ignored"]


def test_an_interrupt_cancels_the_generator() -> None:
    """Ctrl-C while an item is waited for cancels the generator over there."""
    lines = interrupted("""
        async def items():
            yield "first"
            try:
                say("waiting")
                await asyncio.sleep(60)
            finally:
                say("cleaned up")
        try:
            for item in portal().iterate(items):
                pass
        except KeyboardInterrupt:
            say("interrupted")
    """)
    assert lines == (["cleaned up", "interrupted"], "")


def test_another_signal_handler_may_raise() -> None:
    """Whatever a signal handler raises in the waiting thread cancels the coroutine."""
    lines = interrupted("""
        def leave(*_):
            raise TimeoutError("out of time")
        signal.signal(signal.SIGINT, leave)
        async def work():
            say("waiting")
            try:
                await asyncio.sleep(60)
            finally:
                say("cleaned up")
        try:
            portal().run(work)
        except TimeoutError as error:
            say(error)
    """)
    assert lines == (["cleaned up", "out of time"], "")


@forks
def test_a_forked_child_has_its_own_portal() -> None:
    """A child gets another portal; its parent's refuses it, and still serves the parent."""
    lines, _ = outcome(
        python("""
        parents = portal()
        say(parents.run(echo, "parent"))
        if os.fork() == 0:
            say(portal() is parents)
            say(portal().run(echo, "child"))
            try:
                parents.run(echo, "lost")
            except ClosedError as error:
                say("fork and must open anew" in str(error))
        else:
            os.wait()
            say(portal() is parents)
            say(portal().run(echo, "parent again"))
    """)
    )
    assert lines == ["parent", "False", "child", "True", "True", "parent again"]


@forks
def test_a_forked_child_closes_only_what_is_its_own() -> None:
    """Closers of the parent run in the parent only, and those of the child in the child."""
    lines, complaints = outcome(
        python("""
        import warnings; warnings.simplefilter("ignore", DeprecationWarning)
        async def background():
            asyncio.get_running_loop().create_task(asyncio.sleep(60))
        async def items():
            yield 1
        portal().on_exit(saying("the parent's"))
        portal().run(background)
        lost = portal().iterate(items)
        next(lost)
        if os.fork() == 0:
            portal().on_exit(saying("the child's"))
        else:
            os.wait()
    """)
    )
    assert lines == ["the child's", "the parent's"]
    assert complaints == ""


@forks
def test_a_fork_while_the_portal_is_being_made() -> None:
    """A child isn't stopped by a lock that a thread of its parent held."""
    lines, _ = outcome(
        python("""
        with _portal._lock:
            child = os.fork()
            if child == 0:
                say(portal().run(echo, "child"))
                os._exit(0)
        os.waitpid(child, 0)
    """)
    )
    assert lines == ["child"]


@forks
def test_a_process_of_multiprocessing_closes_too() -> None:
    """The closers run in a child of multiprocessing, which may skip `atexit`."""
    lines, _ = outcome(
        python("""
        import multiprocessing
        def child():
            portal().on_exit(saying("closed"))
        portal().run(echo, "parent")
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        say(process.exitcode)
    """)
    )
    assert lines == ["closed", "0"]


def test_a_script_that_closes_nothing_exits() -> None:
    """Tasks and iterators that are left open don't hold the exit up, and nothing complains."""
    process = python("""
        async def background():
            asyncio.get_running_loop().create_task(asyncio.sleep(60))
        async def items():
            try:
                yield "item"
            finally:
                say("closed")
        portal().run(background)
        left_open = portal().iterate(items)
        say(next(left_open))
        threading.Thread(target=portal().run, args=(asyncio.sleep, 60), daemon=True).start()
    """)
    assert outcome(process) == (["item", "closed"], "")


def test_closers_run_newest_first() -> None:
    """At exit the closers run one after the other, the newest first, without the forgotten."""
    process = python("""
        async def slow():
            await asyncio.sleep(0.2)
            say("second")
        forgotten = saying("forgotten")
        portal().on_exit(saying("first"))
        portal().on_exit(forgotten)
        portal().on_exit(slow)
        portal().on_exit(saying("third"))
        portal().forget(forgotten)
        portal().forget(forgotten)
        say("exit")
    """)
    assert outcome(process) == (["exit", "third", "second", "first"], "")


def test_a_failing_closer_does_not_stop_the_others() -> None:
    """The others run, and the error is reported."""
    lines, complaints = outcome(
        python("""
        async def broken():
            raise LookupError("can't close")
        portal().on_exit(saying("first"))
        portal().on_exit(broken)
        portal().on_exit(saying("third"))
    """)
    )
    assert lines == ["third", "first"]
    assert "LookupError: can't close" in complaints


def test_a_hanging_closer_is_given_up() -> None:
    """It holds the others up for its turn only, is cancelled in the end, and is named."""
    lines, complaints = outcome(
        python("""
        _portal.TURN_SECONDS, _portal.EXIT_SECONDS = 0.1, 1
        cancelled = threading.Event()
        async def slow():
            await asyncio.sleep(0.3)
            say("first")
        async def hanging():
            try:
                await asyncio.sleep(60)
            finally:
                say("cancelled")
                cancelled.set()
        portal().on_exit(slow)
        portal().on_exit(hanging)
        portal().on_exit(saying("third"))
        threading.Thread(target=cancelled.wait).start()
    """)
    )
    assert lines == ["third", "first", "cancelled"]
    assert complaints.startswith("gave up <function hanging at ")
    assert complaints.endswith("> after 1 seconds\n")


def test_a_blocked_loop_does_not_hold_the_exit_up_for_ever() -> None:
    """When something blocks the loop itself, the exit goes on without the closers."""
    lines, _ = outcome(
        python("""
        _portal.EXIT_SECONDS = _portal.CANCEL_SECONDS = 0.3
        blocked = threading.Event()
        async def block():
            say("blocked")
            blocked.set()
            time.sleep(60)
        portal().on_exit(saying("closed"))
        threading.Thread(target=portal().run, args=(block,), daemon=True).start()
        blocked.wait()
    """)
    )
    assert lines == ["blocked"]


def test_closers_end_threads_that_the_exit_waits_for() -> None:
    """A thread of a driver that isn't a daemon, and ends only when it's closed, ends."""
    process = python("""
        closed = threading.Event()
        def driver():
            closed.wait()
            say("ended")
        async def open():
            threading.Thread(target=driver, daemon=False).start()
        async def close():
            closed.set()
        portal().on_exit(close)
        portal().run(open)
    """)
    assert outcome(process) == (["ended"], "")


def test_threads_of_the_loop_do_not_hold_the_exit_up() -> None:
    """A thread that is started on the loop is a daemon unless it asks not to be."""
    process = python("""
        async def open():
            threading.Thread(target=time.sleep, args=(60,)).start()
        portal().run(open)
    """)
    assert outcome(process) == ([], "")


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="no thread starts at exit: gh-113964"
)
def test_closers_can_use_threads() -> None:
    """`asyncio.to_thread` still works for a closer, even when nothing has used it before."""
    process = python("""
        async def close():
            await asyncio.to_thread(say, "closed")
        portal().on_exit(close)
    """)
    assert outcome(process) == (["closed"], "")


def test_threads_finish_before_the_closers_run() -> None:
    """A thread that still works when the main thread ends can go on to its end."""
    process = python("""
        begun = threading.Event()
        def chat():
            for number in range(3):
                say(portal().run(echo, number))
                begun.set()
                time.sleep(0.1)
        portal().on_exit(saying("closed"))
        threading.Thread(target=chat).start()
        begun.wait()
    """)
    assert outcome(process) == (["0", "1", "2", "closed"], "")


def test_an_idle_executor_does_not_hold_the_exit_up() -> None:
    """Threads of an executor, which end only at exit, aren't waited for, and do no harm."""
    process = python("""
        pool = ThreadPoolExecutor()
        say(pool.submit(portal().run, echo, "ab").result())
        portal().on_exit(saying("closed"))
    """)
    assert outcome(process) == (["ab", "closed"], "")


def test_what_opens_late_is_closed_as_well() -> None:
    """Work of an executor that outlives the closers finds the loop alive, and its closers run."""
    process = python("""
        late = threading.Event()
        async def close():
            say("closed")
            late.set()
        def work():
            late.wait()
            time.sleep(0.2)  # until the closers are through
            portal().on_exit(saying("closed late"))
            say(portal().run(echo, "late"))
        portal().on_exit(close)
        pool = ThreadPoolExecutor()
        pool.submit(work)
    """)
    assert outcome(process) == (["closed", "late", "closed late"], "")


def test_after_the_end_a_call_is_refused() -> None:
    """A call that comes when the loop has ended raises, and doesn't hang."""
    process = python("""
        def too_late():
            try:
                portal().run(echo, "ab")
            except ClosedError as error:
                say(error)
        portal().on_exit(saying("closed"))
        # The newest handler runs first: this one comes after the portal's.
        atexit.unregister(_portal._at_exit)
        atexit.register(too_late)
        atexit.register(_portal._at_exit)
    """)
    lines, complaints = outcome(process)
    assert lines == [
        "closed",
        "the event loop has ended: the process is exiting, or is a fork and must open anew",
    ]
    assert complaints == ""
