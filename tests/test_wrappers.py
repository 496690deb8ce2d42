"""Wrappers: they pass on what they don't change, keep deadlines, and know where they belong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from agentstore import ConfigurationError, Database, connect
from agentstore.conversations import Conversations
from agentstore.driver import operation_id
from agentstore.errors import ClosedError, ConflictError, DeadlineError, StoreError
from agentstore.hosted import Hosted
from agentstore.memory import MemoryConversations, MemoryDriver
from agentstore.state import State
from agentstore.stores import ConversationStore, Driver, StateStore
from agentstore.types import Capabilities, Message, Scope
from agentstore.url import URL
from agentstore.wrappers import Bound, Deadline, Operation, Wrapper, _deadline

T = TypeVar("T")

SLACK = 0.25
"""Seconds by which a deadline may be missed."""


def methods(protocol: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


# --- the base


class Recorder:
    """A store that notes each call of it, and answers with a value of its own."""

    def __init__(self, calls: list[tuple[Any, ...]], *where: object) -> None:
        self._calls = calls
        self._where = where

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def method(*args: object, **kwargs: object) -> object:
            self._calls.append((*self._where, name, args, kwargs))
            return "answer", len(self._calls)

        return method


class RecordingDriver:
    """A driver that notes what it is asked."""

    api_version = 1
    capabilities = MemoryDriver.capabilities

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def conversations(self, tenant: str) -> Any:  # noqa: ANN401 - it has any method
        return Recorder(self.calls, "conversations", tenant)

    def state(self, tenant: str, scope: Scope) -> Any:  # noqa: ANN401
        return Recorder(self.calls, "state", tenant, scope)

    async def open(self) -> None:
        self.calls.append(("open",))

    async def close(self) -> None:
        self.calls.append(("close",))

    async def ping(self) -> None:
        self.calls.append(("ping",))


class Noting(Wrapper):
    """Notes the operations that come through the hook."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.operations: list[Operation] = []

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        self.operations.append(operation)
        return await super()._invoke(operation, call)


SCOPE = Scope("user", "u")
STORES: list[tuple[type, str, tuple[object, ...]]] = [
    (ConversationStore, "conversations", ("tenant",)),
    (StateStore, "state", ("tenant", SCOPE)),
]
EVERY_METHOD = [
    pytest.param(face, where, name, id=f"{face}.{name}")
    for protocol, face, where in STORES
    for name in methods(protocol)
]
SIGNATURES = {
    (face, name): signature
    for protocol, face, _ in STORES
    for name, signature in methods(protocol).items()
}

# Outermost first, each around the next; `Hosted` opens by itself.
STACKS: dict[str, Callable[[Driver], Driver]] = {
    "Wrapper": Wrapper,
    "Deadline": lambda driver: Deadline(driver, attempt=5, connect=5),
    "Bound": Bound,
    "Bound(Deadline)": lambda driver: Bound(Deadline(driver, attempt=5, connect=5)),
    "Hosted": lambda driver: Hosted(lambda: driver),
}


@pytest.mark.parametrize("store", [Conversations, State, MemoryConversations])
def test_faces_have_the_protocols_signatures(store: type) -> None:
    """What an application calls takes what the protocol says, by the same names and defaults."""
    protocol = StateStore if store is State else ConversationStore
    for name, signature in methods(protocol).items():
        face = inspect.signature(getattr(store, name))
        shapes = [
            [(one.name, one.kind, one.default) for one in each.parameters.values()]
            for each in (face, signature)
        ]
        assert shapes[0] == shapes[1], name


@pytest.mark.parametrize(("face", "where", "name"), EVERY_METHOD)
def test_wrapped_store_has_the_protocols_signatures(
    face: str, where: tuple[object, ...], name: str
) -> None:
    """Each method of a wrapped store has the protocol's signature, to the annotation."""
    store = getattr(Wrapper(RecordingDriver()), face)(*where)
    assert inspect.signature(getattr(type(store), name)) == SIGNATURES[face, name]


@pytest.mark.asyncio
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("face", "where", "name"), EVERY_METHOD)
async def test_every_argument_arrives(
    stack: str, face: str, where: tuple[object, ...], name: str
) -> None:
    """A driver sees the very objects that were given, and its answer comes back as it is."""
    recorder = RecordingDriver()
    wrapped = STACKS[stack](recorder)
    await wrapped.open()
    recorder.calls.clear()
    _, *parameters = SIGNATURES[face, name].parameters.values()
    args = [object() for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    kwargs = {one.name: object() for one in parameters if one.kind is one.KEYWORD_ONLY}
    store = getattr(wrapped, face)(*where)

    assert await getattr(store, name)(*args, **kwargs) == ("answer", 1)
    assert recorder.calls == [(face, *where, name, tuple(args), kwargs)]

    required = {
        one.name: kwargs[one.name]
        for one in parameters
        if one.kind is one.KEYWORD_ONLY and one.default is one.empty
    }
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    await getattr(store, name)(*args, **required)
    assert recorder.calls[1] == (face, *where, name, tuple(args), {**defaults, **required})
    await wrapped.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("stack", STACKS)
async def test_everything_else_is_passed_on(stack: str) -> None:
    """So are `open`, `ping`, `close` and the capabilities; a wrapper is a driver."""
    recorder = RecordingDriver()
    recorder.capabilities = _capabilities(embedded=False)
    wrapped = STACKS[stack](recorder)
    assert isinstance(wrapped, Driver)
    assert wrapped.api_version == 1
    await wrapped.open()
    await wrapped.ping()
    await wrapped.close()
    assert recorder.calls == [("open",), ("ping",), ("close",)]
    recorder.capabilities = _capabilities(embedded=True)  # it may learn more when it is open
    assert wrapped.capabilities is recorder.capabilities


def _capabilities(*, embedded: bool) -> Capabilities:
    return Capabilities(
        atomic_batch=False,
        conflict_detection=False,
        compare_and_set=False,
        ttl=False,
        order="eventual",
        listing="eventual",
        search=True,
        shared=True,
        invalidation=True,
        durability="weak",
        embedded=embedded,
    )


@pytest.mark.asyncio
async def test_operations() -> None:
    """The hook is told what each call is, whom it is about, and whether it may be made again."""
    wrapped = Noting(MemoryDriver(URL.parse("memory://")))
    await wrapped.open()
    conversations, state = wrapped.conversations("t"), wrapped.state("t", SCOPE)
    await conversations.append("s", [Message(role="user", content="hi", id="m")])
    await conversations.read("s")
    await conversations.get("s")
    await conversations.update("s", title="x")
    await conversations.sessions()
    with pytest.raises(StoreError):
        await conversations.search("x", session_id="s")
    await conversations.replace("s", "m", content="x")
    await conversations.fork("s", "s2")
    await conversations.rewind("s", to=0)
    await conversations.delete("s")
    await conversations.purge_expired()
    await state.get("k")
    await state.put("k", 1)
    await state.items()
    await state.delete("k")
    told = [
        (one.name, one.subject, one.scope, one.writes, one.repeatable) for one in wrapped.operations
    ]
    assert {one.tenant for one in wrapped.operations} == {"t"}
    assert told == [
        ("append", "s", None, True, True),
        ("read", "s", None, False, True),
        ("get", "s", None, False, True),
        ("update", "s", None, True, True),
        ("sessions", "", None, False, True),
        ("search", "s", None, False, True),
        ("replace", "s", None, True, True),
        ("fork", "s", None, True, True),
        ("rewind", "s", None, True, True),
        ("delete", "s", None, True, True),
        ("purge_expired", "", None, True, False),
        ("state.get", "k", SCOPE, False, True),
        ("state.put", "k", SCOPE, True, True),
        ("state.items", "", SCOPE, False, True),
        ("state.delete", "k", SCOPE, True, False),
    ]


@pytest.mark.asyncio
async def test_a_call_can_be_made_again() -> None:
    """What the hook is given may be called twice: it is the same operation both times."""
    seen: list[str] = []

    class Witness(MemoryDriver):
        def conversations(self, tenant: str) -> MemoryConversations:
            seen.append(operation_id())
            return super().conversations(tenant)

    class Twice(Wrapper):
        async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
            await call(self._inner)
            return await call(self._inner)

    inner = Deadline(Witness(URL.parse("memory://")), attempt=5, connect=5)
    database = Database(Twice(inner))
    await database.open()
    await database.conversations.append("s", [{"role": "user", "content": "hi"}])
    await database.conversations.get("s")
    assert len(await database.conversations.read("s")) == 1
    assert seen[0] == seen[1] != seen[2] == seen[3]
    await database.close()


# --- the deadline


class Hanging(MemoryDriver):
    """A driver whose every call hangs until `over` is set, whatever cancels it.

    Then it raises `error`, if there is one.
    """

    def __init__(self) -> None:
        super().__init__(URL.parse("memory://"))
        self.hangs = True
        self.over = asyncio.Event()
        self.cancelled = 0
        self.error: Exception | None = None
        self.ended = 0

    async def hang(self) -> None:
        while self.hangs and not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.ended += 1
        if self.error is not None:
            raise self.error

    async def open(self) -> None:
        await self.hang()
        await super().open()

    async def close(self) -> None:
        await self.hang()
        await super().close()

    async def ping(self) -> None:
        await self.hang()

    def conversations(self, tenant: str) -> Any:  # noqa: ANN401
        return HangingStore(self, super().conversations(tenant))

    def state(self, tenant: str, scope: Scope) -> Any:  # noqa: ANN401
        return HangingStore(self, super().state(tenant, scope))


class HangingStore:
    def __init__(self, driver: Hanging, inner: object) -> None:
        self._driver = driver
        self._inner = inner

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def method(*args: object, **kwargs: object) -> object:
            await self._driver.hang()
            return await getattr(self._inner, name)(*args, **kwargs)

        return method


async def all_have_ended() -> None:
    if _deadline._abandoned:
        await asyncio.wait(_deadline._abandoned, timeout=5)
    await asyncio.sleep(0)
    assert _deadline._abandoned == set()


@pytest_asyncio.fixture
async def hanging() -> AsyncIterator[Hanging]:
    driver = Hanging()
    yield driver
    driver.over.set()
    await all_have_ended()


@contextlib.contextmanager
def within(seconds: float) -> Any:  # noqa: ANN401
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


async def opened(driver: Hanging, *, attempt: float = 0.1, connect: float = 0.1) -> Database:
    driver.hangs = False
    database = Database(Deadline(driver, attempt=attempt, connect=connect))
    await database.open()
    driver.hangs, driver.ended = True, 0
    return database


CALLS: dict[str, tuple[bool, Callable[[Database], Awaitable[object]]]] = {
    "append": (True, lambda d: d.conversations.append("s", [{"role": "user", "content": "hi"}])),
    "update": (True, lambda d: d.conversations.update("s", title="x")),
    "replace": (True, lambda d: d.conversations.replace("s", "m", content="x")),
    "rewind": (True, lambda d: d.conversations.rewind("s", to=0)),
    "fork": (True, lambda d: d.conversations.fork("s", "t")),
    "delete": (True, lambda d: d.conversations.delete("s")),
    "purge_expired": (True, lambda d: d.conversations.purge_expired()),
    "read": (False, lambda d: d.conversations.read("s")),
    "get": (False, lambda d: d.conversations.get("s")),
    "sessions": (False, lambda d: d.conversations.sessions()),
    "search": (False, lambda d: d.conversations.search("x")),
    "state.put": (True, lambda d: d.state.app().put("k", 1)),
    "state.delete": (True, lambda d: d.state.app().delete("k")),
    "state.get": (False, lambda d: d.state.app().get("k")),
    "state.items": (False, lambda d: d.state.app().items()),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", CALLS)
async def test_deadline(hanging: Hanging, name: str) -> None:
    """A driver that ignores its cancellation is left alone; a write's outcome is unknown then."""
    writes, call = CALLS[name]
    database = await opened(hanging)
    with within(0.1 + SLACK), pytest.raises(DeadlineError) as caught:
        await call(database)
    error = caught.value
    assert str(error) == f"Deadline {name}: no answer within 0.1 s"
    assert (error.operation, error.outcome_unknown, error.retryable) == (name, writes, True)
    assert isinstance(error, TimeoutError)
    assert error.__cause__ is error.__context__ is None
    await asyncio.sleep(0)
    assert hanging.cancelled == 1


@pytest.mark.asyncio
async def test_cancellation_is_immediate(hanging: Hanging) -> None:
    """A caller that is cancelled doesn't wait for a driver that ignores it."""
    database = await opened(hanging, attempt=60)
    task = asyncio.create_task(database.conversations.get("s"))
    await asyncio.sleep(0.01)
    task.cancel()
    with within(SLACK), pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert hanging.cancelled == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ConflictError("it came too late"), "it came too late"),
        (LookupError("Failing row contains (confidential)"), "LookupError"),
    ],
    ids=["ours", "foreign"],
)
async def test_end_of_what_was_left(
    hanging: Hanging, error: Exception, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that was left is kept until it ends; how is logged once, without anybody's words."""
    caplog.set_level(logging.DEBUG, "agentstore")
    database = await opened(hanging)
    hanging.error = error
    with pytest.raises(DeadlineError):
        await database.conversations.get("s")
    gc.collect()
    assert len(_deadline._abandoned) == 1
    hanging.over.set()
    await all_have_ended()
    assert hanging.ended == 1
    (record,) = caplog.records
    assert record.message == f"a call that was given up ended with: {shown}"
    assert "confidential" not in caplog.text


@pytest.mark.asyncio
async def test_write_that_was_left_may_be_made_again(hanging: Hanging) -> None:
    """A write whose outcome is unknown is in the store once, however often it is repeated."""
    database = await opened(hanging)
    message = Message(role="user", content="hi")
    with pytest.raises(DeadlineError) as caught:
        await database.conversations.append("s", [message])
    assert caught.value.outcome_unknown
    hanging.over.set()
    result = await database.conversations.append("s", [message])
    assert result.seqs == (1,)
    assert len(await database.conversations.read("s")) == 1
    await database.close()


@pytest.mark.asyncio
async def test_open_that_hangs(hanging: Hanging) -> None:
    """An opening is given up after its own deadline, and what opens after all is closed."""
    database = Database(Deadline(hanging, attempt=60, connect=0.1))
    with within(0.1 + SLACK), pytest.raises(DeadlineError, match="open: no answer within 0.1 s"):
        await database.open()
    assert hanging.ended == 0
    hanging.over.set()
    await all_have_ended()
    assert hanging.ended == 2  # opened, and closed again
    assert hanging._is_open is False


@pytest.mark.asyncio
async def test_ping_that_hangs(hanging: Hanging) -> None:
    """`health` tells of a store that hangs, after the time for a connection."""
    database = await opened(hanging, attempt=60, connect=0.1)
    with within(0.1 + SLACK):
        (engine,) = (await database.health()).engines
    assert (engine.ok, engine.error) == (False, "ping: no answer within 0.1 s")


@pytest.mark.asyncio
async def test_close_that_hangs(hanging: Hanging) -> None:
    """A store that hangs at its close holds nobody up, and the other one is closed all the same."""
    hanging.hangs = False
    other = MemoryDriver(URL.parse("memory://"))
    database = Database(Deadline(hanging, attempt=0.1, connect=0.1), other)
    await database.open()
    hanging.hangs = True
    with within(0.1 + SLACK), pytest.raises(DeadlineError, match="close: no answer"):
        await database.close()
    assert other._is_open is False


@pytest.mark.asyncio
async def test_error_is_not_kept_alive() -> None:
    """An error that comes through the deadline goes when its caller drops it."""
    driver = Deadline(MemoryDriver(URL.parse("memory://")), attempt=5, connect=5)
    await driver.open()
    gc.disable()
    try:
        references: list[weakref.ref[ConflictError]] = []
        try:
            await driver.state("", Scope("app")).put("k", 1, expect=7)
        except ConflictError as error:
            references.append(weakref.ref(error))
        assert [reference() for reference in references] == [None]
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_timers_are_not_left_behind() -> None:
    """A thousand calls leave neither tasks nor timers."""
    driver = Deadline(MemoryDriver(URL.parse("memory://")), attempt=3600, connect=3600)
    await driver.open()
    store = driver.conversations("")
    for _ in range(1_000):
        await store.get("s")
    assert asyncio.all_tasks() == {asyncio.current_task()}
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert len([timer for timer in scheduled if not timer.cancelled()]) <= 2


# --- the loop that a store belongs to


def test_another_loop() -> None:
    """On another loop than its own, each use of a database says in one sentence what to do."""
    uses: list[Callable[[Database], Awaitable[object]]] = [
        lambda database: database.conversations.read("s"),
        lambda database: database.state.app().get("k"),
        lambda database: database.close(),
    ]

    async def elsewhere(database: Database) -> None:
        for use in uses:
            with pytest.raises(ConfigurationError) as caught:
                await use(database)
            assert str(caught.value) == (
                "this database belongs to another event loop: connect() on each loop, or use db()"
            )
        assert (await database.health()).ok is False

    async def main() -> None:
        async with connect("memory://") as database:
            await database.conversations.append("s", [{"role": "user", "content": "hi"}])
            await asyncio.to_thread(asyncio.run, elsewhere(database))
            assert len(await database.conversations.read("s")) == 1

    asyncio.run(main())


@pytest.mark.asyncio
async def test_closed() -> None:
    """Before it is opened and after it is closed, a database says that it is closed."""
    bound = Bound(MemoryDriver(URL.parse("memory://")))
    database = Database(bound)
    with pytest.raises(ClosedError, match="the database is closed"):
        await database.conversations.read("s")
    async with connect("memory://") as database:
        pass
    for call in (lambda: database.conversations.read("s"), lambda: database.state.app().get("k")):
        with pytest.raises(ClosedError, match="the database is closed"):
            await call()
    await database.close()


@pytest.mark.asyncio
async def test_close_that_broke_off() -> None:
    """A close that was cancelled can be made again."""
    closes = 0

    class Driver(MemoryDriver):
        async def close(self) -> None:
            nonlocal closes
            closes += 1
            await asyncio.sleep(0.05 if closes == 1 else 0)
            await super().close()

    bound = Bound(Driver(URL.parse("memory://")))
    await bound.open()
    closing = asyncio.create_task(bound.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await bound.close()
    await bound.close()
    assert closes == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked() -> None:
    """A forked child is told to open a database of its own."""
    script = """
        import asyncio, os
        from agentstore import connect
        from agentstore.errors import ConfigurationError

        loop = asyncio.new_event_loop()
        opening = connect("memory://")
        database = loop.run_until_complete(opening.__aenter__())
        child = os.fork()
        if child == 0:
            for use in (database.conversations.read("s"), database.close()):
                try:
                    asyncio.run(use)
                except ConfigurationError as error:
                    print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        loop.run_until_complete(database.conversations.read("s"))
        loop.run_until_complete(opening.__aexit__(None, None, None))
        print("the parent went on")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    told = "this database was opened before the process forked: open it in the child\n"
    assert ended.stdout == told + told + "the parent went on\n"
