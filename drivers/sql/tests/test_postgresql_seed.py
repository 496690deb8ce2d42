"""The PostgreSQL block of the page that this library makes true, word for word but for the import.

Only the port is another one: the environment names it, as for any client of PostgreSQL.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from postgresql_fixtures import asked

from agentstore import Agent, Reply, db
from openai_server import OpenAIServer, openai_server
from servers import PostgreSQL

__all__ = ["openai_server"]

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
"""  # noqa: W291 - as it is on the page

URL = "postgresql://user:pass@localhost/mydb"


@pytest.fixture
def _mydb(postgresql_server: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    postgresql_server.ask("DROP DATABASE IF EXISTS mydb WITH (FORCE);")
    postgresql_server.ask('DROP ROLE IF EXISTS "user"; CREATE ROLE "user" LOGIN PASSWORD \'pass\';')
    postgresql_server.ask('CREATE DATABASE mydb OWNER "user";')
    monkeypatch.setenv("PGPORT", str(postgresql_server.port))


@pytest.mark.usefixtures("_mydb")
def test_production_block(openai_server: OpenAIServer) -> None:
    """The block stores both messages, and `response` is the answer and says that it is safe."""
    names: dict[str, object] = {}
    exec(compile(PRODUCTION, "<seed>", "exec"), names)  # noqa: S102 - the page is the promise
    response = names["response"]
    assert isinstance(response, Reply)
    assert response == "Hello!"
    assert response.durability.name == "COMMITTED"
    database = db(URL)
    stored = database.sync.conversations.read("production-session")
    database.sync.close()
    assert [(one.role, one.text) for one in stored] == [
        ("user", "Remember my preferences"),
        ("assistant", "Hello!"),
    ]


@pytest.mark.usefixtures("_mydb", "openai_server")
def test_production_block_in_two_processes() -> None:
    """The block run twice, each time in a process of its own, is one conversation."""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", PRODUCTION], check=True, timeout=60)
    database = db(URL)
    stored = database.sync.conversations.read("production-session")
    database.sync.close()
    assert [one.role for one in stored] == ["user", "assistant"] * 2


@pytest.mark.asyncio
@pytest.mark.usefixtures("_mydb", "openai_server")
async def test_production_block_asynchronously(postgresql_server: PostgreSQL) -> None:
    """The block with `await agent.achat()`; a witness finds the rows in the tables."""
    database = db(URL)
    agent = Agent(name="Assistant", db=database, session_id="production-session")
    assert await agent.achat("Remember my preferences") == "Hello!"
    rows = await asked(
        f"postgresql://user:pass@localhost:{postgresql_server.port}/mydb",
        "SELECT session_id, message_count, last_seq FROM agentstore_sessions",
    )
    assert rows == [[("production-session", 2, 2)]]
