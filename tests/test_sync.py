"""The blocking face: the same methods, the same signatures, the same answers."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from pathlib import Path

import pytest

from agentstore import ConfigurationError, connect, db
from agentstore.conversations import Conversations
from agentstore.database import Database
from agentstore.errors import ClosedError, ConflictError
from agentstore.state import State, States
from agentstore.sync import SyncConversations, SyncDatabase, SyncState, SyncStates

PAIRS = [
    (Conversations, SyncConversations),
    (State, SyncState),
    (States, SyncStates),
    (Database, SyncDatabase),
]
# What needs no twin: it is there to make the twins, or answers at once.
ASYNC_ONLY = {
    "sync",
    "limits",
    "capabilities",
    "state_capabilities",
    "tenant",
    "require_blocking",
    "turn",
}


def public(cls: type) -> dict[str, object]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


def shape(function: object) -> str:
    """Write a signature down as it reads without await."""
    text = str(inspect.signature(function))  # type: ignore[arg-type]
    return re.sub(r"Sync(?=[A-Z])", "", text).replace(
        "AsyncGenerator[dict[str, Any], None]", "Generator[dict[str, Any], None, None]"
    )


@pytest.mark.parametrize(("twin", "face"), PAIRS, ids=lambda cls: cls.__name__)
def test_same_methods(twin: type, face: type) -> None:
    """Every public method has its blocking twin, and there is no other."""
    assert public(face).keys() == public(twin).keys() - ASYNC_ONLY


@pytest.mark.parametrize(
    ("twin", "face", "name"),
    [
        pytest.param(twin, face, name, id=f"{face.__name__}.{name}")
        for twin, face in PAIRS
        for name, value in public(face).items()
        if inspect.isfunction(value)
    ],
)
def test_same_signature(twin: type, face: type, name: str) -> None:
    """A blocking method takes and returns what its asynchronous twin does."""
    assert shape(getattr(face, name)) == shape(getattr(twin, name))


def test_round_trip(tmp_path: Path) -> None:
    """What one thread stores without await, a coroutine on another loop reads."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    result = database.sync.conversations.append("s", [{"role": "user", "content": "hi"}])
    assert result.seqs == (1,)

    async def read() -> list[str]:
        return [message.text for message in await database.conversations.read("s")]

    assert asyncio.run(read()) == ["hi"]
    assert asyncio.run(read()) == ["hi"]
    database.sync.close()


def test_in_a_running_loop(tmp_path: Path) -> None:
    """A blocking call works in a thread whose own loop runs, as in a notebook."""
    database = db(f"sqlite:///{tmp_path}/a.db")

    async def cell() -> int:
        database.sync.conversations.append("s", [{"role": "user", "content": "hi"}])
        return len(database.sync.conversations.read("s"))

    assert asyncio.run(cell()) == 1
    database.sync.close()


def test_errors_come_across(tmp_path: Path) -> None:
    """An error of a store is raised in the calling thread, as itself."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    state = database.sync.state.session("s")
    state.put("k", 1)
    with pytest.raises(ConflictError):
        state.put("k", 2, expect=0)
    database.sync.close()


def test_many_threads_open_once(tmp_path: Path) -> None:
    """Sixteen threads that use a new database at once share one opening, and lose nothing."""
    database = db(f"sqlite:///{tmp_path}/a.db")

    def write(number: int) -> None:
        for place in range(10):
            database.sync.conversations.append(
                "s", [{"role": "user", "content": f"{number}-{place}"}]
            )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [message.text for message in database.sync.conversations.read("s")]
    assert sorted(texts) == sorted(f"{n}-{p}" for n in range(16) for p in range(10))
    for number in range(16):
        mine = [text for text in texts if text.startswith(f"{number}-")]
        assert mine == [f"{number}-{place}" for place in range(10)]
    database.sync.close()


def test_closed(tmp_path: Path) -> None:
    """After `close` every call is a `ClosedError`; it isn't opened anew behind one's back."""
    database = db(f"sqlite:///{tmp_path}/a.db")
    database.sync.conversations.append("s", [{"role": "user", "content": "hi"}])
    database.sync.close()
    with pytest.raises(ClosedError):
        database.sync.conversations.read("s")


def test_refused_for_connect(tmp_path: Path) -> None:
    """A database of `connect()` belongs to its loop and says so to a blocking caller."""

    async def main() -> None:
        async with connect(f"sqlite:///{tmp_path}/a.db") as database:
            with pytest.raises(ConfigurationError, match=r"db\(\)"):
                database.sync.conversations.read("s")

    asyncio.run(main())


def test_opening_fails_and_is_tried_again(tmp_path: Path) -> None:
    """A database that could not be opened is opened by a later call, once it can be."""
    database = db(f"sqlite:///{tmp_path}/later/a.db")
    with pytest.raises(ConfigurationError, match="directory"):
        database.sync.conversations.read("s")
    (tmp_path / "later").mkdir()
    assert len(database.sync.conversations.read("s")) == 0
    database.sync.close()
