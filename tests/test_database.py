"""`Database`: what spans sessions and stores, done whole or begun again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import pytest_asyncio

from agentstore import ConfigurationError, Database, connect, db
from agentstore._engine import Engine, Timeouts
from agentstore.errors import ClosedError, DataError, StoreError, UnavailableError
from agentstore.memory import MemoryDriver
from agentstore.stores import Driver
from agentstore.types import Limits
from agentstore.url import URL
from agentstore.wrappers import Operation, Wrapper

pytestmark = pytest.mark.asyncio

T = TypeVar("T")


def memory() -> MemoryDriver:
    return MemoryDriver(URL.parse("memory://"))


def say(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


class Breaking(Wrapper):
    """Lets so many calls of one kind through, and fails from then on."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.name = ""
        self.left = 0
        self.dead = False

    async def _invoke(self, operation: Operation, call: Callable[[Driver], Awaitable[T]]) -> T:
        if self.dead:
            raise UnavailableError("nobody there")
        if operation.name == self.name:
            if self.left == 0:
                raise UnavailableError("broken off")
            self.left -= 1
        return await call(self._inner)

    async def ping(self) -> None:
        if self.dead:
            raise UnavailableError("nobody there")
        await super().ping()


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database on two engines."""
    urls = ["memory://", "memory://"]
    if request.param == "sqlite":
        urls = [f"sqlite:///{tmp_path}/{name}.db?synchronous=normal" for name in ("a", "b")]
    async with connect(urls[0], state_url=urls[1]) as database:
        yield database


async def fill(database: Database, *users: str, sessions: int) -> None:
    """Give each user sessions of two messages and one value, and two values of their own."""
    conversations, state = database.conversations, database.state
    for user in users:
        for number in range(sessions):
            session_id = f"{user} {number}"
            await conversations.append(session_id, say("one", "two"), user_id=user)
            await state.session(session_id).put("step", number)
        await state.user(user).put("name", user)
        await state.user(user).put("age", 7)


async def owned(database: Database, user: str) -> tuple[int, int, int]:
    """Count a user's sessions, messages, and values of state, wherever they lie."""
    sessions = messages = values = 0
    for number in range(400):
        session_id = f"{user} {number}"
        sessions += await database.conversations.get(session_id) is not None
        messages += len(await database.conversations.read(session_id))
        values += len(await database.state.session(session_id).items())
    return sessions, messages, values + len(await database.state.user(user).items())


# --- erasing


async def test_erase_user(two: Database) -> None:
    """Everything of a user goes from both stores, over many pages, and nothing of anybody else."""
    await fill(two, "alice", sessions=250)
    await fill(two, "bob", "alic", "alice ", sessions=3)
    await two.conversations.append("nobody's", say("x"))
    await two.state.app().put("k", 1)

    receipt = await two.erase_user("alice")
    assert (receipt.user_id, receipt.sessions, receipt.messages, receipt.state) == (
        "alice",
        250,
        500,
        252,
    )
    assert await owned(two, "alice") == (0, 0, 0)
    for other in ("bob", "alic", "alice "):
        assert await owned(two, other) == (3, 6, 5)
    assert len(await two.conversations.read("nobody's")) == 1
    assert await two.state.app().get("k") is not None

    again = await two.erase_user("alice")
    assert (again.sessions, again.messages, again.state) == (0, 0, 0)


@pytest.mark.parametrize("who", [None, "", 7, "x" * 513])
async def test_erase_nobody(two: Database, who: Any) -> None:  # noqa: ANN401
    """A variable that is unset is an error, and never everybody."""
    await fill(two, "alice", "bob", sessions=2)
    with pytest.raises(DataError, match="user_id"):
        await two.erase_user(who)
    with pytest.raises(DataError, match="user_id"):
        _ = [record async for record in two.export_user(who)]
    assert await owned(two, "alice") == await owned(two, "bob") == (2, 4, 4)


@pytest.mark.parametrize("broken", ["delete", "state.delete", "sessions", "state.items"])
@pytest.mark.parametrize("which", [0, 1], ids=["conversations", "state"])
async def test_erasure_that_broke_off(broken: str, which: int) -> None:
    """An erasure that broke off anywhere can be made again, and leaves nothing then."""
    for left in (0, 1, 5):
        engines = [Breaking(memory()), Breaking(memory())]
        database = Database(*engines)
        await database.open()
        await fill(database, "alice", "bob", sessions=8)
        engines[which].name, engines[which].left = broken, left
        happens = broken.startswith("state") == bool(which) and (broken, left) != ("sessions", 5)
        if happens:
            with pytest.raises(UnavailableError, match="broken off"):
                await database.erase_user("alice")
            engines[which].name = ""
        await database.erase_user("alice")
        assert await owned(database, "alice") == (0, 0, 0)
        assert await owned(database, "bob") == (8, 16, 10)
        await database.close()


async def test_cancelled_erasure(two: Database) -> None:
    """So can one that was cancelled, after any number of steps."""
    await fill(two, "bob", sessions=5)
    for steps in (0, 5, 50, 500):
        await fill(two, "alice", sessions=5)
        task = asyncio.create_task(two.erase_user("alice"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        await two.erase_user("alice")
        assert await owned(two, "alice") == (0, 0, 0)
        assert await owned(two, "bob") == (5, 10, 7)


async def test_erasure_takes_what_has_expired() -> None:
    """What had expired is not left lying in either store."""
    engines = [memory(), memory()]
    database = Database(*engines)
    await database.open()
    await database.conversations.append("s", say("x"), user_id="alice", ttl=0.01)
    await database.state.session("s").put("k", 1, ttl=0.01)
    await database.state.user("alice").put("k", 1, ttl=0.01)
    await asyncio.sleep(0.03)
    await database.erase_user("alice")
    assert [len(kept.ledger) for kept in engines[0].tenant("").sessions.values()] == [0]
    assert [dict(values) for values in engines[1].tenant("").state.values() if values] == []
    await database.close()


async def test_small_pages() -> None:
    """Limits on pages smaller than those asked for by default stop neither of these."""
    async with connect("memory://", limits=Limits(page=3)) as database:
        await fill(database, "alice", "bob", sessions=7)
        records = [record async for record in database.export_user("alice")]
        assert len(records) == 8
        assert await database.delete_session("alice 0") is True
        receipt = await database.erase_user("alice")
        assert (receipt.sessions, receipt.state) == (6, 8)


# --- exporting


async def test_export_user(two: Database) -> None:
    """Everything of a user is given, of both stores, and nothing of anybody else."""
    await fill(two, "alice", sessions=120)
    await fill(two, "bob", sessions=2)
    records = [record async for record in two.export_user("alice")]
    *sessions, own = records
    assert own == {"user_id": "alice", "state": {"age": 7, "name": "alice"}}
    assert {record["session_id"] for record in sessions} == {f"alice {n}" for n in range(120)}
    for record in sessions:
        number = int(record["session_id"].split()[1])
        assert [message["content"] for message in record["messages"]] == ["one", "two"]
        assert record["agentstore"] == {"user_id": "alice", "state": {"step": number}}
    assert msgspec.json.decode(msgspec.json.encode(records)) == records


async def test_export_of_a_stranger(two: Database) -> None:
    """Of somebody nobody knows there is one record, which says so."""
    records = [record async for record in two.export_user("nobody")]
    assert records == [{"user_id": "nobody", "state": {}}]


# --- deleting a session


async def test_delete_session(two: Database) -> None:
    """A conversation goes with the state of its session, and nothing else."""
    await fill(two, "alice", sessions=2)
    for number in range(150):
        await two.state.session("alice 0").put(f"k{number}", number)
    assert await two.delete_session("alice 0") is True
    assert await two.delete_session("alice 0") is False
    assert await owned(two, "alice") == (1, 2, 3)


async def test_delete_session_of_state_alone(two: Database) -> None:
    """State without a conversation is deleted too; there was no session to tell of."""
    await two.state.session("s").put("k", 1)
    assert await two.delete_session("s") is False
    assert await two.state.session("s").get("k") is None


async def test_delete_session_that_broke_off() -> None:
    """While the conversation is there, a deletion that broke off can be made again."""
    first, second = Breaking(memory()), memory()
    database = Database(first, second)
    await database.open()
    await fill(database, "alice", sessions=1)
    first.name = "delete"
    with pytest.raises(UnavailableError):
        await database.delete_session("alice 0")
    first.name = ""
    assert await database.delete_session("alice 0") is True
    assert await owned(database, "alice") == (0, 0, 2)
    await database.close()


# --- health


async def test_health_with_one_dead_store() -> None:
    """Each store is asked, one that is dead doesn't hide the other, and nothing is raised."""
    alive, dead = memory(), Breaking(memory())
    database = Database(alive, dead)
    await database.open()
    assert (await database.health()).ok is True
    dead.dead = True
    health = await database.health()
    assert [(one.backend, one.ok, one.error) for one in health.engines] == [
        ("MemoryDriver", True, None),
        ("Breaking", False, "nobody there"),
    ]
    assert health.ok is False
    await database.close()


async def test_health_of_what_can_not_be_opened(tmp_path: Path) -> None:
    """A database that can't even be opened is not well, which is no reason to raise."""
    database = db(f"sqlite:///{tmp_path}/missing/a.db")
    (engine,) = (await database.health()).engines
    assert engine.ok is False
    assert "missing" in str(engine.error)


# --- limits


class Small(MemoryDriver):
    """An engine that takes little, and says how little once it is open."""

    async def open(self) -> None:
        await super().open()
        least = msgspec.structs.replace(Limits(), message=100, state=50)
        self.capabilities = msgspec.structs.replace(self.capabilities, limits=least)


async def test_limits_of_the_store() -> None:
    """What the store doesn't take is refused before it is sent, once the store has told."""
    database = Database(Small(URL.parse("memory://")))
    await database.open()
    await database.conversations.append("s", say("x" * 50))
    with pytest.raises(DataError, match="100 is the most"):
        await database.conversations.append("s", say("x" * 101))
    with pytest.raises(DataError, match="50 is the most"):
        await database.state.app().put("k", "x" * 51)
    await database.close()


async def test_limits_beyond_the_store() -> None:
    """Wanting more than the store takes is an error of the set-up."""
    database = Database(Small(URL.parse("memory://")), limits=Limits(message=101))
    with pytest.raises(ConfigurationError, match=r"limits\.message is 101: the store takes 100"):
        await database.open()
    with pytest.raises(ConfigurationError, match=r"limits\.depth is 401: the store takes 400"):
        Database(memory(), limits=Limits(depth=401))


@pytest.mark.parametrize("value", [0, -1, True, None, 1.5, "1"])
async def test_bad_limits(value: Any) -> None:  # noqa: ANN401
    """A limit that lets nothing through is refused by name."""
    with pytest.raises(ConfigurationError, match=r"limits\.page is .*: give a whole number"):
        db("memory://", limits=Limits(page=value))


async def test_limits_refused_at_the_opening_leave_nothing_open() -> None:
    """A set-up that is refused when the stores are open closes them again."""
    first, second = memory(), Small(URL.parse("memory://"))
    database = Database(first, second, limits=Limits(message=101))
    with pytest.raises(ConfigurationError):
        await database.open()
    assert (first._is_open, second._is_open) == (False, False)


# --- tenants


async def test_tenants_are_apart(two: Database) -> None:
    """A view on another tenant sees, changes and erases nothing of this one."""
    views = [two, two.for_tenant("a"), two.for_tenant("A"), two.for_tenant("a ")]
    for number, view in enumerate(views):
        await view.conversations.append("s", say(str(number)), user_id="alice")
        await view.state.app().put("k", number)
        await view.state.session("s").put("k", number)
        await view.state.user("alice").put("k", number)
    receipt = await views[1].erase_user("alice")
    assert (receipt.sessions, receipt.messages, receipt.state) == (1, 1, 2)
    assert await views[1].conversations.get("s") is None
    assert (await views[1].state.app().items())[0].value == 1
    for number, view in enumerate(views):
        if number == 1:
            continue
        (message,) = await view.conversations.read("s")
        (session,) = await view.conversations.sessions()
        assert (message.text, session.tenant) == (str(number), view.tenant)
        for state in (view.state.app(), view.state.session("s"), view.state.user("alice")):
            assert [item.value for item in await state.items()] == [number]


async def test_tenants_take_turns_apart() -> None:
    """Sessions of one name in two tenants don't wait for each other; two views of one tenant do."""
    async with connect("memory://") as database:
        async with asyncio.timeout(5), database.turn("s"), database.for_tenant("a").turn("s"):
            pass
        view = database.for_tenant("a").for_tenant("")
        async with database.turn("s"):
            with pytest.raises(ConfigurationError):
                async with view.turn("s"):
                    pass


@pytest.mark.parametrize("tenant", [None, 7, "a\0b", "\ud800", "x" * 513])
async def test_bad_tenant(tenant: Any) -> None:  # noqa: ANN401
    """A tenant is an id, or the empty name."""
    database = Database(memory())
    with pytest.raises(DataError, match="tenant"):
        database.for_tenant(tenant)
    with pytest.raises(DataError, match="tenant"):
        Database(memory(), tenant=tenant)


# --- names, opening and closing


async def test_no_secret_is_shown() -> None:
    """Errors and health name a store by its URL without the secrets in it."""
    async with connect("memory://alice:hunter2@localhost/x") as database:
        with pytest.raises(DataError) as caught:
            await database.conversations.read("")
        (engine,) = (await database.health()).engines
    with pytest.raises(ClosedError) as closed:
        await database.state.app().get("k")
    for shown in (caught.value, closed.value):
        text = f"{shown} {shown!r} {shown.backend}"
        assert "hunter2" not in text
        assert "localhost" in text
    assert "hunter2" not in f"{engine!r} {database!r}"
    assert "localhost" in engine.backend


async def test_options_are_not_shown() -> None:
    """An option may be a password: what holds it doesn't show it."""
    timeouts = Timeouts(connect=1, attempt=1, operation=1)
    engine = Engine(
        url=URL.parse("memory://alice:hunter2@localhost/x"),
        make=MemoryDriver,
        options={"password": "hunter3"},
        timeouts=timeouts,
    )
    assert repr(engine) == "<Engine memory://alice:***@localhost/x>"
    assert "hunter" not in repr(engine.build)


async def test_errors_say_which_store() -> None:
    """Of two stores, an error names the one that it is of, and what it was about."""
    first, second = Breaking(memory()), Breaking(memory())
    database = Database(first, second, names=("the first", "the second"))
    await database.open()
    first.dead = second.dead = True
    calls: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (lambda: database.conversations.read("s"), "the first read: nobody there"),
        (lambda: database.state.app().get("k"), "the second state.get: nobody there"),
        (lambda: database.delete_session("s"), "the second state.items: nobody there"),
        (lambda: database.erase_user("u"), "the first purge_expired: nobody there"),
    ]
    for call, shown in calls:
        with pytest.raises(StoreError) as caught:
            await call()
        assert str(caught.value) == shown
    await database.close()


async def test_second_store_can_not_be_opened(tmp_path: Path) -> None:
    """Then the first one is closed again, and the error is the second one's."""

    class Refusing(MemoryDriver):
        async def open(self) -> None:
            raise UnavailableError("no")

    first = memory()
    with pytest.raises(UnavailableError):
        await Database(first, Refusing(URL.parse("memory://"))).open()
    assert first._is_open is False
    with pytest.raises(ConfigurationError, match="missing"):
        async with connect("memory://", state_url=f"sqlite:///{tmp_path}/missing/b.db"):
            pass


async def test_both_stores_are_closed() -> None:
    """Where one fails to close, the other is closed all the same, and the error is raised."""

    class Stubborn(MemoryDriver):
        async def close(self) -> None:
            raise UnavailableError("no")

    for place in (0, 1):
        engines = [memory(), memory()]
        engines[place] = Stubborn(URL.parse("memory://"))
        database = Database(*engines)
        await database.open()
        with pytest.raises(UnavailableError):
            await database.close()
        assert engines[1 - place]._is_open is False


async def test_one_store_for_both() -> None:
    """Without a second store, the first has the state, and is opened and closed once."""
    opened: list[str] = []

    class Counting(MemoryDriver):
        async def open(self) -> None:
            opened.append("open")
            await super().open()

        async def close(self) -> None:
            opened.append("close")
            await super().close()

    database = Database(Counting(URL.parse("memory://")))
    await database.open()
    await database.state.session("s").put("k", 1)
    assert len((await database.health()).engines) == 1
    await database.close()
    assert opened == ["open", "close"]


@pytest.mark.parametrize("seconds", [0, -1, True, None, "5", float("nan"), float("inf"), 10**9])
@pytest.mark.parametrize("which", ["connect", "attempt", "operation"])
async def test_bad_timeouts(which: str, seconds: Any) -> None:  # noqa: ANN401
    """A timeout that is no number of seconds is refused by name, before anything is opened."""
    with pytest.raises(ConfigurationError, match=f"{which}_timeout is"):
        db("memory://", **{f"{which}_timeout": seconds})
    with pytest.raises(ConfigurationError, match=f"{which}_timeout is"):
        async with connect("memory://", **{f"{which}_timeout": seconds}):
            pass
