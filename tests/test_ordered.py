"""A driver over an engine with ordered keys: nothing but `transact` is the engine's."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import inspect
import json
import random
import re
import time
import typing
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from operator import methodcaller
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, TypeVar

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import agentstore.driver
from agentstore import registry, stores
from agentstore.driver import (
    TOMBSTONE_AGE,
    OrderedDriver,
    Transaction,
    _clock,
    encode_cursor,
    from_micros,
)
from agentstore.driver._operation import one_operation
from agentstore.errors import ClosedError, ConflictError, DataError, StoreError, UnsupportedError
from agentstore.memory import MemoryDriver
from agentstore.stores import ConversationStore, Driver, StateStore
from agentstore.testing import StoreTests
from agentstore.testing.suite._base import examples
from agentstore.types import Capabilities, Durability, Message, Scope
from agentstore.url import URL

T = TypeVar("T")

APP = Scope("app")
MINUTE = 60.0


class Tree:
    """Keys in order with their values: all that an engine keeps."""

    def __init__(self, other: Tree | None = None) -> None:
        self.keys: list[bytes] = list(other.keys) if other else []
        self.values: dict[bytes, bytes] = dict(other.values) if other else {}

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class StrictTransaction:
    """A transaction that counts what is done, and fails where more is asked than is promised."""

    def __init__(self, tree: Tree, counts: Counter[str], *, keep: bool) -> None:
        self._tree = tree
        self._counts = counts
        self._keep = keep
        self.has_written = False

    def get(self, key: bytes) -> bytes | None:
        self._check_read(key)
        self._counts["get"] += 1
        return self._tree.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._check_write(key)
        if self._keep:
            self._tree.put(key, value)

    def delete(self, key: bytes) -> None:
        self._check_write(key)
        if self._keep:
            self._tree.delete(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self._check_read(start, stop)
        assert start < stop
        keys = self._tree.keys
        low, high = bisect_left(keys, start), bisect_left(keys, stop)
        for place in reversed(range(low, high)) if reverse else range(low, high):
            self._check_read(keys[place])
            self._counts["scanned"] += 1
            yield keys[place], self._tree.values[keys[place]]

    def _check_read(self, *keys: bytes) -> None:
        assert not self.has_written
        assert all(0 < len(key) <= 511 for key in keys)

    def _check_write(self, key: bytes) -> None:
        assert 0 < len(key) <= 511
        self._counts["written"] += 1
        self.has_written = True


class TreeDriver(OrderedDriver):
    """The least that a subclass can be; all work runs twice, as after a conflict."""

    capabilities = Capabilities(
        atomic_batch=True,
        conflict_detection=True,
        compare_and_set=True,
        ttl=True,
        order="commit",
        listing="exact",
        search=False,
        shared=False,
        invalidation=False,
        durability="none",
        embedded=True,
    )

    def __init__(self, url: URL) -> None:
        self.url = url
        self.tree = Tree()
        self.counts: Counter[str] = Counter()
        self._is_open = False

    async def copy(self) -> TreeDriver:
        copy = TreeDriver(self.url)
        copy.tree = Tree(self.tree)
        await copy.open()
        return copy

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False

    async def ping(self) -> None:
        if not self._is_open:
            raise ClosedError("the store is closed")

    async def transact(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        await self.ping()
        work(StrictTransaction(self.tree, Counter(), keep=False))
        self.counts = Counter(transactions=1)
        tx = StrictTransaction(self.tree, self.counts, keep=True)
        try:
            result = work(tx)
        except BaseException:
            assert not tx.has_written
            raise
        assert write or not tx.has_written
        return result


class TestConformance(StoreTests):
    """An ordered engine passes the conformance kit."""

    @pytest.fixture
    def database_url(self, monkeypatch: pytest.MonkeyPatch) -> str:
        entry = SimpleNamespace(name="tree", value="tree", dist=None, load=lambda: TreeDriver)
        monkeypatch.setattr(registry, "entry_points", lambda **_: (entry,))
        return "tree://"


PAGE = Path(__file__).parents[1] / "docs" / "drivers.md"


def shown(line: str) -> str:
    """Find the block of code on the page that has this line."""
    blocks: list[str] = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if line in block.splitlines()]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the driver of the page, for this process and for those that it starts."""
    site = tmp_path_factory.mktemp("site")
    (site / "agentstore_table.py").write_text(shown("class TableDriver(OrderedDriver):"))
    info = site / "agentstore_table-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: agentstore-table\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\ntable = agentstore_table:TableDriver\n"
    )
    return site


class TestThePage(StoreTests):
    """The driver that docs/drivers.md shows passes the conformance kit."""

    @pytest.fixture
    def database_url(self, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.syspath_prepend(installed)
        return f"table:///{tmp_path}/agents.db"


@pytest.mark.parametrize(
    ("line", "module", "names"),
    [
        ("class Driver(Protocol):", stores, ["Driver", "ConversationStore", "StateStore"]),
        ("class Transaction(Protocol):", agentstore.driver, ["Transaction"]),
        ("class OrderedDriver(ABC):", agentstore.driver, ["OrderedDriver"]),
    ],
)
def test_the_page_shows_the_protocols(line: str, module: ModuleType, names: list[str]) -> None:
    """Each method that docs/drivers.md declares is there, with that signature."""
    page = vars(typing) | vars(abc) | vars(agentstore.types)
    exec("from __future__ import annotations\n" + shown(line), page)  # noqa: S102
    for name in names:
        declared = inspect.getmembers(page[name], inspect.isfunction)
        methods = {method: inspect.signature(value) for method, value in declared}
        methods = {method: value for method, value in methods.items() if method[0] != "_"}
        real = getattr(module, name)
        assert methods == {method: inspect.signature(getattr(real, method)) for method in methods}
        assert methods


class Clock:
    """The time of this machine, as a test wants it."""

    def __init__(self) -> None:
        self.micros = 1_800_000_000_000_000

    def time_ns(self) -> int:
        return self.micros * 1_000

    def advance(self, seconds: float) -> None:
        self.micros += round(seconds * 1_000_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_clock, "time", clock)
    return clock


@pytest_asyncio.fixture
async def driver() -> TreeDriver:
    driver = TreeDriver(URL.parse("tree://"))
    await driver.open()
    return driver


def say(text: str, **fields: Any) -> Message:
    return Message(role="user", content=text, **fields)


async def listed(store: ConversationStore, **how: Any) -> list[str]:
    """Page through all sessions, three at a time."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.sessions(limit=3, cursor=cursor, **how)
        found += [session.session_id for session in page]
        if (cursor := page.cursor) is None:
            return found


# Ids of up to 512 bytes which only their last ones tell apart, wherever a key may be cut.
LONG_IDS = sorted(
    {
        (stem * 512).encode()[:size].decode(errors="ignore") + tail
        for stem in ("x", "é", "日")
        for size in (3, 254, 255, 256, 270, 271, 272, 273, 500, 510, 511)
        for tail in ("", "\x01", "~")
    },
    key=str.encode,
)


@pytest.mark.asyncio
async def test_ids_sort_by_their_bytes_at_any_length(driver: TreeDriver) -> None:
    """Sessions come in the order of their ids' UTF-8 bytes, page by page, under any prefix."""
    store = driver.conversations("")
    for session_id in random.Random(1).sample(LONG_IDS, len(LONG_IDS)):
        await store.append(session_id, [say("hi")], user_id="ann")

    for prefix in ("", "x", "x" * 255, "x" * 272, "x" * 510, "é" * 136, "日" * 91, "y"):
        wanted = [one for one in LONG_IDS if one.startswith(prefix)]
        assert await listed(store, prefix=prefix) == wanted
        assert await listed(store, prefix=prefix, user_id="ann") == wanted


@pytest.mark.asyncio
async def test_long_ids_come_and_go_by_themselves(driver: TreeDriver) -> None:
    """A session leaves the listings without those whose ids begin as its own does."""
    store = driver.conversations("")
    for session_id in LONG_IDS:
        await store.append(session_id, [say("hi")])
    for place, session_id in enumerate(LONG_IDS):
        assert await store.delete(session_id)
        assert await listed(store, prefix="") == LONG_IDS[place + 1 :]


@pytest.mark.asyncio
async def test_ties_of_time_are_broken_by_id(driver: TreeDriver, clock: Clock) -> None:
    """The newest sessions come first, and those of one moment by their ids."""
    store = driver.conversations("")
    for session_id in reversed(LONG_IDS):
        await store.append(session_id, [say("hi")])
    clock.advance(1)
    await store.append("newest", [say("hi")])

    assert await listed(store) == ["newest", *LONG_IDS]


@pytest.mark.asyncio
async def test_keys_of_state_sort_by_their_bytes(driver: TreeDriver) -> None:
    """Values of state come in the order of their keys' UTF-8 bytes, page by page."""
    state = driver.state("", APP)
    for key in reversed(LONG_IDS):
        await state.put(key, None)

    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await state.items(prefix="x", limit=7, cursor=cursor)
        found += [item.key for item in page]
        if (cursor := page.cursor) is None:
            break
    assert found == [key for key in LONG_IDS if key.startswith("x")]


@pytest.mark.asyncio
async def test_the_longest_ids_fit(driver: TreeDriver) -> None:
    """No key is longer than the 511 bytes that are promised, whatever the ids."""
    longest = "日" * 170 + "xx"
    store, state = driver.conversations(longest), driver.state(longest, Scope("user", longest))
    await store.append(longest, [say("hi", id=longest)], user_id=longest, agent=longest, ttl=MINUTE)
    await state.put(longest, "value", ttl=MINUTE)

    assert [one.session_id for one in await store.sessions(user_id=longest)] == [longest]
    assert max(map(len, driver.tree.keys)) == 305


@pytest.mark.asyncio
@pytest.mark.parametrize("touched", [-(2**70), -1, 2**63, 2**70])
async def test_a_made_up_cursor_does_no_harm(driver: TreeDriver, touched: int) -> None:
    """A cursor that no listing gave is a place like any other, or a DataError."""
    store = driver.conversations("")
    await store.append("s" * 512, [say("hi")])
    for cursor in (encode_cursor(touched, "s" * 5_000), encode_cursor("s" * 5_000), "?"):
        for prefix in (None, "s"):
            with contextlib.suppress(DataError):
                assert len(await store.sessions(cursor=cursor, prefix=prefix)) <= 1


async def grown(size: int) -> TreeDriver:
    """Make a store of `size` messages, sessions and values of state; three of each expire."""
    driver = TreeDriver(URL.parse("tree://"))
    await driver.open()
    store, state = driver.conversations(""), driver.state("", APP)
    for start in range(0, size, 1_000):
        places = range(start, min(size, start + 1_000))
        await store.append("big", [say("hi", id=f"m{place}") for place in places])
    for place in range(size):
        ttl = MINUTE if place < 3 else None
        await store.append(f"s{place:05}", [say("hi")], user_id="ann", ttl=ttl)
        await state.put(f"k{place:05}", place, ttl=ttl)
    return driver


@pytest.fixture(scope="module")
def sizes() -> list[tuple[int, TreeDriver]]:
    return [(size, asyncio.run(grown(size))) for size in (10, 10_000)]


def operations(size: int) -> dict[str, methodcaller]:
    """List what can be done with a store of that size."""
    return {
        "append": methodcaller("append", "big", [say("more")]),
        "append a repeat": methodcaller("append", "big", [say("hi", id="m3")]),
        "append where expected": methodcaller("append", "big", [say("hi")], expect_seq=size),
        "append to a new session": methodcaller("append", "new", [say("hi")], user_id="ann"),
        "read the oldest": methodcaller("read", "big", first=5),
        "read behind": methodcaller("read", "big", first=2, after=7),
        "read in front": methodcaller("read", "big", last=2, before=7),
        "read a window": methodcaller("read", "big", last=2),
        "read a budget": methodcaller("read", "big", last=2, max_tokens=5),
        "get": methodcaller("get", "big"),
        "update": methodcaller("update", "s00005", title="five", ttl=MINUTE),
        "newest sessions": methodcaller("sessions", limit=5),
        "newest sessions of a user": methodcaller("sessions", limit=5, user_id="ann"),
        "sessions by id": methodcaller("sessions", limit=5, prefix="s", user_id="ann"),
        "replace": methodcaller("replace", "big", "m3", content="gone"),
        "rewind": methodcaller("rewind", "big", to=size - 3),
        "fork the beginning": methodcaller("fork", "big", "copy", upto=4),
        "delete": methodcaller("delete", "s00005"),
        "state.get": methodcaller("get", "k00005"),
        "state.put": methodcaller("put", "k00005", "other"),
        "state.put of a new value": methodcaller("put", "new", "value"),
        "state.delete": methodcaller("delete", "k00005"),
        "state.items": methodcaller("items", limit=5),
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("name", operations(0))
async def test_cost_is_independent_of_size(sizes: list[tuple[int, TreeDriver]], name: str) -> None:
    """An operation costs the same at 10 messages, sessions and values as at 10,000 of each."""
    costs = []
    for size, full in sizes:
        driver = await full.copy()
        store = driver.state("", APP) if name.startswith("state.") else driver.conversations("")
        await operations(size)[name](store)
        costs.append(driver.counts)
    small, large = costs
    assert small == large
    assert small.total() < 50


@pytest.mark.asyncio
async def test_a_purge_costs_what_it_purges(
    sizes: list[tuple[int, TreeDriver]], clock: Clock
) -> None:
    """To purge three sessions and three values costs the same among 10 as among 10,000."""
    costs = []
    for _, full in sizes:
        driver = await full.copy()
        clock.micros = time.time_ns() // 1_000
        clock.advance(MINUTE)
        assert await driver.conversations("").purge_expired() == 6
        costs.append(driver.counts)
    assert costs[0] == costs[1]


@pytest.mark.asyncio
async def test_an_append_moves_nothing_within_a_minute(driver: TreeDriver, clock: Clock) -> None:
    """Only the message, its id and the session's record are written; later its place, too."""
    store = driver.conversations("")
    await store.append("s", [say("one")], user_id="ann", ttl=3 * MINUTE)
    clock.advance(MINUTE - 1)
    await store.append("s", [say("two")])
    assert driver.counts["written"] == 3
    clock.advance(1)
    await store.append("s", [say("three")])
    assert driver.counts["written"] == 3 + 2 * 2


@pytest.mark.asyncio
async def test_nothing_is_left_behind(driver: TreeDriver, clock: Clock) -> None:
    """What is deleted or has expired leaves no key behind but the counter of versions."""
    store, state = driver.conversations(""), driver.state("", Scope("user", "ann"))
    for session_id in LONG_IDS:
        await store.append(session_id, [say("one"), say("two")], user_id="ann", ttl=3 * MINUTE)
        await store.update(session_id, ttl=MINUTE)
        await state.put(session_id, "value", ttl=MINUTE)
        await state.put(session_id, "other", ttl=2 * MINUTE)
        clock.advance(0.1)
    await store.rewind(LONG_IDS[0], to=1)
    await store.fork(LONG_IDS[0], "copy")
    await store.append("deleted", [say("one")])
    await store.delete("deleted")
    await store.append("deleted", [say("anew")], ttl=MINUTE)
    await state.put("deleted", "value")
    await state.delete("deleted")

    clock.advance(3 * MINUTE)
    purged = 0
    while done := await store.purge_expired(limit=10):
        purged += done
    assert purged == 2 * len(LONG_IDS) + 2
    assert {key[:1] for key in driver.tree.keys} == {b"s", b"g", b"c"}

    clock.advance(TOMBSTONE_AGE / 1_000_000)
    while any(key.startswith(b"g") for key in driver.tree.keys):
        assert await store.purge_expired(limit=10) == 0
    assert [key[:1] for key in driver.tree.keys] == [b"c"]


@pytest.mark.asyncio
async def test_tombstones_hide_no_work_from_a_purge(driver: TreeDriver, clock: Clock) -> None:
    """A purge that removes old tombstones, too, goes on until nothing expired is left."""
    store = driver.conversations("")
    for place in range(5):
        await store.append(f"grave {place}", [say("hi")])
        await store.delete(f"grave {place}")
    clock.advance(TOMBSTONE_AGE / 1_000_000)
    await store.append("s", [say("hi")], ttl=MINUTE)
    clock.advance(MINUTE)

    assert await store.purge_expired(limit=2) == 1


@pytest.mark.asyncio
async def test_a_conflict_writes_nothing(driver: TreeDriver) -> None:
    """A batch of which one message conflicts leaves every key as it was."""
    store = driver.conversations("")
    await store.append("s", [say("one", id="m1")])
    before = dict(driver.tree.values)
    with pytest.raises(ConflictError):
        await store.append("s", [say("two"), say("three"), say("other", id="m1")], ttl=MINUTE)
    assert driver.tree.values == before


@pytest.mark.asyncio
async def test_an_expired_session_begins_anew(driver: TreeDriver, clock: Clock) -> None:
    """What had expired is gone with the next append, and `seq` goes on above it."""
    store = driver.conversations("")
    await store.append("s", [say("one", id="m1"), say("two")], user_id="ann", ttl=MINUTE)
    clock.advance(MINUTE)
    result = await store.append("s", [say("other", id="m1")], user_id="bob", expect_seq=0)

    assert (result.seqs, result.created) == ((3,), (True,))
    assert [message.text for message in await store.read("s")] == ["other"]
    assert await listed(store, user_id="ann") == []
    assert await listed(store, user_id="bob") == ["s"]


@pytest.mark.asyncio
async def test_a_fork_goes_on_above_a_tombstone(driver: TreeDriver) -> None:
    """A session forked to an id that was deleted never gives a `seq` again."""
    store = driver.conversations("")
    await store.append("copy", [say("one"), say("two"), say("three")])
    await store.delete("copy")
    await store.append("s", [say("one")])
    await store.fork("s", "copy")

    assert (await store.append("copy", [say("more")])).seqs == (4,)


@pytest.mark.asyncio
async def test_a_repeated_call_recognises_its_own_write(driver: TreeDriver) -> None:
    """Calls that are made again after a lost answer answer as they did, and write nothing."""
    store, state = driver.conversations(""), driver.state("", APP)
    await store.append("s", [say("one"), say("two"), say("three")])
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.rewind("s", to=1),
        lambda: store.fork("s", "copy"),
        lambda: store.delete("s"),
        lambda: state.put("k", "value", expect=0),
    ]
    for call in calls:
        with one_operation():
            first = await call()
            written = dict(driver.tree.values)
            assert await call() == first
        assert driver.tree.values == written


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("durability", "answer"),
    [
        ("strong", Durability.COMMITTED),
        ("weak", Durability.COMMITTED),
        ("none", Durability.BUFFERED),
    ],
)
async def test_an_append_is_as_durable_as_the_engine(
    driver: TreeDriver, durability: Literal["strong", "weak", "none"], answer: Durability
) -> None:
    """An append is committed, but for an engine that keeps nothing."""
    driver.capabilities = structs.replace(driver.capabilities, durability=durability)
    result = await driver.conversations("").append("s", [say("hi")])
    assert result.durability is answer


@pytest.mark.asyncio
async def test_values_can_be_read_by_a_person(driver: TreeDriver) -> None:
    """Every value is JSON, the text of messages and state included."""
    await driver.conversations("").append("s", [say("hello")], user_id="ann")
    await driver.state("", APP).put("k", {"deep": ["value"]})

    stored = [json.loads(value) for value in driver.tree.values.values()]
    records = [one for one in stored if isinstance(one, dict)]
    assert {"deep": ["value"]} in [record.get("value") for record in records]
    assert {"role": "user", "content": "hello"} in [
        json.loads(record["body"]) for record in records if "body" in record
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("space", "name", "call"),
    [
        (b"s", "Record", lambda store, _: store.get("s")),
        (b"m", "Row", lambda store, _: store.read("s")),
        (b"i", "tuple", lambda store, _: store.append("s", [say("hi", id="m")])),
        (b"v", "Value", lambda _, state: state.get("k")),
    ],
)
async def test_damage_is_an_error(
    driver: TreeDriver,
    space: bytes,
    name: str,
    call: Callable[[ConversationStore, StateStore], Awaitable[object]],
) -> None:
    """A stored value that can't be read is a DataError and not an absent one."""
    store, state = driver.conversations(""), driver.state("", APP)
    await store.append("s", [say("hi", id="m")])
    await state.put("k", "value")
    for key in driver.tree.keys:
        if key.startswith(space):
            driver.tree.values[key] = b'{"half'
    with pytest.raises(DataError, match=f"stored {name} is damaged"):
        await call(store, state)


@pytest.mark.asyncio
async def test_there_is_no_search(driver: TreeDriver) -> None:
    """A search is refused, as the capabilities say."""
    with pytest.raises(UnsupportedError):
        await driver.conversations("").search("word")


# Few ids, so that they meet; long ones, so that keys are cut.
IDS = ["a", "x" * 512, "x" * 500 + "é", "free"]
SESSIONS = st.sampled_from(IDS)
USERS = st.sampled_from([None, None, "ann", "bob"])
TTLS = st.sampled_from([None, None, 1.0, 90.0])
BOUNDS = st.none() | st.integers(0, 8)
COUNTS = st.none() | st.integers(1, 4)
MESSAGES = st.lists(
    st.builds(
        lambda number, text, moment: say(text, id=f"m{number}", created_at=from_micros(moment)),
        st.integers(0, 30),
        st.sampled_from(["one", "one", "one", "two"]),
        st.just(0),
    ),
    min_size=1,
    max_size=4,
)


def call(store: str, method: str, *args: Any, **kwargs: Any) -> st.SearchStrategy[Any]:
    given = st.tuples(*args), st.fixed_dictionaries(kwargs)
    return st.tuples(st.just(store), st.just(method), *given)


CALLS = st.one_of(
    call("", "append", SESSIONS, MESSAGES, user_id=USERS, ttl=TTLS),
    call("", "append", SESSIONS, MESSAGES, expect_seq=st.integers(0, 4)),
    call("", "read", SESSIONS, first=COUNTS, after=BOUNDS, before=BOUNDS, user_id=USERS),
    call("", "read", SESSIONS, last=COUNTS, after=BOUNDS, before=BOUNDS),
    call("", "get", SESSIONS, user_id=USERS),
    call("", "update", SESSIONS, title=st.sampled_from([None, "title"]), ttl=TTLS),
    call(
        "",
        "sessions",
        user_id=USERS,
        prefix=st.sampled_from([None, "", "x"]),
        limit=st.integers(1, 3),
    ),
    call("", "replace", SESSIONS, st.just("m1"), content=st.just("gone")),
    call("", "rewind", SESSIONS, to=st.integers(0, 4)),
    call("", "fork", SESSIONS, SESSIONS, upto=BOUNDS),
    call("", "delete", SESSIONS),
    call("", "purge_expired"),
    call("state", "get", SESSIONS),
    call("state", "put", SESSIONS, st.integers(0, 2), expect=BOUNDS, ttl=TTLS),
    call("state", "delete", SESSIONS, expect=BOUNDS),
    call("state", "items", prefix=st.sampled_from([None, "x"]), limit=st.integers(1, 3)),
    call("clock", "advance", st.sampled_from([0.5, 1.0, 61.0, 25 * 3600.0])),
)

BEGINNING: list[Any] = [
    ("", "append", (session_id, [say("one", id=f"m{n}") for n in range(6)]), {"user_id": user})
    for session_id, user in zip(IDS[:3], [None, "ann", "ann"], strict=True)
] + [("state", "put", (key, "one"), {}) for key in IDS]


async def outcome(driver: Driver, store: str, method: str, *args: Any, **kwargs: Any) -> object:
    target: Any = driver.state("", APP) if store == "state" else driver.conversations("")
    try:
        answer = await getattr(target, method)(*args, **kwargs)
    except StoreError as error:
        return type(error)
    return (list(answer), getattr(answer, "cursor", "")) if hasattr(answer, "__iter__") else answer


@given(calls=st.lists(CALLS, min_size=10, max_size=40))
@examples(100)
def test_it_does_what_memory_does(clock: Clock, calls: list[Any]) -> None:
    """Whatever is called in whatever order, the answers are those of the memory driver."""

    async def compare() -> None:
        tree, memory = TreeDriver(URL.parse("tree://")), MemoryDriver(URL.parse("memory://"))
        await tree.open()
        await memory.open()
        for store, method, args, kwargs in BEGINNING + calls:
            if store == "clock":
                clock.advance(*args)
                continue
            wanted = await outcome(memory, store, method, *args, **kwargs)
            assert await outcome(tree, store, method, *args, **kwargs) == wanted, method

    asyncio.run(compare())
