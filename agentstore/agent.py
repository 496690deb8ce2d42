"""An agent: a model, its tools, and a conversation that is stored as it happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from . import _validate as check
from ._ids import uuid7
from ._portal import _MORE, _pump, portal
from .database import Database
from .errors import AgentStoreError, ConfigurationError
from .exchanges import answerable, sendable
from .hosted import db as make_database
from .models import Completion, ModelLike, resolve
from .state import State
from .tools import answer, toolset
from .types import Durability, Message, Reply, Usage

__all__ = ["Agent", "AsyncReplyStream", "ReplyStream", "Tokens"]

T = TypeVar("T")

_LONGEST_STORE = 20.0
"""Seconds that storing what a model or a tool said may take beyond a cancellation."""

_FORWARD = 100

_logger = logging.getLogger("agentstore")


class Tokens(msgspec.Struct, frozen=True):
    """As much history as fits into this many tokens."""

    budget: int


class Agent:
    """A conversation with a model, in a database.

    Each message is stored before the next step is taken: the user's before the model is called,
    calls of tools before the tools, results before the model sees them.
    So whatever breaks off, the session can be resumed, by this process or by another.

    `llm` is a function over messages, the name of a model, or `"offline"` (see `models.resolve`);
    `tools` are Python functions (see `tools.tool`).
    `history` says how much of the conversation the model sees: the last messages, or `Tokens`.
    Without a `db` the conversation lives in memory; without a `session_id` it is a new one.

    Turns of one session come one after the other within a process; a tool that asks its own session
    is told that it would wait for itself.
    The agent never closes a database that was handed to it.
    """

    def __init__(
        self,
        *,
        name: str = "Agent",
        instructions: str = "",
        llm: ModelLike = None,
        tools: Iterable[Callable[..., Any]] = (),
        db: Database | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        history: int | Tokens = 50,
        max_rounds: int = 20,
    ) -> None:
        self.name = check.identifier(name, "name")
        self.instructions = instructions
        self.session_id = (
            uuid7() if session_id is None else check.identifier(session_id, "session_id")
        )
        self.user_id = check.optional_identifier(user_id, "user_id")
        self._model = resolve(llm)
        self._tools = toolset(tools)
        if not isinstance(db, Database | None):
            raise ConfigurationError(f"db is {type(db).__name__}: make it with db() or connect()")
        self._db = db or make_database("memory://")
        self._window = _window(history)
        self._rounds = check.count(max_rounds, "max_rounds")

    @property
    def state(self) -> State:
        """The state of this agent's session."""
        return self._db.state.session(self.session_id)

    async def achat(self, text: str | list[Any], *, message_id: str | None = None) -> Reply:
        """Say something, and wait for the answer.

        `text` may be a list of content parts.
        Under the same `message_id` a repeated call returns the stored answer and asks no model;
        where the first one broke off before there was an answer, it goes on from there.

        What the model or a store raises is raised; the user's message is stored by then.
        """
        async with aclosing(self._turn(text, message_id, stream=False)) as turn:
            async for item in turn:
                if isinstance(item, Reply):
                    return item
        raise AssertionError("a turn ends with its reply")

    def chat(self, text: str | list[Any], *, message_id: str | None = None) -> Reply:
        """Say something, and block until the answer is there; see `achat`."""
        self._db.require_blocking("chat()")
        return portal().run(self.achat, text, message_id=message_id)

    def astream(self, text: str | list[Any], *, message_id: str | None = None) -> AsyncReplyStream:
        """Say something, and take the answer piece by piece.

        What came by the time the stream is closed, cancelled or broken is stored, with
        `{"partial": true}` in its metadata.
        """
        return AsyncReplyStream(_in_a_task(self._turn(text, message_id, stream=True)))

    def stream(self, text: str | list[Any], *, message_id: str | None = None) -> ReplyStream:
        """Say something, and take the answer piece by piece, blocking for each; see `astream`."""
        self._db.require_blocking("stream()")
        return ReplyStream(portal().iterate(self._turn, text, message_id, stream=True))

    async def _turn(
        self, text: str | list[Any], message_id: str | None, *, stream: bool
    ) -> AsyncGenerator[str | Reply, None]:
        """Yield pieces of the answer, if `stream`, and at the end the `Reply`."""
        question = Message(
            role="user", content=text, id=uuid7() if message_id is None else message_id
        )
        turn = _Turn(self._db, self.session_id, self.user_id, self.name, question)
        async with self._db.turn(self.session_id):
            fresh = await turn.store(question)
            stored = None if fresh else await turn.stored_answer()
            if stored is not None:
                yield stored
                yield turn.reply(stored)
                return
            said = await turn.history(fresh=fresh, **self._window)
            for _ in range(self._rounds):
                completion: Completion | None = None
                async with aclosing(self._ask(turn, said, stream=stream)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, str):
                            yield piece
                        else:
                            completion = piece
                if completion is None:
                    raise ConfigurationError("the model ended its answer without a Completion")
                calls = completion.message.get("tool_calls")
                if not calls:
                    yield turn.reply(completion.text)
                    return
                results = await asyncio.gather(*(answer(self._tools, call) for call in calls))
                answers = [Message.from_openai(result) for result in results]
                await turn.keep(*answers)
                said += [Message.from_openai(completion.message), *answers]
        raise ConfigurationError(
            f"the model asked for tools {self._rounds} times in one turn: "
            "raise max_rounds, or look at what the tools answer"
        )

    async def _ask(
        self, turn: _Turn, said: list[Message], *, stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        """Ask the model once, and store what it answers, even where it is broken off."""
        schemas = [tool.schema for tool in self._tools.values()]
        messages = sendable(said)
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        came = ""
        try:
            async with aclosing(
                self._model.respond(messages, tools=schemas, stream=stream)
            ) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        came += piece
                        yield piece
                        continue
                    completion = _answerable(piece)
                    # From here on it is whole, and is stored as such.
                    came = ""
                    await turn.keep_answer(completion)
                    yield completion
        finally:
            if came:
                await turn.keep_part(came)


class _Turn:
    """What one turn stores, and what its reply has to say of that."""

    def __init__(
        self,
        database: Database,
        session_id: str,
        user_id: str | None,
        agent: str,
        question: Message,
    ) -> None:
        self._conversations = database.conversations
        self._session_id = session_id
        self._user_id = user_id
        self._agent = agent
        self._question = question
        self._seq: int | None = None
        self._ids: list[str] = []
        self._durability = Durability.COMMITTED
        self._stale = False
        self._usage: Usage | None = None

    async def store(self, *messages: Message) -> bool:
        """Append messages of this turn; false where they were stored before."""
        marked = [self._marked(message) for message in messages]
        result = await self._conversations.append(
            self._session_id, marked, user_id=self._user_id, agent=self._agent
        )
        self._ids += [message.id for message in marked]
        self._durability = min(self._durability, result.durability)
        if self._seq is None:
            self._seq = result.seqs[0]
        return all(result.created)

    async def keep(self, *messages: Message) -> None:
        """Append what took its time to come about, though the task be cancelled meanwhile."""
        storing = asyncio.ensure_future(self.store(*messages))
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            storing.add_done_callback(_log_failure)
            await asyncio.wait((storing,), timeout=_LONGEST_STORE)
            raise
        finally:
            del storing  # or an error, its traceback and its task keep each other alive

    async def keep_answer(self, completion: Completion) -> None:
        """Append what the model answered."""
        usage = completion.usage
        if usage is not None:
            self._usage = usage + (self._usage or Usage())
        await self.keep(
            Message.from_openai(completion.message, tokens=usage.output_tokens if usage else None)
        )

    async def keep_part(self, came: str) -> None:
        """Append the part of an answer that came; what broke it off is the error to raise."""
        try:
            await self.keep(Message(role="assistant", content=came, metadata={"partial": True}))
        except AgentStoreError as error:
            _log_unstored(error)

    async def history(self, *, fresh: bool, **window: int | None) -> list[Message]:
        """Read what the model is to see, which ends with what it is to answer."""
        history = await self._conversations.read(self._session_id, user_id=self._user_id, **window)
        self._stale = history.stale
        said = list(history)
        places = [place for place, one in enumerate(said) if one.id == self._question.id]
        if fresh and places:
            # What another process said since is for a turn of its own.
            return said[: places[0] + 1]
        if not said or not self._goes_on_from(said[-1]):
            # It is asked again, and others have spoken since: it comes last now.
            said.append(self._question)
        return said

    async def stored_answer(self) -> str | None:
        """Find the whole answer to a question that was asked before."""
        after = self._seq
        while True:
            page = await self._conversations.read(
                self._session_id, after=after, first=_FORWARD, user_id=self._user_id
            )
            for message in page:
                if (
                    message.role == "assistant"
                    and self._goes_on_from(message)
                    and not message.tool_calls
                ):
                    self._ids.append(message.id)
                    return Completion(message=message.to_openai()).text
            if len(page) < _FORWARD:
                return None
            after = page[-1].seq

    def reply(self, text: str) -> Reply:
        """Say how it went."""
        return Reply(
            text,
            session_id=self._session_id,
            message_ids=self._ids,
            durability=self._durability,
            stale=self._stale,
            usage=self._usage,
        )

    def _goes_on_from(self, message: Message) -> bool:
        """Tell whether a message is the question, or a whole step towards its answer."""
        mine = message.metadata.get("turn") == self._question.id
        return message.id == self._question.id or (mine and not message.metadata.get("partial"))

    def _marked(self, message: Message) -> Message:
        """Note on an answer which question it belongs to, for `_goes_on_from`."""
        if message is self._question:
            return message
        return msgspec.structs.replace(
            message, metadata={**message.metadata, "turn": self._question.id}
        )


class AsyncReplyStream:
    """An answer piece by piece; `reply` is there at the end.

    Close it, or use it as a context manager, where it may not be read to its end: the session's
    next turn waits for it.
    """

    def __init__(self, turn: AsyncGenerator[str | Reply, None]) -> None:
        self._turn = turn
        self._reply: Reply | None = None

    @property
    def reply(self) -> Reply:
        """The whole reply; `ConfigurationError` before the stream was read to its end."""
        return _ended(self._reply)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        piece = await anext(self._turn)
        while isinstance(piece, Reply):
            self._reply = piece
            piece = await anext(self._turn)
        return piece

    async def aclose(self) -> None:
        """Break the answer off; what came of it is stored."""
        await self._turn.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class ReplyStream:
    """An answer piece by piece, blocking for each; see `AsyncReplyStream`."""

    def __init__(self, turn: Generator[str | Reply, None, None]) -> None:
        self._turn = turn
        self._reply: Reply | None = None

    @property
    def reply(self) -> Reply:
        """The whole reply; `ConfigurationError` before the stream was read to its end."""
        return _ended(self._reply)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._turn)
        while isinstance(piece, Reply):
            self._reply = piece
            piece = next(self._turn)
        return piece

    def close(self) -> None:
        """Break the answer off; what came of it is stored."""
        self._turn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_streaming: set[asyncio.Task[None]] = set()


async def _in_a_task(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Iterate over a generator in a task of its own, which runs while an item is awaited.

    What is left half-read is closed by the garbage collector, or by the end of its loop. Both close
    a generator and those that it iterates over at once, so that one trips over the other; a task
    is cancelled, and they end one after the other, from the inside.
    """
    box: asyncio.Queue[tuple[T] | asyncio.Task[None]] = asyncio.Queue()
    wanted: asyncio.Queue[bool] = asyncio.Queue()
    task = asyncio.create_task(_pump(items, box.put_nowait, wanted))
    # Held here, or the garbage collector would find it and them together with the iterator.
    _streaming.add(task)
    task.add_done_callback(_streaming.discard)
    task.add_done_callback(box.put_nowait)
    try:
        while not isinstance(item := await box.get(), asyncio.Task):
            yield item[0]
            wanted.put_nowait(_MORE)
    except BaseException:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()
        raise
    try:
        item.result()
    finally:
        del task, item  # or an error, its traceback and its task keep each other alive


def _answerable(completion: Completion) -> Completion:
    calls = completion.message.get("tool_calls")
    if not calls:
        return completion
    message = {**completion.message, "tool_calls": answerable(calls)}
    return msgspec.structs.replace(completion, message=message)


def _log_failure(storing: asyncio.Task[bool]) -> None:
    if not storing.cancelled() and (error := storing.exception()) is not None:
        _log_unstored(error)


def _log_unstored(error: BaseException) -> None:
    # Errors of ours hold no text of a conversation; others may.
    shown = str(error) if isinstance(error, AgentStoreError) else type(error).__name__
    _logger.warning("an answer that was broken off could not be stored: %s", shown)


def _ended(reply: Reply | None) -> Reply:
    if reply is None:
        raise ConfigurationError("the reply is there when the stream has been read to its end")
    return reply


def _window(history: int | Tokens) -> dict[str, int | None]:
    if isinstance(history, Tokens):
        return {"max_tokens": check.count(history.budget, "history")}
    return {"last": check.count(history, "history")}
