"""The values that go in and come out: frozen, and the same on every backend."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, Literal, Self, TypeVar, overload

import msgspec
from msgspec import UNSET, UnsetType

from ._ids import uuid7

__all__ = [
    "UNSET",
    "AppendResult",
    "Capabilities",
    "Durability",
    "EngineHealth",
    "ErasureReceipt",
    "Health",
    "History",
    "Hit",
    "Limits",
    "Message",
    "Page",
    "Reply",
    "Role",
    "Scope",
    "Session",
    "UnsetType",
    "Usage",
    "Versioned",
]

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]

T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation, in the shape of OpenAI's chat format.

    `content` is text, a list of parts, or `None`; a key that was absent is `UNSET`, which is not
    the same as `None`, and comes back absent.
    `extra` holds the keys that the format has and this class has not (`refusal`, `audio`, …).
    `tokens` is what the message costs a model, where the caller knows it.

    `id` is made here, before anything is sent: it is what makes a repeated append harmless.
    `seq` is the message's place in its session and is given by the store.
    """

    role: Role
    content: str | list[Any] | None | UnsetType = UNSET
    name: str | None | UnsetType = UNSET
    tool_calls: list[Any] | None | UnsetType = UNSET
    tool_call_id: str | None | UnsetType = UNSET
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    extra: dict[str, Any] = msgspec.field(default_factory=dict)
    id: str = msgspec.field(default_factory=uuid7)
    tokens: int | None = None
    created_at: datetime = msgspec.field(default_factory=_now)
    seq: int | None = None
    # SHA-256 of the body as the caller wrote it; filled in on the way down, above encryption.
    digest: bytes | None = None

    @classmethod
    def from_openai(cls, message: Mapping[str, Any], **fields: Any) -> Message:
        """Read a message of OpenAI's chat format; `fields` are ours (`id`, `metadata`, …)."""
        known = {key: message[key] for key in _FORMAT if key in message}
        extra = {key: value for key, value in message.items() if key not in _FORMAT}
        return cls(**known, extra=extra, **fields)

    def to_openai(self) -> dict[str, Any]:
        """Give the message as OpenAI's chat format has it, key for key as it came in."""
        shown = {key: getattr(self, key) for key in _FORMAT}
        return {key: value for key, value in shown.items() if value is not UNSET} | self.extra

    @property
    def text(self) -> str:
        """The words of the message: its content, or the text parts of it joined."""
        if isinstance(self.content, str):
            return self.content
        if not isinstance(self.content, list):
            return ""
        parts = (part for part in self.content if isinstance(part, dict))
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


_FORMAT = ("role", "content", "name", "tool_calls", "tool_call_id")


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a conversation without reading its messages.

    `message_count` is exact; `updated_at` may lag by up to a minute.
    """

    session_id: str
    tenant: str = ""
    user_id: str | None = None
    agent: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    message_count: int = 0


class _Items(Sequence[T]):
    """What `History` and `Page` have in common: they are sequences of their items."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[T]) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]


class History(_Items[Message]):
    """The messages that a read found, oldest first.

    `stale` is true when the backend could not be asked and this is what the process knows.
    `as_of` is when the backend was last asked, `pending` how many of these messages wait to be
    written to it.
    """

    __slots__ = ("as_of", "pending", "stale")

    def __init__(
        self,
        messages: Sequence[Message],
        *,
        stale: bool = False,
        as_of: datetime | None = None,
        pending: int = 0,
    ) -> None:
        super().__init__(messages)
        self.stale = stale
        self.as_of = as_of or _now()
        self.pending = pending

    def __repr__(self) -> str:
        return f"<History of {len(self)} messages, stale={self.stale}, pending={self.pending}>"


class Page(_Items[T], Generic[T]):
    """One page of a listing; `cursor` asks for the next one and is `None` on the last."""

    __slots__ = ("cursor",)

    def __init__(self, items: Sequence[T], *, cursor: str | None = None) -> None:
        super().__init__(items)
        self.cursor = cursor

    def __repr__(self) -> str:
        return f"<Page of {len(self)} items, cursor={self.cursor!r}>"


class Durability(enum.IntEnum):
    """How safe an acknowledged write is; `min()` of several is the weakest."""

    BUFFERED = 0
    """In memory, gone with the process."""
    JOURNALED = 1
    """On this machine's disk, and will be replayed to the backend."""
    COMMITTED = 2
    """In the backend, with the durability that the backend has."""


class AppendResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an append: one `seq` and one `created` for each message, in order.

    `created` is false for a message that was stored before under the same id.
    A `seq` is `None` while the message waits to be written to its backend.
    """

    seqs: tuple[int | None, ...]
    created: tuple[bool, ...]
    durability: Durability = Durability.COMMITTED


class Versioned(msgspec.Struct, frozen=True, kw_only=True):
    """A value of state with its version, which never comes again for the key."""

    key: str
    value: Any
    version: int


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a search found; a higher `score` is a better match."""

    session_id: str
    message: Message
    score: float


class Scope(msgspec.Struct, frozen=True):
    """Whose state it is: the application's, a user's or a session's."""

    kind: Literal["app", "user", "session"]
    owner: str = ""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The largest values that are taken; sizes are bytes of UTF-8 JSON."""

    message: int = 1024 * 1024
    state: int = 1024 * 1024
    metadata: int = 16 * 1024
    depth: int = 64
    batch: int = 1_000
    page: int = 1_000


MOST = Limits(message=2**30, state=2**30, metadata=2**30, depth=400, batch=100_000, page=100_000)
"""What no engine has to exceed; a depth of more would exhaust the stack of Python."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can do, as a value that wrappers pass on.

    What is declared absent here raises `UnsupportedError` when it is called.
    """

    atomic_batch: bool
    """An append of several messages is stored whole or not at all."""
    conflict_detection: bool
    """An id that comes again with another body, and a wrong `expect_seq`, are refused."""
    compare_and_set: bool
    """`put` and `delete` of state honour `expect`."""
    ttl: bool
    """Sessions and state can expire."""
    order: Literal["commit", "eventual"]
    """Whether `seq` rises in the order of commits, so that a reader that pages misses nothing."""
    listing: Literal["exact", "eventual"]
    """Whether a page of sessions shows every session that was acknowledged before."""
    search: bool
    """`search` finds messages by their words."""
    shared: bool
    """Other processes can use the same store at the same time."""
    invalidation: bool
    """The driver can tell of writes that others made."""
    durability: Literal["strong", "weak", "none"]
    """Whether a committed write survives a power cut, perhaps, or not even the process."""
    embedded: bool = False
    """The store lives in this process and on its disk: it is never unreachable."""
    limits: Limits = MOST
    """What the engine takes at the most."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that a model says it used."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )


class Reply(str):
    """An agent's answer: text that also says how it was stored.

    `durability` is the weakest of the turn's writes, `stale` whether the history that the model
    saw may have been behind, `message_ids` the ids of what the turn stored, in order.
    """

    __slots__ = ("durability", "message_ids", "session_id", "stale", "usage")

    durability: Durability
    stale: bool
    session_id: str
    message_ids: tuple[str, ...]
    usage: Usage | None

    def __new__(
        cls,
        text: str,
        *,
        session_id: str = "",
        message_ids: Sequence[str] = (),
        durability: Durability = Durability.COMMITTED,
        stale: bool = False,
        usage: Usage | None = None,
    ) -> Self:
        """Make a reply of its text and of what became of the turn."""
        reply = super().__new__(cls, text)
        reply.durability = durability
        reply.stale = stale
        reply.session_id = session_id
        reply.message_ids = tuple(message_ids)
        reply.usage = usage
        return reply


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one store is doing; `error` says why where it isn't `ok`."""

    backend: str
    ok: bool
    error: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the stores of a database are doing: of the conversations, then of the state."""

    engines: tuple[EngineHealth, ...]

    @property
    def ok(self) -> bool:
        """Whether all of them are."""
        return all(engine.ok for engine in self.engines)


class ErasureReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was erased of a user, counted where it was deleted."""

    user_id: str
    sessions: int
    messages: int
    state: int
    erased_at: datetime
