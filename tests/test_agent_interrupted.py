"""Turns that are broken off, at any moment and in any way: every session goes on afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from agentstore import Agent, Database, Message, connect, db
from agentstore.errors import UnavailableError
from agentstore.memory import MemoryDriver
from agentstore.models import Completion, ModelLike
from agentstore.stores import Driver
from agentstore.url import URL
from agentstore.wrappers import Operation, Wrapper
from openai_server import complaint

JSON = dict[str, Any]
T = TypeVar("T")


def call(name: str, call_id: str, **arguments: object) -> JSON:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": call_id, "type": "function", "function": function}


class Model:
    """Asks for two tools at once, then answers "one two" in pieces; refuses what endpoints do."""

    async def respond(
        self, messages: list[JSON], *, tools: list[JSON], stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        assert complaint(messages) is None
        await asyncio.sleep(0)
        if messages[-1]["role"] == "tool":
            for piece in ("one ", "two"):
                if stream:
                    yield piece
                await asyncio.sleep(0)
            message: JSON = {"role": "assistant", "content": "one two"}
        else:
            assert messages[-1]["role"] == "user"
            calls = [call("look", "a"), call("look", "b")]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        yield Completion(message=message)


async def look() -> str:
    """Look."""
    await asyncio.sleep(0)
    return "seen"


def agent(database: Database, session_id: str = "s") -> Agent:
    return Agent(llm=Model(), tools=[look], db=database, session_id=session_id)


async def stored(database: Database, session_id: str = "s") -> list[Message]:
    return list(await database.conversations.read(session_id))


async def turn(database: Database, session_id: str, way: str) -> str:
    """Take the turn that is to be broken off."""
    if way == "achat":
        return await agent(database, session_id).achat("go", message_id="m1")
    pieces = agent(database, session_id).astream("go", message_id="m1")
    return "".join([piece async for piece in pieces])


async def check_that_it_goes_on(database: Database, session_id: str, then: str) -> None:
    """A turn that was broken off at any point can be followed, and can be made again."""
    assert database._turns._queues == {}
    before = await stored(database, session_id)
    assert [message.id for message in before].count("m1") <= 1
    assert [message.id for message in before[:1]] in ([], ["m1"])
    async with asyncio.timeout(10):
        if then == "next":
            assert await agent(database, session_id).achat("next") == "one two"
        again = await agent(database, session_id).achat("go", message_id="m1")
        once_more = await agent(database, session_id).achat("go", message_id="m1")
    assert again == once_more == "one two"
    after = await stored(database, session_id)
    assert after[: len(before)] == before
    assert [message.id for message in after].count("m1") == 1
    answers = [
        message
        for message in after
        if message.metadata.get("turn") == "m1" and message.text == "one two"
    ]
    whole = [message for message in answers if not message.metadata.get("partial")]
    assert len(whole) == 1
    assert database._turns._queues == {}


@pytest.mark.asyncio
@pytest.mark.parametrize("then", ["again", "next"])
@pytest.mark.parametrize("way", ["achat", "astream"])
@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_cancelled_after_any_number_of_steps(
    scheme: str, way: str, then: str, tmp_path: Path
) -> None:
    """A turn that is cancelled after k steps of the loop, for each k, leaves a whole session."""
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/a.db?synchronous=normal"
    finished, steps = 0, 0
    async with connect(url) as database:
        while finished < 3:
            session_id = f"s{steps}"
            task = asyncio.create_task(turn(database, session_id, way))
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, 10)
            else:
                assert await task == "one two"
                finished += 1
            await check_that_it_goes_on(database, session_id, then)
            steps += 1 if scheme == "memory" else 1 + steps // 8
    assert steps > 20


class Faulty(Wrapper):
    """Does something of its own before or behind the next call, or refuses all of them."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver(URL.parse("memory://")))
        self.before: Callable[[], Awaitable[object]] | None = None
        self.behind: Callable[[], Awaitable[object]] | None = None
        self.refuses = False

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        if self.refuses:
            raise UnavailableError("no way through")
        if self.before is not None:
            before, self.before = self.before, None
            await before()
        result = await call(self._inner)
        if self.behind is not None:
            behind, self.behind = self.behind, None
            await behind()
        return result


@pytest_asyncio.fixture
async def faulty() -> AsyncIterator[tuple[Faulty, Database]]:
    driver = Faulty()
    database = Database(driver)
    await database.open()
    yield driver, database
    await database.close()


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db"
    async with connect(url) as opened:
        yield opened


async def abc(messages: list[JSON]) -> AsyncIterator[str]:
    assert complaint(messages) is None
    for piece in "abc":
        yield piece


class Untidy:
    """A model whose generator takes its time to close, as one that closes a connection does."""

    async def respond(
        self, messages: list[JSON], *, tools: list[JSON], stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        try:
            for piece in "abc":
                yield piece
            yield Completion(message={"role": "assistant", "content": "abc"})
        finally:
            await asyncio.sleep(0.01)


async def part(database: Database, session_id: str = "s") -> str | None:
    """Give the part of an answer that was stored; the session goes on behind it."""
    for _ in range(200):
        if not database._turns._queues:
            break
        await asyncio.sleep(0.01)
    assert database._turns._queues == {}
    messages = await stored(database, session_id)
    found = [message.text for message in messages if message.metadata.get("partial")]
    assert await Agent(llm=abc, db=database, session_id=session_id).achat("on") == "abc"
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.asyncio
@pytest.mark.parametrize("read", [0, 1, 2, 3])
async def test_stream_is_closed(database: Database, read: int) -> None:
    """What was read of a stream by the time it is closed is what is stored of it."""
    stream = Agent(llm=abc, db=database, session_id="s").astream("go")
    pieces = [await anext(stream) for _ in range(read)]
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert (await part(database) or "") == "".join(pieces)


@pytest.mark.asyncio
@pytest.mark.parametrize("llm", [abc, Untidy()], ids=["tidy", "untidy"])
@pytest.mark.parametrize("way", ["dropped", "in a cycle", "consumer fails"])
async def test_stream_is_lost(
    database: Database, llm: ModelLike, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that nobody closes is closed by the garbage collector, without a word."""

    async def consume() -> None:
        stream = Agent(llm=llm, db=database, session_id="s").astream("go")
        if way == "in a cycle":
            cycle: list[object] = [stream]
            cycle.append(cycle)
        async for piece in stream:
            if piece == "b":
                if way == "consumer fails":
                    raise LookupError("in the consumer")
                break

    if way == "consumer fails":
        with pytest.raises(LookupError):
            await consume()
    else:
        await consume()
    gc.collect()
    assert await part(database) == "ab"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("llm", [abc, Untidy()], ids=["tidy", "untidy"])
def test_loop_ends_before_the_stream(
    llm: ModelLike, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that is held half-read when its loop ends is stored by then, without a word."""
    database = db(f"sqlite:///{tmp_path}/a.db?synchronous=normal")
    held: list[object] = []

    async def main(session_id: str) -> None:
        stream = Agent(llm=llm, db=database, session_id=session_id).astream("go")
        held.append(stream)
        assert await anext(stream) == "a"

    for number in range(10):  # the loop closes generators in any order
        asyncio.run(main(str(number)))
        assert asyncio.run(part(database, str(number))) == "a"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    database.sync.close()


def test_loop_is_closed_before_the_stream(tmp_path: Path) -> None:
    """A loop that is closed with a turn half done stops no other turn of the session."""
    database = db(f"sqlite:///{tmp_path}/a.db?synchronous=normal")
    stream = Agent(llm=abc, db=database, session_id="s").astream("go")
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(anext(stream)) == "a"
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as it would have to be
    loop.close()
    assert asyncio.run(Agent(llm=abc, db=database, session_id="s").achat("on")) == "abc"
    database.sync.close()


@pytest.mark.asyncio
async def test_model_waits_for_the_consumer(database: Database) -> None:
    """A model is not run ahead of who reads its answer."""
    made: list[int] = []

    async def llm(messages: list[JSON]) -> AsyncIterator[str]:
        for number in range(100):
            made.append(number)
            yield str(number)

    async with Agent(llm=llm, db=database, session_id="s").astream("go") as stream:
        for number in range(5):
            await anext(stream)
            await asyncio.sleep(0.01)
            assert made == list(range(number + 1))


@pytest.mark.asyncio
async def test_what_was_read_is_stored(database: Database) -> None:
    """However a reader is cancelled, each piece that it got lies in the store."""
    for steps in range(0, 120, 3):
        session_id, got = f"s{steps}", list[str]()

        async def read(session_id: str = session_id, got: list[str] = got) -> None:
            stream = Agent(llm=abc, db=database, session_id=session_id).astream("go")
            async for piece in stream:
                got.append(piece)  # noqa: PERF401 - one by one, as they come

        task = asyncio.create_task(read())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        answers = [m.text for m in await stored(database, session_id) if m.role == "assistant"]
        assert "".join(answers).startswith("".join(got))
        assert len(answers) <= 1


@pytest.mark.asyncio
async def test_cancelled_twice(faulty: tuple[Faulty, Database]) -> None:
    """The first cancellation waits for the answer to be stored, the second one for nothing."""
    driver, database = faulty
    storing, over = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        storing.set()
        await over.wait()

    async def llm(messages: list[JSON]) -> str:
        driver.behind = wait
        return "whole"

    task = asyncio.create_task(Agent(llm=llm, db=database, session_id="s").achat("go"))
    await storing.wait()
    task.cancel()
    assert await asyncio.wait((task,), timeout=0.05) == (set(), {task})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    over.set()
    assert await part(database) is None
    assert [m.text for m in await stored(database)] == ["go", "whole", "on", "abc"]


@pytest.mark.asyncio
async def test_answer_that_came_whole_is_stored(faulty: tuple[Faulty, Database]) -> None:
    """A turn that is cancelled while the whole answer is being stored has stored it."""
    driver, database = faulty
    storing = asyncio.Event()

    async def wait() -> None:
        storing.set()
        await asyncio.sleep(0.02)

    async def llm(messages: list[JSON]) -> str:
        driver.before = wait
        return "whole"

    first = Agent(llm=llm, db=database, session_id="s").achat("go", message_id="m1")
    task = asyncio.create_task(first)
    await storing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = Agent(llm=abc, db=database, session_id="s").achat("go", message_id="m1")
    assert await again == "whole"


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["closed", "cancelled", "model fails"])
async def test_part_that_can_not_be_stored(
    faulty: tuple[Faulty, Database], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What broke the answer off is raised; that its part is lost is logged, without its text."""
    driver, database = faulty

    async def llm(messages: list[JSON]) -> AsyncIterator[str]:
        yield "confidential"
        if way == "model fails":
            raise LookupError("the model is down")
        await asyncio.sleep(60)

    stream = Agent(llm=llm, db=database, session_id="s").astream("go")
    assert await anext(stream) == "confidential"
    driver.refuses = True
    if way == "closed":
        await stream.aclose()
    elif way == "model fails":
        with pytest.raises(LookupError, match="the model is down"):
            await anext(stream)
    else:
        task = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "could not be stored: Faulty append: no way through" in record.message
    assert "confidential" not in caplog.text
    driver.refuses = False
    assert await part(database) is None


# --- repeating


@pytest.mark.asyncio
async def test_repeat_goes_on_from_the_results(database: Database) -> None:
    """A turn that broke off behind its tools doesn't call them again under its id."""
    called: list[str] = []
    asked: list[list[str]] = []

    def work() -> str:
        called.append("work")
        return "done"

    async def llm(messages: list[JSON]) -> JSON | str:
        asked.append([message["role"] for message in messages])
        if len(asked) == 1:
            return {"content": None, "tool_calls": [call("work", "a")]}
        if len(asked) == 2:
            raise LookupError("the model is down")
        return "finished"

    with pytest.raises(LookupError):
        await Agent(llm=llm, tools=[work], db=database, session_id="s").achat("go", message_id="m1")
    again = Agent(llm=llm, tools=[work], db=database, session_id="s")
    assert await again.achat("go", message_id="m1") == "finished"
    assert called == ["work"]
    assert asked == [["user"], ["user", "assistant", "tool"], ["user", "assistant", "tool"]]


@pytest.mark.asyncio
async def test_repeat_of_a_refusal(database: Database) -> None:
    """A stored answer reads as it did the first time, a refusal too."""

    async def llm(messages: list[JSON]) -> JSON:
        return {"content": None, "refusal": "I can't."}

    first = await Agent(llm=llm, db=database, session_id="s").achat("go", message_id="m1")
    again = await Agent(llm=llm, db=database, session_id="s").achat("go", message_id="m1")
    assert first == again == "I can't."


@pytest.mark.asyncio
async def test_what_others_said_meanwhile_is_not_answered(
    faulty: tuple[Faulty, Database],
) -> None:
    """A model sees its own question last, also where another process spoke right behind it."""
    driver, database = faulty
    sent: list[JSON] = []

    async def meddle() -> None:
        await database.conversations.append(
            "s",
            [
                {"role": "user", "content": "theirs"},
                {"role": "assistant", "content": None, "tool_calls": [call("look", "a")]},
            ],
        )

    async def llm(messages: list[JSON]) -> str:
        sent[:] = messages
        return "ok"

    driver.behind = meddle
    await Agent(llm=llm, db=database, session_id="s").achat("mine")
    assert sent == [{"role": "user", "content": "mine"}]
    await Agent(llm=llm, db=database, session_id="s").achat("next")
    assert [message["content"] for message in sent] == [
        "mine",
        "theirs",
        None,
        "No result: the call was broken off.",
        "ok",
        "next",
    ]


# --- threads and processes


def test_sync_stream_is_lost_in_a_thread(tmp_path: Path) -> None:
    """A blocking stream that a thread leaves half-read is closed once nobody has it."""
    database = db(f"sqlite:///{tmp_path}/a.db")

    def read() -> None:
        stream = Agent(llm=abc, db=database, session_id="s").stream("go")
        assert next(stream) == "a"

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    gc.collect()
    assert asyncio.run(part(database)) == "a"
    database.sync.close()


def python(script: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_exit_with_a_half_read_stream(tmp_path: Path) -> None:
    """A script that ends in mid-stream exits by itself, and what it read lies in the store."""
    process = python(f"""
        from agentstore import Agent, db
        async def llm(messages):
            for number in range(1000):
                yield f"{{number}} "
        stream = Agent(llm=llm, db=db("sqlite:///{tmp_path}/a.db"), session_id="s").stream("go")
        print(next(stream), next(stream))
    """)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "0  1 \n", "")
    database = db(f"sqlite:///{tmp_path}/a.db")
    assert asyncio.run(part(database)) == "0 1 "
    database.sync.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_in_mid_stream(tmp_path: Path) -> None:
    """A child that goes on with its parent's stream is told that it can't, and the parent can."""
    process = python(f"""
        import os
        from agentstore import Agent, db
        from agentstore.errors import ClosedError
        async def llm(messages):
            for piece in "abc":
                yield piece
        agent = Agent(llm=llm, db=db("sqlite:///{tmp_path}/a.db"), session_id="s")
        stream = agent.stream("go")
        print(next(stream), flush=True)
        if (child := os.fork()) == 0:
            try:
                next(stream)
            except ClosedError as error:
                print(str(error).partition(":")[0], flush=True)
            print(agent.chat("and I?"), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(*stream)
    """)
    try:
        out, error = process.communicate(timeout=40)
    finally:
        process.kill()
    assert (process.returncode, error) == (0, "")
    assert out == "a\nthe event loop has ended\nabc\nb c\n"
    database = db(f"sqlite:///{tmp_path}/a.db")
    assert [m.text for m in asyncio.run(stored(database))] == ["go", "and I?", "abc", "abc"]
    database.sync.close()


@pytest.mark.parametrize("way", ["chat", "stream", "achat"])
def test_interrupted_from_the_keyboard(way: str, tmp_path: Path) -> None:
    """Ctrl-C ends a blocking call at once, with the question stored, and the session goes on."""
    process = python(f"""
        import asyncio
        from agentstore import Agent, db
        async def llm(messages):
            yield "part"
            print("asked", flush=True)
            await asyncio.sleep(60)
        agent = Agent(llm=llm, db=db("sqlite:///{tmp_path}/a.db"), session_id="s")
        try:
            if "{way}" == "chat":
                agent.chat("go")
            elif "{way}" == "stream":
                list(agent.stream("go"))
            else:
                asyncio.run(agent.achat("go"))
        except KeyboardInterrupt:
            agent._model = __import__("agentstore.models").models.resolve("offline")
            print(agent.chat("and now?").split(".")[0])
    """)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "This is the offline model\n", "")
    database = db(f"sqlite:///{tmp_path}/a.db")
    messages = asyncio.run(stored(database))
    roles = ["user", "assistant", "user", "assistant"] if way == "stream" else None
    assert [message.role for message in messages] == (roles or ["user", "user", "assistant"])
    assert asyncio.run(part(database)) == ("part" if way == "stream" else None)
    database.sync.close()


@pytest.mark.parametrize("way", ["chat", "stream"])
def test_interrupted_at_the_worst_moment(way: str) -> None:
    """Ctrl-C that comes before a blocking call has begun to wait leaves no turn behind either."""
    process = python(f"""
        import asyncio, os, signal, sys
        from agentstore import Agent, db
        async def llm(messages):
            yield "part"
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3)
        database = db("memory://")
        sys.setswitchinterval(1e-6)
        for number in range(100):
            agent = Agent(llm=llm, db=database, session_id=str(number))
            try:
                agent.chat("go") if "{way}" == "chat" else list(agent.stream("go"))
            except KeyboardInterrupt:
                assert database._turns._queues == {{}}, number
            else:
                print("not interrupted")
    """)
    try:
        out, error = process.communicate(timeout=40)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "", "")


def test_two_processes_on_one_session(tmp_path: Path) -> None:
    """Two processes that talk in one session at once answer each its own, and lose nothing."""
    script = f"""
        import sys
        from agentstore import Agent, db
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from openai_server import complaint
        me = sys.argv[1]
        def look() -> str:
            return me
        def llm(messages, tools):
            assert complaint(messages) is None, complaint(messages)
            if messages[-1]["role"] == "tool":
                return f"{{me}} saw {{messages[-1]['content']}}"
            assert messages[-1]["content"].startswith(me), messages[-1]
            function = {{"name": "look", "arguments": "{{}}"}}
            call = {{"id": "same", "type": "function", "function": function}}
            return {{"content": None, "tool_calls": [call]}}
        agent = Agent(llm=llm, tools=[look], db=db("sqlite:///{tmp_path}/a.db"), session_id="s")
        for number in range(10):
            assert agent.chat(f"{{me}} {{number}}") == f"{{me}} saw {{me}}"
    """.replace("sys.argv[1]", "os.environ['ME']").replace("import sys", "import os, sys")
    processes = [python(script, env={**os.environ, "ME": me}) for me in "AB"]
    for process in processes:
        _, error = process.communicate(timeout=50)
        assert (process.returncode, error) == (0, "")
    database = db(f"sqlite:///{tmp_path}/a.db")
    messages = asyncio.run(stored(database))
    assert len(messages) == 80
    for me in "AB":
        said = [m.text for m in messages if m.role == "user" and m.text.startswith(me)]
        assert said == [f"{me} {number}" for number in range(10)]
    database.sync.close()
