"""The same promises for code that doesn't await."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentstore import Agent, Database, Message, db
from openai_server import complaint

JSON = dict[str, Any]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Database]:
    database = db(f"sqlite:///{tmp_path}/shared.db")
    yield database
    database.sync.close()


def echo(messages: list[JSON]) -> str:
    return f"You said {messages[-1]['content']!r}"


def pieces(messages: list[JSON]) -> Iterator[str]:
    yield from "abc"


def test_stream(shared: Database) -> None:
    """A blocking stream gives the pieces, and then the reply."""
    stream = Agent(llm=pieces, db=shared, session_id="s").stream("go")
    assert list(stream) == ["a", "b", "c"]
    assert stream.reply == "abc"


def test_stream_is_left(shared: Database) -> None:
    """A blocking stream that is closed early stores the part that came."""
    with Agent(llm=pieces, db=shared, session_id="s").stream("go") as stream:
        assert next(stream) == "a"
    stored = shared.sync.conversations.read("s")
    assert [(m.text, m.metadata.get("partial")) for m in stored] == [("go", None), ("a", True)]


def test_threads(shared: Database) -> None:
    """Turns of one session from many threads come one after the other."""
    agents = [Agent(llm=echo, db=shared, session_id="s") for _ in range(8)]
    threads = [
        threading.Thread(target=agent.chat, args=(str(number),))
        for number, agent in enumerate(agents)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = shared.sync.conversations.read("s")
    questions = [message.text for message in stored[::2]]
    assert sorted(questions) == [str(number) for number in range(8)]
    assert [m.text for m in stored[1::2]] == [f"You said {text!r}" for text in questions]


def test_without_a_database() -> None:
    """An agent without a database remembers while it lives."""
    agent = Agent(llm="offline")
    agent.chat("My name is Alice.")
    assert agent.chat("What's my name?") == "Your name is Alice, says the offline model."


def test_crash(shared: Database, tmp_path: Path) -> None:
    """A process that dies within a tool leaves a session that another one resumes."""
    script = f"""
import os
from agentstore import Agent, db
def crash() -> str:
    os._exit(7)
def llm(messages, tools):
    function = {{"name": "crash", "arguments": "{{}}"}}
    call = {{"id": "a", "type": "function", "function": function}}
    return {{"content": None, "tool_calls": [call]}}
Agent(llm=llm, tools=[crash], db=db("sqlite:///{tmp_path}/shared.db"), session_id="s").chat("go")
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, timeout=30)
    assert ended.returncode == 7
    sent: list[JSON] = []

    def llm(messages: list[JSON]) -> str:
        sent[:] = messages
        return "alive"

    assert Agent(llm=llm, db=shared, session_id="s").chat("still there?") == "alive"
    assert complaint(sent) is None
    stored = shared.sync.conversations.read("s")
    assert [m.role for m in stored] == ["user", "assistant", "user", "assistant"]


def test_message_shape() -> None:
    """Absent and null stay different, and unknown keys come back where they were."""
    given = {"role": "assistant", "content": None, "refusal": None, "audio": {"id": "x"}}
    assert Message.from_openai(given).to_openai() == given
    assert Message.from_openai({"role": "assistant", "tool_calls": []}).to_openai() == {
        "role": "assistant",
        "tool_calls": [],
    }
