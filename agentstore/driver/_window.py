"""Reading a session: pages as they are asked for, and windows that keep exchanges whole."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from ..exchanges import clean_starts
from ..types import Message
from ._rows import encode_body

# Read beside a window, so that widening it seldom costs a second round trip.
_MARGIN = 8
# How much is read at a time where nobody can say how much will be needed.
_CHUNK = 64
# A result whose call is not found this far back has none: a window is not widened for ever.
_REACH = 1_000


class Slice(Protocol):
    """The one primitive: up to `limit` messages between two exclusive bounds, oldest first.

    They are the newest within the bounds where `newest`, otherwise the oldest.
    """

    def __call__(
        self, *, after: int | None, before: int | None, limit: int | None, newest: bool
    ) -> Awaitable[Sequence[Message]]: ...


async def read_messages(
    fetch: Slice,
    *,
    first: int | None,
    last: int | None,
    before: int | None,
    after: int | None,
    max_tokens: int | None,
) -> Sequence[Message]:
    """Do what `ConversationStore.read` promises, by slices of the session."""
    bounded = before is not None or after is not None
    if max_tokens is None and (bounded or last is None):
        newest = last is not None
        limit = last if newest else first
        return await fetch(after=after, before=before, limit=limit, newest=newest)
    return await _window(fetch, last, max_tokens, after, before)


async def _window(
    fetch: Slice,
    last: int | None,
    max_tokens: int | None,
    after: int | None,
    before: int | None,
) -> Sequence[Message]:
    messages: list[Message] = []
    wanted = _CHUNK if last is None else last + _MARGIN
    while True:
        chunk = await fetch(after=after, before=before, limit=wanted, newest=True)
        messages = [*chunk, *messages]
        whole = len(chunk) < wanted
        starts = list(clean_starts(messages, orphans=whole or len(messages) > _REACH + (last or 0)))
        start = _start_of_last(messages, starts, last, whole=whole)
        if start is not None and max_tokens is not None:
            start = _start_within(messages, starts, start, max_tokens, whole=whole)
        if start is not None:
            return messages[start:]
        before, wanted = messages[0].seq, len(messages)


def _start_of_last(
    messages: Sequence[Message], starts: Sequence[int], last: int | None, *, whole: bool
) -> int | None:
    """Say where a window of `last` messages begins, `None` where that lies further back."""
    if last is None:
        return 0
    for start in starts:
        if start <= len(messages) - last:
            return start
    return 0 if whole else None


def _start_within(
    messages: Sequence[Message], starts: Sequence[int], floor: int, budget: int, *, whole: bool
) -> int | None:
    """Say where the newest exchanges that fit into `budget` begin; at least one comes."""
    chosen = end = len(messages)
    for start in starts:
        budget -= sum(estimate_tokens(message) for message in messages[start:end])
        if start < floor or (budget < 0 and chosen < len(messages)):
            return chosen
        chosen = end = start
    # Everything read so far fits, so more may: unless this is all, or all that was asked for.
    return chosen if whole or floor > 0 or budget < 0 else None


def estimate_tokens(message: Message) -> int:
    """Guess what a message costs a model where nobody said: a token is about four bytes."""
    return 4 + len(encode_body(message)) // 4 if message.tokens is None else message.tokens
