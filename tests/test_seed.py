"""The code blocks of the page that this library makes true, word for word but for the import.

The model is a real `openai` client that talks to an endpoint on the loopback.
URLs of servers are replaced by those of files: each test says which.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agentstore import Agent, Reply, db
from openai_server import OpenAIServer

SIMPLE = """
from agentstore import Agent, db

agent = Agent(
    name="Assistant",
    instructions="You are a helpful assistant.",
    db=db(database_url="sqlite:///conversations.db"),
    session_id="my-session"
)

agent.chat("Hello!")  # Automatically persisted
"""

PRODUCTION = """
from agentstore import Agent, db

agent = Agent(
    name="Assistant",
    instructions="You are a helpful assistant.",
    db=db(database_url="postgresql://user:pass@localhost/mydb"),
    session_id="production-session"
)

response = agent.chat("Remember my preferences")
# Conversation automatically saved to PostgreSQL
"""

HYBRID = """
from agentstore import Agent, db

# SQL for conversations, Redis for state
agent = Agent(
    name="Assistant",
    db=db(
        database_url="postgresql://localhost/conversations",
        state_url="redis://localhost:6379"
    ),
    session_id="hybrid-session"
)
"""

RESUME = """
# Initial session
agent = Agent(name="Assistant", db=db_instance, session_id="user-123")
agent.chat("My name is Alice")

# Later session - automatically resumes
agent2 = Agent(name="Assistant", db=db_instance, session_id="user-123")
agent2.chat("What's my name?")  # Knows it's Alice
"""

CONFIGURATION = """
import os
from agentstore import Agent, db

# Environment-based configuration
agent = Agent(
    name="ProdAssistant",
    db=db(
        database_url=os.getenv("DATABASE_URL"),
        state_url=os.getenv("REDIS_URL")
    ),
    session_id=f"user-{user_id}"
)
"""


@pytest.fixture(autouse=True)
def _elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openai_server: OpenAIServer
) -> None:
    monkeypatch.chdir(tmp_path)


def run(block: str, **names: object) -> dict[str, object]:
    namespace: dict[str, object] = {"Agent": Agent, "db": db, **names}
    exec(compile(block, "<seed>", "exec"), namespace)  # noqa: S102 - the page is the promise
    return namespace


def stored(url: str, session_id: str) -> list[tuple[str, str]]:
    """Read a session through a database of its own, as another process would."""
    database = db(url)
    messages = database.sync.conversations.read(session_id)
    database.sync.close()
    return [(message.role, message.text) for message in messages]


def test_simple_sqlite() -> None:
    """The first block stores both messages in the file that it names."""
    run(SIMPLE)
    assert Path("conversations.db").exists()
    assert stored("sqlite:///conversations.db", "my-session") == [
        ("user", "Hello!"),
        ("assistant", "Hello!"),
    ]


def test_instructions_are_sent_and_not_stored(openai_server: OpenAIServer) -> None:
    """The model sees the instructions first; the conversation doesn't keep them."""
    run(SIMPLE)
    (request,) = openai_server.requests
    assert request["messages"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
    ]


def test_production_block() -> None:
    """The second block, on a file: `response` is the text of the answer, and says it is safe."""
    names = run(PRODUCTION.replace("postgresql://user:pass@localhost/mydb", "sqlite:///mydb"))
    response = names["response"]
    assert isinstance(response, Reply)
    assert response == "Hello!"
    assert response.durability.name == "COMMITTED"
    assert stored("sqlite:///mydb", "production-session")[0] == ("user", "Remember my preferences")


def test_hybrid_block() -> None:
    """The third block, on two files: the state really lies in the second one."""
    names = run(
        HYBRID.replace("postgresql://localhost/conversations", "sqlite:///conversations").replace(
            "redis://localhost:6379", "sqlite:///state"
        )
    )
    agent = names["agent"]
    assert isinstance(agent, Agent)
    agent.chat("Hello!")
    asyncio.run(agent.state.put("step", 2))

    alone = db("sqlite:///state")
    item = alone.sync.state.session("hybrid-session").get("step")
    assert item is not None
    assert item.value == 2
    assert alone.sync.conversations.get("hybrid-session") is None
    other = db("sqlite:///conversations")
    assert other.sync.state.session("hybrid-session").get("step") is None
    assert len(other.sync.conversations.read("hybrid-session")) == 2


def test_resume_block(openai_server: OpenAIServer) -> None:
    """The fourth block knows that it's Alice, because the model was sent what was stored."""
    database = db("sqlite:///a.db")
    run(RESUME, db_instance=database)
    assert stored("sqlite:///a.db", "user-123")[-1] == ("assistant", "Your name is Alice.")
    assert openai_server.requests[-1]["messages"][0] == {
        "role": "user",
        "content": "My name is Alice",
    }


def test_resume_in_another_process() -> None:
    """The two halves of the fourth block, each in a process of its own."""
    first, second = RESUME.split("# Later session - automatically resumes\n")
    begin = "from agentstore import Agent, db\ndb_instance = db('sqlite:///a.db')\n"
    for half in (first, second):
        subprocess.run([sys.executable, "-c", begin + half], check=True, timeout=30)
    assert stored("sqlite:///a.db", "user-123") == [
        ("user", "My name is Alice"),
        ("assistant", "Hello, Alice!"),
        ("user", "What's my name?"),
        ("assistant", "Your name is Alice."),
    ]


def test_configuration_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth block takes its URLs from the environment; one alone serves both."""
    monkeypatch.setenv("DATABASE_URL", "sqlite:///app.db")
    monkeypatch.delenv("REDIS_URL", raising=False)
    agent = run(CONFIGURATION, user_id=7)["agent"]
    assert isinstance(agent, Agent)
    agent.chat("Hello!")
    assert len(stored("sqlite:///app.db", "user-7")) == 2


def test_configuration_block_without_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable is an error that says so, never a conversation in memory."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(ValueError, match="database_url is None"):
        run(CONFIGURATION, user_id=7)


def test_asynchronously() -> None:
    """Each block does the same with `await agent.achat()`."""
    database = db("sqlite:///a.db")

    async def main() -> tuple[str, str]:
        agent = Agent(name="Assistant", db=database, session_id="user-123")
        await agent.achat("My name is Alice")
        agent2 = Agent(name="Assistant", db=database, session_id="user-123")
        return await agent2.achat("What's my name?"), str(await agent2.achat("And again?"))

    assert asyncio.run(main()) == ("Your name is Alice.", "Hello, Alice!")
    assert len(stored("sqlite:///a.db", "user-123")) == 6


def test_one_database_for_everybody() -> None:
    """One `db()` serves a sync agent, an async one and a second `asyncio.run()`."""
    database = db("sqlite:///a.db")

    def agent() -> Agent:
        return Agent(name="Assistant", db=database, session_id="user-123")

    agent().chat("My name is Alice")
    assert asyncio.run(agent().achat("What's my name?")) == "Your name is Alice."
    assert asyncio.run(agent().achat("What's my name?")) == "Your name is Alice."
    assert agent().chat("What's my name?") == "Your name is Alice."
    assert len(stored("sqlite:///a.db", "user-123")) == 8
