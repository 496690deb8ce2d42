"""Tool exchanges: an assistant's calls, and the results that answer them.

A result answers the nearest call before it that has its id: ids repeat in real sessions.
Results may come in any order, and other messages between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .types import Message

__all__ = ["answer", "answers", "calls", "clean_starts", "sendable"]


def calls(message: Message) -> Iterator[str]:
    """List the ids of the calls that a message makes."""
    if isinstance(message.tool_calls, list):
        for call in message.tool_calls:
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                yield call["id"]
    legacy = message.extra.get("function_call")
    if isinstance(legacy, dict) and isinstance(legacy.get("name"), str):
        yield _legacy(legacy["name"])


def answer(message: Message) -> str | None:
    """Tell which call a message answers, if it is a result."""
    if message.role == "tool" and isinstance(message.tool_call_id, str):
        return message.tool_call_id
    if message.role == "function" and isinstance(message.name, str):
        return _legacy(message.name)
    return None


def _legacy(name: str) -> str:
    # Functions had no call ids: the name is all there is. NUL keeps it apart from every id.
    return f"\0{name}"


def answers(messages: Sequence[Message]) -> dict[int, int | None]:
    """Map the place of each result to the place of its call, `None` where that is missing."""
    made: dict[str, int] = {}
    found: dict[int, int | None] = {}
    for place, message in enumerate(messages):
        call = answer(message)
        if call is not None:
            found[place] = made.get(call)
        for made_here in calls(message):
            made[made_here] = place
    return found


def clean_starts(messages: Sequence[Message], *, orphans: bool) -> Iterator[int]:
    """List, from the newest, the places from which on no result lacks its call.

    A result whose call is not among the messages has none at all where `orphans`; otherwise its
    call lies further back, and no place before it is known to be clean.
    """
    found = answers(messages)
    needed = len(messages)
    for place in range(len(messages) - 1, -1, -1):
        if place in found:
            call = found[place]
            if call is not None:
                needed = min(needed, call)
            elif not orphans:
                return
        if place <= needed:
            yield place


def sendable(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Put messages into the order that model endpoints insist on, in OpenAI's chat format.

    Each result comes behind the message that called for it; what is missing is supplied, and what
    answers nothing is left out. The store keeps what it has: this is only what is sent.
    """
    results: dict[int, dict[str, Message]] = {}
    for place, call in answers(messages).items():
        if call is not None:
            # Of two results of one call the later one counts.
            results.setdefault(call, {})[answer(messages[place]) or ""] = messages[place]
    ordered: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        if answer(message) is not None:
            continue
        ordered.append(message.to_openai())
        given = results.get(place, {})
        ordered += [
            given[call_id].to_openai() if call_id in given else _supplied(call_id)
            for call_id in dict.fromkeys(calls(message))
        ]
    return ordered


def _supplied(call_id: str) -> dict[str, Any]:
    missing = "No result: the call was broken off."
    if call_id.startswith("\0"):
        return {"role": "function", "name": call_id[1:], "content": missing}
    return {"role": "tool", "tool_call_id": call_id, "content": missing}
