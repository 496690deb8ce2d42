"""What an agent makes of odd models and tools: every session goes on behind them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentstore import Agent, ConfigurationError, Database, Message, connect, db
from agentstore.errors import DataError
from agentstore.models import Completion
from openai_server import complaint

JSON = dict[str, Any]


def call(name: str, call_id: str, **arguments: object) -> JSON:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": call_id, "type": "function", "function": function}


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db"
    async with connect(url) as opened:
        yield opened


async def stored(database: Database) -> list[Message]:
    return list(await database.conversations.read("s"))


async def go_on(database: Database) -> list[Message]:
    """Take another turn, of which an endpoint accepts what is sent; give what was stored before."""
    before = await stored(database)

    async def llm(messages: list[JSON]) -> str:
        assert complaint(messages) is None
        return "fine"

    assert await Agent(llm=llm, db=database, session_id="s").achat("on") == "fine"
    assert database._turns._queues == {}
    return before


def look() -> str:
    """Look."""
    return "seen"


# --- what models answer


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"content": ""}, ""),
        ({"content": None}, ""),
        ({"content": None, "tool_calls": None}, ""),
        ({"content": "x", "tool_calls": []}, "x"),
        ({"content": "x", "tool_calls": None, "function_call": None, "refusal": None}, "x"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": []}, ""),
        ("", ""),
    ],
)
async def test_odd_answers(database: Database, answer: JSON | str, text: str) -> None:
    """An answer without text is an answer: it is stored as it came, and the session goes on."""

    async def llm(messages: list[JSON]) -> JSON | str:
        return answer

    reply = await Agent(llm=llm, db=database, session_id="s").achat("go", message_id="m1")
    assert reply == text
    kept = (await stored(database))[1].to_openai()
    given = {"content": answer} if isinstance(answer, str) else answer
    assert kept == {"role": "assistant", **given}
    again = await Agent(llm=llm, db=database, session_id="s").achat("go", message_id="m1")
    assert again == text
    await go_on(database)


class Caller:
    """A model that answers its first question with these calls, and then with "done"."""

    def __init__(self, calls: object) -> None:
        self.calls = calls
        self.sent: list[JSON] = []

    async def __call__(self, messages: list[JSON]) -> JSON | str:
        assert complaint(messages) is None
        self.sent = messages
        if any(message.get("tool_calls") for message in messages):
            return "done"
        return {"content": None, "tool_calls": self.calls}


@pytest.mark.asyncio
async def test_duplicate_call_ids(database: Database) -> None:
    """Two calls under one id in one message: both are made, and the list that is sent is sound."""
    seen: list[int] = []

    def note(number: int) -> int:
        seen.append(number)
        return number

    llm = Caller([call("note", "same", number=1), call("note", "same", number=2)])
    agent = Agent(llm=llm, tools=[note], db=database, session_id="s")
    assert await agent.achat("go") == "done"
    assert sorted(seen) == [1, 2]
    assert [message.text for message in await stored(database)] == ["go", "", "1", "2", "done"]
    assert await agent.achat("next") == "done"


@pytest.mark.asyncio
async def test_reused_call_ids(database: Database) -> None:
    """A model that gives every call the same id gets each its own result."""
    numbers = iter(range(10))

    def number() -> int:
        return next(numbers)

    async def llm(messages: list[JSON]) -> JSON | str:
        assert complaint(messages) is None
        results = [message["content"] for message in messages if message["role"] == "tool"]
        if len(results) < 4:
            return {"content": None, "tool_calls": [call("number", "call_0")]}
        return " ".join(results)

    agent = Agent(llm=llm, tools=[number], db=database, session_id="s")
    assert await agent.achat("go") == "0 1 2 3"


@pytest.mark.asyncio
async def test_calls_that_lack_something(database: Database) -> None:
    """A call without an id, or without arguments where it needs none, is answered all the same."""
    llm = Caller(
        [
            {"type": "function", "function": {"name": "look"}},
            {"id": "", "type": "function", "function": {"name": "look", "arguments": ""}},
            {"id": None, "type": "function", "function": {"name": "look", "arguments": None}},
            {"id": "d", "type": "function", "function": {"name": "nothing", "arguments": "{"}},
        ]
    )
    agent = Agent(llm=llm, tools=[look], db=database, session_id="s")
    assert await agent.achat("go") == "done"
    results = [message for message in llm.sent if message["role"] == "tool"]
    assert [message["content"] for message in results] == [
        "seen",
        "seen",
        "seen",
        "Error: there is no tool nothing; there are: look",
    ]
    assert len({message["tool_call_id"] for message in results}) == 4
    assert await agent.achat("next") == "done"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "calls",
    [
        "look",
        {"name": "look"},
        [None],
        ["look"],
        [{}],
        [{"id": "a"}],
        [{"id": "a", "function": None}],
        [{"id": "a", "function": {"arguments": "{}"}}],
        [{"id": "a", "function": {"name": "look", "arguments": {}}}],
    ],
)
async def test_calls_of_nothing(database: Database, calls: object) -> None:
    """Calls that name no function are an error of the model's, and are not stored."""
    agent = Agent(llm=Caller(calls), tools=[look], db=database, session_id="s")
    with pytest.raises(ConfigurationError, match="the model"):
        await agent.achat("go")
    assert [message.role for message in await stored(database)] == ["user"]
    await go_on(database)


@pytest.mark.asyncio
async def test_model_without_a_completion(database: Database) -> None:
    """A model of one's own that ends without a completion is told so; what came is stored."""

    class Endless:
        async def respond(
            self, messages: list[JSON], *, tools: list[JSON], stream: bool
        ) -> AsyncGenerator[str | Completion, None]:
            yield "some"

    with pytest.raises(ConfigurationError, match="Completion"):
        _ = [
            piece async for piece in Agent(llm=Endless(), db=database, session_id="s").astream("x")
        ]
    last = (await go_on(database))[-1]
    assert (last.text, last.metadata["partial"]) == ("some", True)


@pytest.mark.asyncio
async def test_answer_that_no_store_can_keep(database: Database) -> None:
    """Such an answer is a `DataError` without its text; the session goes on."""

    async def llm(messages: list[JSON]) -> str:
        return "confidential \ud800"

    with pytest.raises(DataError) as caught:
        await Agent(llm=llm, db=database, session_id="s").achat("go")
    assert "confidential" not in f"{caught.value!r} {caught.value}"
    await go_on(database)


@pytest.mark.parametrize("given", ["sqlite:///a.db", 7, object()])
def test_what_is_no_database(given: Any) -> None:  # noqa: ANN401
    """A URL in the place of a database is refused where the agent is made."""
    with pytest.raises(ConfigurationError, match=r"make it with db\(\) or connect\(\)"):
        Agent(llm="offline", db=given)


# --- agents within agents


@pytest.mark.asyncio
@pytest.mark.parametrize("form", ["async", "sync"])
@pytest.mark.parametrize("whose", ["another", "its own"])
async def test_tool_asks_an_agent(tmp_path: Path, form: str, whose: str) -> None:
    """A tool may ask an agent of another session; of its own it is told that it can't, at once."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    other = Agent(llm="offline", db=database, session_id="other" if whose == "another" else "s")

    async def ask_async() -> str:
        return await other.achat("hello")

    def ask_sync() -> str:
        return other.chat("hello")

    tool = ask_async if form == "async" else ask_sync
    llm = Caller([call(tool.__name__, "a")])
    agent = Agent(llm=llm, tools=[tool], db=database, session_id="s")
    async with asyncio.timeout(10):
        assert await agent.achat("go") == "done"
    (result,) = (message["content"] for message in llm.sent if message["role"] == "tool")
    if whose == "another":
        assert result.startswith("This is the offline model.")
    else:
        assert result.startswith("Error: ConfigurationError: this turn is asked for by a turn")
    await database.close()


def test_agents_within_agents_do_not_use_threads_up() -> None:
    """Forty tools at once may each ask an agent whose model is a function that isn't async."""
    database = db("memory://")
    together = threading.Barrier(40)

    def think(messages: list[JSON]) -> str:
        return "thought"

    def ask() -> str:
        together.wait(30)
        return Agent(llm=think, db=database).chat("hello")

    replies: list[str] = []

    def chat() -> None:
        agent = Agent(llm=Caller([call("ask", "a")]), tools=[ask], db=database)
        replies.append(agent.chat("go"))

    threads = [threading.Thread(target=chat) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["done"] * 40
    database.sync.close()


@pytest.mark.asyncio
async def test_tool_whose_own_work_is_cancelled(database: Database) -> None:
    """A cancellation that is not the turn's is an error of the tool, and cancels nobody."""

    async def share() -> str:
        work = asyncio.create_task(asyncio.sleep(60))
        work.cancel()
        await work
        return "never"

    llm = Caller([call("share", "a")])
    agent = Agent(llm=llm, tools=[share], db=database, session_id="s")
    assert await agent.achat("go") == "done"
    assert llm.sent[-1]["content"] == "Error: CancelledError"


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("way", ["achat", "astream", "chat", "stream"])
@pytest.mark.parametrize("form", ["async", "sync"])
def test_context_variables(way: str, form: str) -> None:
    """Models and tools see the context variables of who asks; theirs don't come back."""
    seen: list[str] = []

    def see() -> str:
        seen.append(VARIABLE.get())
        VARIABLE.set("changed")
        return "seen"

    async def see_async() -> str:
        return see()

    caller = Caller([call(see.__name__ if form == "sync" else see_async.__name__, "a")])

    def llm(messages: list[JSON]) -> JSON | str:
        seen.append(VARIABLE.get())
        return asyncio.run(caller(messages))

    async def llm_async(messages: list[JSON]) -> JSON | str:
        seen.append(VARIABLE.get())
        return await caller(messages)

    database = db("memory://")
    agent = Agent(
        llm=llm if form == "sync" else llm_async,
        tools=[see, see_async],
        db=database,
        session_id="s",
    )

    async def main() -> None:
        if way == "achat":
            await agent.achat("go")
        else:
            _ = [piece async for piece in agent.astream("go")]
        assert VARIABLE.get() == "mine"

    token = VARIABLE.set("mine")
    if way == "chat":
        agent.chat("go")
    elif way == "stream":
        list(agent.stream("go"))
    else:
        asyncio.run(main())
    assert VARIABLE.get() == "mine"
    VARIABLE.reset(token)
    assert seen == ["mine"] * 3
    database.sync.close()
