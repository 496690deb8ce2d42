"""Turns of one session: one at a time, in order, and none is ever stuck behind a dead one."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest

from agentstore import ConfigurationError, _turns
from agentstore._turns import Turns
from agentstore.errors import OverloadedError


async def steps(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def enter(turns: Turns, key: str = "s") -> None:
    async with turns.take(key):
        pass


async def is_free(turns: Turns) -> bool:
    """Take the lock and give it back; nothing is left of anybody then."""
    await asyncio.wait_for(enter(turns), 5)
    return turns._queues == {}


@asynccontextmanager
async def held(turns: Turns) -> AsyncIterator[None]:
    """Have the lock held by a task."""
    entered, over = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with turns.take("s"):
            entered.set()
            await over.wait()

    holder = asyncio.create_task(hold())
    await entered.wait()
    try:
        yield
    finally:
        over.set()
        await holder


@pytest.mark.asyncio
async def test_first_come_first_served() -> None:
    """Those who wait get the lock in the order in which they asked for it."""
    turns, order = Turns(), list[int]()

    async def turn(number: int) -> None:
        async with turns.take("s"):
            order.append(number)
            await steps(number % 3)

    await asyncio.gather(*(turn(number) for number in range(50)))
    assert order == list(range(50))
    assert turns._queues == {}


@pytest.mark.asyncio
async def test_a_thousand_keys() -> None:
    """A thousand keys are held at once, and nothing is kept of them afterwards."""
    turns, inside, all_in = Turns(), list[int](), asyncio.Event()

    async def turn(number: int) -> None:
        async with turns.take(("tenant", str(number))):
            inside.append(number)
            if len(inside) == 1_000:
                all_in.set()
            await all_in.wait()

    async with asyncio.timeout(10):
        await asyncio.gather(*(turn(number) for number in range(1_000)))
    assert turns._queues == {}


def test_loops_and_threads() -> None:
    """Coroutines of eight loops in eight threads are never within one lock at the same time."""
    turns, inside, done = Turns(), list[int](), list[int]()

    async def turn(number: int) -> None:
        async with turns.take("s"):
            inside.append(number)
            await steps(2)
            done.append(number if inside == [number] else -1)
            inside.clear()

    async def thread(number: int) -> None:
        await asyncio.gather(*(turn(number) for _ in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(thread(number),)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(done) == [number for number in range(8) for _ in range(50)]
    assert turns._queues == {}


@pytest.mark.asyncio
@pytest.mark.parametrize("cancelled", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
async def test_cancelled_at_any_moment(cancelled: tuple[int, ...]) -> None:
    """Whoever waits may be cancelled at any moment, and the lock goes to the next one.

    Also in the moment between its being handed over and its being noticed.
    """
    for held_for, cancelled_after in itertools.product(range(6), range(10)):
        turns, came = Turns(), list[int]()

        async def hold(turns: Turns = turns, held_for: int = held_for) -> None:
            async with turns.take("s"):
                await steps(held_for)

        async def wait(number: int, turns: Turns = turns, came: list[int] = came) -> None:
            async with turns.take("s"):
                came.append(number)
                await steps(1)

        holder = asyncio.create_task(hold())
        waiters = [asyncio.create_task(wait(number)) for number in range(3)]
        await steps(cancelled_after)
        for number in cancelled:
            waiters[number].cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(holder, *waiters, return_exceptions=True)
        assert came == sorted(came)
        assert set(came) >= {0, 1, 2} - set(cancelled)
        assert await is_free(turns)


@pytest.mark.asyncio
async def test_patience_ends() -> None:
    """Who waits for too long is told what may be the reason, and stands in nobody's way."""
    turns = Turns(patience=0.05)
    async with held(turns):
        with pytest.raises(OverloadedError, match=r"0\.05 s: is there a stream"):
            await enter(turns)
    assert await is_free(turns)


@pytest.mark.asyncio
async def test_a_long_wait_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that has waited for a minute says so, once; one that waited for less does not."""
    turns = Turns()
    async with held(turns):
        soon = asyncio.create_task(enter(turns))
        await steps(1)
        monkeypatch.setattr(_turns, "_LONG_WAIT", 0.02)
        late = asyncio.create_task(enter(turns))
        await asyncio.sleep(0.1)
    await asyncio.gather(soon, late)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("a turn of 's' has waited for 0.02 seconds: is there a stream")


@pytest.mark.asyncio
async def test_within_itself() -> None:
    """What a turn calls can't wait for it: an error says so at once, in a task of its own too."""
    turns = Turns()
    async with turns.take("s"):
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            await enter(turns)
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            await asyncio.create_task(enter(turns))
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            await asyncio.to_thread(asyncio.run, enter(turns))
    assert await is_free(turns)


@pytest.mark.asyncio
async def test_within_another() -> None:
    """A turn may call another session's, but not go round in a circle."""
    turns = Turns()
    async with turns.take("s"), turns.take("t"):
        await enter(turns, "u")
        with pytest.raises(ConfigurationError):
            await enter(turns, "s")
    assert await is_free(turns)


@pytest.mark.asyncio
async def test_task_that_outlives_the_turn() -> None:
    """A task that a turn began, and that asks after its end, gets a turn of its own."""
    turns = Turns()
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await enter(turns)

    async with turns.take("s"):
        task = asyncio.create_task(later())
        await steps(2)
    over.set()
    await asyncio.wait_for(task, 5)
    assert turns._queues == {}


@pytest.mark.asyncio
async def test_context_does_not_grow() -> None:
    """A thousand turns in one task leave no trace in its context."""
    turns = Turns()
    for _ in range(1_000):
        await enter(turns)
    assert _turns._within.get() == ()


@pytest.mark.asyncio
async def test_coroutine_that_is_thrown_away() -> None:
    """A coroutine that nobody runs any more leaves the queue, handed the lock or not."""
    turns = Turns()
    async with held(turns):
        lost = enter(turns)
        lost.send(None)
        lost.close()
    assert await is_free(turns)
    async with held(turns):
        lost = enter(turns)
        lost.send(None)
    assert list(turns._queues) == ["s"]  # handed over
    lost.close()
    assert await is_free(turns)


@pytest.mark.parametrize("role", ["holds", "waits"])
def test_closed_loop(role: str) -> None:
    """A loop that is closed in the middle of a turn stops nobody on other loops."""
    turns = Turns()
    loop = asyncio.new_event_loop()
    lost = enter(turns) if role == "waits" else _hold_for_ever(turns)

    async def main() -> None:
        if role == "waits":
            async with held(turns):
                # The loop of `lost` is here and then gone, while it waits.
                await asyncio.to_thread(_begin_and_close, loop, lost)
        else:
            await asyncio.to_thread(_begin_and_close, loop, lost)
        await asyncio.wait_for(enter(turns), 5)

    asyncio.run(main())
    assert turns._queues == {}
    lost.close()
    assert turns._queues == {}


async def _hold_for_ever(turns: Turns) -> None:
    async with turns.take("s"):
        await asyncio.get_running_loop().create_future()


def _begin_and_close(
    loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None]
) -> None:
    task = loop.create_task(work)
    loop.run_until_complete(steps(3))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it would be said in the log


def test_forked_child() -> None:
    """A child doesn't wait for the turns that went on in its parent when it was forked."""
    script = """
import asyncio, os, signal, threading
from agentstore._turns import Turns

turns = Turns()
entered = threading.Event()

async def hold():
    async with turns.take("s"):
        entered.set()
        await asyncio.sleep(60)

async def enter():
    async with turns.take("s"):
        pass

threading.Thread(target=asyncio.run, args=(hold(),), daemon=True).start()
entered.wait()
turns._guard.acquire()  # as another thread may at this very moment
if not (child := os.fork()):
    signal.alarm(5)
    asyncio.run(enter())
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert ended.stdout == "7\n", ended.stderr


def test_turns_are_forgotten() -> None:
    """Nothing holds the locks of a database that nobody has any more."""
    before = len(_turns._all)
    turns = Turns()
    assert len(_turns._all) == before + 1
    del turns
    gc.collect()
    assert len(_turns._all) <= before
