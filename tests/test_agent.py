"""What an agent promises: nothing said is lost, and every session can be resumed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentstore import Agent, ConfigurationError, Database, Tokens, connect
from agentstore.errors import ConflictError, DataError, OverloadedError
from agentstore.models import Completion
from agentstore.types import Usage
from openai_server import complaint

pytestmark = pytest.mark.asyncio

JSON = dict[str, Any]


@pytest_asyncio.fixture(params=["sqlite", "memory", "json", "lmdb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = "memory://" if request.param == "memory" else f"{request.param}:///{tmp_path}/store"
    async with connect(url) as opened:
        yield opened


def echo(messages: list[JSON]) -> str:
    return f"You said {messages[-1]['content']!r}"


def call(name: str, arguments: JSON, call_id: str = "call_1") -> JSON:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


def adder(messages: list[JSON], tools: list[JSON]) -> JSON | str:
    """Ask for two sums at once, and then tell them."""
    if messages[-1]["role"] == "tool":
        return " and ".join(m["content"] for m in messages if m["role"] == "tool")
    calls = [call("add", {"x": 1, "y": 2}, "a"), call("add", {"x": 3, "y": 4}, "b")]
    return {"content": None, "tool_calls": calls}


async def words(database: Database, session_id: str = "s") -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in await database.conversations.read(session_id)]


async def test_question_is_stored_before_the_model_is_called(database: Database) -> None:
    """When the model is asked, the user's message lies in the store already."""
    seen: list[list[tuple[str, str]]] = []

    async def llm(messages: list[JSON]) -> str:
        seen.append(await words(database))
        return "yes"

    await Agent(llm=llm, db=database, session_id="s").achat("there?")
    assert seen == [[("user", "there?")]]
    assert await words(database) == [("user", "there?"), ("assistant", "yes")]


async def test_reply(database: Database) -> None:
    """A reply is text, and says where it is stored, how safely, and what it cost."""

    def llm(messages: list[JSON]) -> Completion:
        usage = Usage(input_tokens=5, output_tokens=7)
        return Completion(message={"role": "assistant", "content": "hi"}, usage=usage)

    reply = await Agent(llm=llm, db=database, session_id="s").achat("hello")
    stored = await database.conversations.read("s")
    assert reply == "hi"
    assert reply.session_id == "s"
    assert reply.message_ids == tuple(message.id for message in stored)
    appended = await database.conversations.append("t", [{"role": "user", "content": "x"}])
    assert reply.durability is appended.durability
    assert reply.stale is False
    assert reply.usage == Usage(input_tokens=5, output_tokens=7)
    assert stored[1].tokens == 7


async def test_tools(database: Database) -> None:
    """Calls and results are stored as they were made, in the order that endpoints accept."""
    agent = Agent(llm=adder, tools=[add], db=database, session_id="s")
    assert await agent.achat("sums?") == "3 and 7"
    stored = [message.to_openai() for message in await database.conversations.read("s")]
    assert [message["role"] for message in stored] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [one["id"] for one in stored[1]["tool_calls"]] == ["a", "b"]
    assert stored[2] == {"role": "tool", "tool_call_id": "a", "content": "3"}
    assert complaint(stored) is None


async def test_model_fails(database: Database) -> None:
    """A failure of the model is raised as it is; what the user said is there for the next turn."""
    sent: list[list[JSON]] = []

    def llm(messages: list[JSON]) -> str:
        sent.append(messages)
        if len(sent) == 1:
            raise RuntimeError("the model is down")
        return "back"

    agent = Agent(llm=llm, db=database, session_id="s")
    with pytest.raises(RuntimeError, match="the model is down"):
        await agent.achat("one")
    assert await agent.achat("two") == "back"
    assert [message["content"] for message in sent[1]] == ["one", "two"]


async def test_cancelled_at_the_model(database: Database) -> None:
    """A turn that is cancelled while the model thinks leaves its question and no more."""
    asked = asyncio.Event()

    async def llm(messages: list[JSON]) -> str:
        asked.set()
        await asyncio.sleep(60)
        return "never"

    task = asyncio.create_task(Agent(llm=llm, db=database, session_id="s").achat("one"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await words(database) == [("user", "one")]
    assert await Agent(llm=echo, db=database, session_id="s").achat("two") == "You said 'two'"


async def test_cancelled_at_a_tool(database: Database) -> None:
    """Where a tool was broken off, the next turn sends a result for it that is not stored."""
    begun = asyncio.Event()
    sent: list[JSON] = []

    async def wait() -> str:
        begun.set()
        await asyncio.sleep(60)
        return "never"

    def llm(messages: list[JSON], tools: list[JSON]) -> JSON | str:
        if messages[-1]["content"] == "go":
            return {"content": None, "tool_calls": [call("wait", {})]}
        sent.extend(messages)
        return "fine"

    agent = Agent(llm=llm, tools=[wait], db=database, session_id="s")
    task = asyncio.create_task(agent.achat("go"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await agent.achat("next") == "fine"
    assert complaint(sent) is None
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "user"]
    roles = [role for role, _ in await words(database)]
    assert roles == ["user", "assistant", "user", "assistant"]


async def pieces(messages: list[JSON]) -> AsyncIterator[str]:
    for piece in ("a", "b", "c"):
        yield piece


async def test_stream(database: Database) -> None:
    """The pieces of a stream are the text of its reply, which is stored whole."""
    stream = Agent(llm=pieces, db=database, session_id="s").astream("go")
    with pytest.raises(ConfigurationError, match="read to its end"):
        _ = stream.reply
    assert [piece async for piece in stream] == ["a", "b", "c"]
    assert stream.reply == "abc"
    assert await words(database) == [("user", "go"), ("assistant", "abc")]


async def test_client_leaves_in_mid_stream(database: Database) -> None:
    """The part of an answer that came is stored, and marked as a part."""
    agent = Agent(llm=pieces, db=database, session_id="s")
    async with agent.astream("go") as stream:
        assert await anext(stream) == "a"
        assert await anext(stream) == "b"
    stored = await database.conversations.read("s")
    assert [(m.role, m.text) for m in stored] == [("user", "go"), ("assistant", "ab")]
    assert stored[1].metadata["partial"] is True
    assert await Agent(llm=echo, db=database, session_id="s").achat("on") == "You said 'on'"


async def test_cancelled_in_mid_stream(database: Database) -> None:
    """The part is stored even where the task that reads the stream is cancelled."""
    came = asyncio.Event()

    async def llm(messages: list[JSON]) -> AsyncIterator[str]:
        yield "part"
        came.set()
        await asyncio.sleep(60)

    async def read() -> None:
        async for _ in Agent(llm=llm, db=database, session_id="s").astream("go"):
            pass

    task = asyncio.create_task(read())
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await words(database) == [("user", "go"), ("assistant", "part")]


async def test_model_breaks_in_mid_stream(database: Database) -> None:
    """Where the model breaks off, its error is raised and the part is stored."""

    async def llm(messages: list[JSON]) -> AsyncIterator[str]:
        yield "part"
        raise RuntimeError("cut")

    stream = Agent(llm=llm, db=database, session_id="s").astream("go")
    with pytest.raises(RuntimeError, match="cut"):
        _ = [piece async for piece in stream]
    stored = await database.conversations.read("s")
    assert (stored[1].text, stored[1].metadata["partial"]) == ("part", True)


async def test_same_message_id_asks_no_model(database: Database) -> None:
    """A turn that is repeated under its id returns the stored answer."""
    asked = 0

    def llm(messages: list[JSON], tools: list[JSON]) -> JSON | str:
        nonlocal asked
        asked += 1
        return adder(messages, tools)

    agent = Agent(llm=llm, tools=[add], db=database, session_id="s")
    first = await agent.achat("sums?", message_id="m1")
    await agent.achat("more sums?")
    before = await words(database)
    asked = 0
    again = await Agent(llm=llm, tools=[add], db=database, session_id="s").achat(
        "sums?", message_id="m1"
    )
    assert (again, asked) == (first, 0)
    assert again.message_ids[-1] == first.message_ids[-1]
    assert await words(database) == before


async def test_same_message_id_goes_on(database: Database) -> None:
    """A turn that broke off before its answer goes on under its id, and asks once."""

    def broken(messages: list[JSON]) -> str:
        raise RuntimeError("down")

    with pytest.raises(RuntimeError):
        await Agent(llm=broken, db=database, session_id="s").achat("one", message_id="m1")
    await Agent(llm=echo, db=database, session_id="s").achat("two")
    agent = Agent(llm=echo, db=database, session_id="s")
    assert await agent.achat("one", message_id="m1") == "You said 'one'"
    assert await agent.achat("one", message_id="m1") == "You said 'one'"
    texts = [text for _, text in await words(database)]
    assert texts == ["one", "two", "You said 'two'", "You said 'one'"]


async def test_partial_answer_is_no_answer(database: Database) -> None:
    """A turn whose answer was broken off is asked again under its id."""
    agent = Agent(llm=pieces, db=database, session_id="s")
    async with agent.astream("go", message_id="m1") as stream:
        await anext(stream)
    assert await agent.achat("go", message_id="m1") == "abc"


async def test_same_message_id_other_text(database: Database) -> None:
    """An id stands for one message: with other words it is refused, and no model is asked."""
    agent = Agent(llm=echo, db=database, session_id="s")
    await agent.achat("one", message_id="m1")
    with pytest.raises(ConflictError):
        await agent.achat("two", message_id="m1")
    assert len(await words(database)) == 2


@pytest.mark.parametrize("sessions", [1, 20])
async def test_twenty_at_once(database: Database, sessions: int) -> None:
    """Twenty turns at once, on one session or on twenty: all stored, none mixed into another."""

    async def llm(messages: list[JSON]) -> str:
        await asyncio.sleep(0)
        return echo(messages)

    async def turn(number: int) -> str:
        agent = Agent(llm=llm, db=database, session_id=f"s{number % sessions}")
        return await agent.achat(str(number))

    replies = await asyncio.gather(*(turn(number) for number in range(20)))
    assert replies == [f"You said '{number}'" for number in range(20)]
    for session in range(sessions):
        stored = await words(database, f"s{session}")
        mine = [number for number in range(20) if number % sessions == session]
        expected = [
            pair
            for number in mine
            for pair in (("user", str(number)), ("assistant", f"You said '{number}'"))
        ]
        assert stored == expected


async def test_history_is_a_window(database: Database) -> None:
    """`history` bounds what the model sees: by messages, or by tokens."""
    sent: list[int] = []

    def llm(messages: list[JSON]) -> str:
        sent.append(len(messages))
        return "ok"

    for number in range(10):
        await Agent(llm=llm, db=database, session_id="s", history=4).achat(str(number))
    assert sent[-1] == 4
    await Agent(llm=llm, db=database, session_id="s", history=Tokens(1)).achat("x")
    assert sent[-1] == 1
    await Agent(llm=llm, db=database, session_id="s", history=Tokens(1_000_000)).achat("x")
    assert sent[-1] == 23


async def test_recorded_sessions_resume(database: Database) -> None:
    """Each recorded session goes on with a window of 20 messages that an endpoint accepts."""
    sent: list[JSON] = []

    def llm(messages: list[JSON]) -> str:
        sent[:] = messages
        return "ok"

    path = Path(__file__).parent / "data" / "agent_sessions.jsonl"
    sessions = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(sessions) == 120
    for session in sessions:
        await database.conversations.append(session["session_id"], session["messages"])
        agent = Agent(llm=llm, db=database, session_id=session["session_id"], history=20)
        await agent.achat("Go on.")
        assert complaint(sent) is None
        assert sent[-20:] == [*session["messages"], {"role": "user", "content": "Go on."}][-20:]
        stored = await database.conversations.read(session["session_id"])
        assert [m.to_openai() for m in stored][:-2] == session["messages"]


async def test_results_in_disorder_are_sent_in_order(database: Database) -> None:
    """Whatever lies between a call and its result, an endpoint gets them side by side."""
    await database.conversations.append(
        "s",
        [
            {"role": "tool", "tool_call_id": "nobody", "content": "an orphan"},
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("f", {}, "a"), call("f", {}, "b")],
            },
            {"role": "user", "content": "meanwhile"},
            {"role": "tool", "tool_call_id": "b", "content": "B"},
            {"role": "assistant", "tool_calls": [call("f", {}, "a")]},
            {"role": "tool", "tool_call_id": "a", "content": "second A"},
        ],
    )
    sent: list[JSON] = []

    def llm(messages: list[JSON]) -> str:
        sent[:] = messages
        return "ok"

    await Agent(llm=llm, db=database, session_id="s").achat("now")
    assert complaint(sent) is None
    assert [message.get("content") for message in sent if message["role"] == "tool"] == [
        "No result: the call was broken off.",
        "B",
        "second A",
    ]


async def test_users_are_kept_apart(database: Database) -> None:
    """A session of one user can't be continued by another."""
    await Agent(llm=echo, db=database, session_id="s", user_id="alice").achat("mine")
    with pytest.raises(ConflictError):
        await Agent(llm=echo, db=database, session_id="s", user_id="bob").achat("mine too")
    assert len(await words(database)) == 2


async def test_state(database: Database) -> None:
    """An agent's state is that of its session."""
    agent = Agent(llm=echo, db=database, session_id="s")
    await agent.state.put("step", 1)
    item = await database.state.session("s").get("step")
    assert item is not None
    assert item.value == 1


async def test_content_parts(database: Database) -> None:
    """A message may be a list of parts; it reaches the model and the store as it is."""
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    sent: list[JSON] = []

    def llm(messages: list[JSON]) -> str:
        sent[:] = messages
        return "a dot"

    await Agent(llm=llm, db=database, session_id="s").achat(parts)
    assert sent == [{"role": "user", "content": parts}]
    assert (await database.conversations.read("s"))[0].content == parts


async def test_endless_tools(database: Database) -> None:
    """A model that never stops asking for tools is stopped, and the session can be resumed."""

    def llm(messages: list[JSON], tools: list[JSON]) -> JSON:
        return {"content": None, "tool_calls": [call("add", {"x": 1, "y": 1})]}

    with pytest.raises(ConfigurationError, match="3 times"):
        await Agent(llm=llm, tools=[add], db=database, session_id="s", max_rounds=3).achat("go")
    assert await Agent(llm=echo, db=database, session_id="s").achat("on") == "You said 'on'"


async def test_text_that_no_store_can_keep(database: Database) -> None:
    """A message that can't be stored is refused before the model is asked."""

    def llm(messages: list[JSON]) -> str:
        raise AssertionError("asked")

    agent = Agent(llm=llm, db=database, session_id="s")
    with pytest.raises(DataError):
        await agent.achat("\ud800")
    assert await words(database) == []


async def test_unread_stream_does_not_stop_the_session_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that waits for a stream that nobody reads says so after a while."""
    monkeypatch.setattr(database._turns, "_patience", 0.1)
    agent = Agent(llm=pieces, db=database, session_id="s")
    stream = agent.astream("go")
    await anext(stream)
    with pytest.raises(OverloadedError, match="stream"):
        await agent.achat("next")
    await stream.aclose()
    assert await Agent(llm=echo, db=database, session_id="s").achat("on") == "You said 'on'"


async def test_blocking_is_refused_on_a_loops_own_database(database: Database) -> None:
    """`chat()` on a database of `connect()` says what to do instead."""
    agent = Agent(llm=echo, db=database, session_id="s")
    with pytest.raises(ConfigurationError, match=r"db\(\)"):
        agent.chat("hi")
    with pytest.raises(ConfigurationError, match=r"db\(\)"):
        agent.stream("hi")


async def test_no_model() -> None:
    """Without a model and without a key, an agent names the three ways out."""
    with pytest.raises(ConfigurationError, match=r"llm=.*OPENAI_API_KEY.*offline"):
        Agent()


@pytest.mark.parametrize("history", [0, -1, True, "all", Tokens(0)])
async def test_bad_history(history: Any) -> None:  # noqa: ANN401
    """A window of nothing is refused where the agent is made."""
    with pytest.raises(DataError, match="history"):
        Agent(llm="offline", history=history)
