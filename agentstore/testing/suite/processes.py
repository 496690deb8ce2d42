"""Several processes on one store."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from ...database import Database
from ._base import SOON, Suite, require, say, texts

__all__ = ["ProcessTests"]

_CHILD = """
import asyncio, json, sys
from agentstore import Message, connect

async def main():
    order = json.loads(sys.stdin.readline())
    async with connect(order["url"]) as database:
        print("ready", flush=True)
        for place in range(order["appends"]):
            message = Message(role="user", content=f"child {place}")
            await database.conversations.append(order["session"], [message])
        seen = [message.text for message in await database.conversations.read(order["session"])]
        value = await database.state.app().get("k")
    print(json.dumps({"seen": seen, "value": value and value.value}), flush=True)

asyncio.run(main())
"""

_APPENDS = 40


class ProcessTests(Suite):
    """The capability `shared`."""

    async def test_two_processes_on_one_session(
        self, database_url: str, database: Database
    ) -> None:
        """Two processes append to one session at once: both see all, in each writer's order."""
        require(database, shared=True)
        conversations = database.conversations
        await database.state.app().put("k", "from the parent")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            # Not on the command line, where everybody reads the password.
            order = {"url": database_url, "session": "s", "appends": _APPENDS}
            child.stdin.write(json.dumps(order).encode() + b"\n")
            async with asyncio.timeout(6 * SOON):
                assert await child.stdout.readline() == b"ready\n"
                for place in range(_APPENDS):
                    await conversations.append("s", [say(f"parent {place}")])
                report = json.loads(await child.stdout.readline())
                assert await child.wait() == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        whole = texts(await conversations.read("s"))
        for writer in ("parent", "child"):
            mine = [text for text in whole if text.startswith(writer)]
            assert mine == [f"{writer} {place}" for place in range(_APPENDS)]
        assert len(whole) == 2 * _APPENDS
        assert report["seen"] == whole[: len(report["seen"])]
        assert f"child {_APPENDS - 1}" in report["seen"]
        assert report["value"] == "from the parent"
        session = await conversations.get("s")
        assert session is not None
        assert session.message_count == 2 * _APPENDS
