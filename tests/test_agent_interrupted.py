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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentstore import Agent, ConfigurationError, Database, Message, connect, db
from agentstore.errors import ClosedError, DataError, OverloadedError
from agentstore.models import Completion
from openai_server import complaint

JSON = dict[str, Any]


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


async def turn(database: Database, session_id: str, *, stream: bool) -> str:
    """Take the turn that is to be broken off."""
    if not stream:
        return await agent(database, session_id).achat("go", message_id="m1")
    pieces = agent(database, session_id).astream("go", message_id="m1")
    return "".join([piece async for piece in pieces])


async def check_that_it_goes_on(database: Database, session_id: str, *, at_once: bool) -> None:
    """A turn that was broken off at any point can be followed, and can be made again."""
    assert database._turns._queues == {}
    before = await stored(database, session_id)
    assert [message.id for message in before].count("m1") <= 1
    assert [message.id for message in before[:1]] in ([], ["m1"])
    async with asyncio.timeout(10):
        if not at_once:
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
@pytest.mark.parametrize("at_once", [True, False], ids=["again", "next"])
@pytest.mark.parametrize("stream", [True, False], ids=["astream", "achat"])
@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_cancelled_after_any_number_of_steps(
    scheme: str, stream: bool, at_once: bool, tmp_path: Path
) -> None:
    """A turn that is cancelled after k steps of the loop, for each k, leaves a whole session."""
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/a.db?synchronous=normal"
    finished, steps = 0, 0
    async with connect(url) as database:
        while finished < 3:
            session_id = f"s{steps}"
            task = asyncio.create_task(turn(database, session_id, stream=stream))
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, 10)
            else:
                assert await task == "one two"
                finished += 1
            await check_that_it_goes_on(database, session_id, at_once=at_once)
            steps += 1 if scheme == "memory" else 1 + steps // 8
    assert steps > 20
