"""Uses of the public API, for type checkers: nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from agentstore import (
    Agent,
    Database,
    Durability,
    History,
    Message,
    Page,
    Reply,
    Session,
    Tokens,
    Versioned,
    connect,
    db,
)
from agentstore.models import Completion, Model
from agentstore.stores import ConversationStore, Driver, StateStore
from agentstore.sync import SyncDatabase
from agentstore.types import (
    AppendResult,
    Capabilities,
    ErasureReceipt,
    Health,
    Hit,
    Limits,
    Scope,
    Usage,
)
from agentstore.url import URL
from agentstore.wrappers import Wrapper


def forecast(city: str, days: int = 3) -> list[str]:
    return [city] * days


def function(messages: list[dict[str, Any]]) -> str:
    return str(len(messages))


async def async_function(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Completion:
    return Completion(message={"role": "assistant", "content": ""}, usage=Usage())


def blocking() -> None:
    database: Database = db("sqlite:///a.db", state_url="memory://", tenant="t", timeout=3)
    agent = Agent(
        name="a",
        instructions="be brief",
        llm=function,
        tools=[forecast],
        db=database,
        session_id="s",
        user_id="u",
        history=Tokens(1000),
    )
    reply: Reply = agent.chat("hi", message_id="m")
    durability: Durability = reply.durability
    text: str = reply.upper()
    usage: Usage | None = reply.usage
    with agent.stream("hi") as stream:
        pieces: list[str] = list(stream)
        whole: Reply = stream.reply
    sync: SyncDatabase = database.sync
    page: Page[Session] = sync.conversations.sessions(prefix="")
    first: Session = page[0]
    more: str | None = page.cursor
    item: Versioned | None = sync.state.user("u").get("k")
    records: Iterator[dict[str, Any]] = sync.export_user("u")
    receipt: ErasureReceipt = sync.erase_user("u")
    print(durability, text, usage, pieces, whole, first, more, item, records, receipt)


async def asynchronous() -> None:
    async with connect("memory://", limits=Limits(batch=10), attempt_timeout=1) as database:
        conversations = database.conversations
        result: AppendResult = await conversations.append(
            "s", [Message(role="user", content="hi"), {"role": "assistant", "content": None}]
        )
        seqs: tuple[int | None, ...] = result.seqs
        history: History = await conversations.read("s", last=20)
        last: Message = history[-1]
        wire: list[dict[str, Any]] = [message.to_openai() for message in history]
        session: Session | None = await conversations.update("s", title=None, ttl=60)
        hits: list[Hit] = await conversations.search("words")
        count: int = await conversations.rewind("s", to=1)
        state = database.state.session("s")
        item: Versioned = await state.put("k", {"any": ["json"]}, expect=0, ttl=1.5)
        health: Health = await database.health()
        can: Capabilities = database.capabilities
        async with Agent(llm=async_function, db=database).astream([{"type": "text"}]) as stream:
            pieces: AsyncIterator[str] = stream
            async for piece in pieces:
                print(piece.strip())
        print(seqs, last, wire, session, hits, count, item, health.ok, can.order)


def protocols(driver: Driver, url: URL) -> Driver:
    store: ConversationStore = driver.conversations("tenant")
    state: StateStore = driver.state("tenant", Scope("user", "u"))
    wrapped: Driver = Wrapper(driver)
    database = Database(wrapped)
    store = database.conversations
    state = database.state.app()
    print(store, state, url)
    return wrapped


def models(model: Model) -> Agent:
    return Agent(llm=model, db=db(None))
