"""A conversation that is stored, and a second process that resumes it.

It needs no model: the offline one answers from the messages alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from agentstore import Agent, db


def main() -> None:
    if len(sys.argv) > 1:
        resume(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'conversations.db'}"
        begin(url)
        subprocess.run([sys.executable, __file__, url], check=True)


def begin(url: str) -> None:
    """Say something in one process."""
    agent = Agent(name="Assistant", llm="offline", db=db(url), session_id="my-session")
    say(agent, "My name is Alice.")


def resume(url: str) -> None:
    """Ask for it in another, and show what the database holds."""
    database = db(url)
    agent = Agent(name="Assistant", llm="offline", db=database, session_id="my-session")
    say(agent, "What's my name?")

    print("\nIn the database:")
    for session in database.sync.conversations.sessions():
        print(f"  session {session.session_id!r}, {session.message_count} messages")
        for message in database.sync.conversations.read(session.session_id):
            print(f"    {message.seq}  {message.role:<9}  {message.text}")


def say(agent: Agent, text: str) -> None:
    process = "first" if len(sys.argv) == 1 else "second"
    print(f"[{process} process] you:   {text}")
    reply = agent.chat(text)
    print(f"[{process} process] agent: {reply}  ({reply.durability.name.lower()})")


if __name__ == "__main__":
    main()
