"""Tool exchanges: an assistant's calls, and the results that answer them.

A result answers the nearest call before it that has its id: ids repeat in real sessions.
Results may come in any order, and other messages between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from ._ids import uuid7
from .errors import ConfigurationError
from .types import Message

__all__ = ["Call", "answer", "answerable", "answers", "calls", "clean_starts", "sendable"]

Call: TypeAlias = tuple[str, str]
"""The role of the result that answers a call, and the call's id."""


def calls(message: Message) -> Iterator[Call]:
    """List the calls that a message makes."""
    return _calls(message.tool_calls, message.extra.get("function_call"))


def _calls(tool_calls: object, function_call: object) -> Iterator[Call]:
    if isinstance(tool_calls, list):
        for call in tool_calls:
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                yield "tool", call["id"]
    # Functions had no call ids: the name is all there is.
    if isinstance(function_call, dict) and isinstance(function_call.get("name"), str):
        yield "function", function_call["name"]


def answer(message: Message) -> Call | None:
    """Tell which call a message answers, if it is a result."""
    if message.role == "tool" and isinstance(message.tool_call_id, str):
        return "tool", message.tool_call_id
    if message.role == "function" and isinstance(message.name, str):
        return "function", message.name
    return None


def answers(messages: Sequence[Message]) -> dict[int, int | None]:
    """Map the place of each result to the place of its call, `None` where that is missing."""
    made: dict[Call, int] = {}
    found: dict[int, int | None] = {}
    for place, message in enumerate(messages):
        call = answer(message)
        if call is not None:
            found[place] = made.get(call)
        if message.tool_calls or message.extra:
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
    """Put messages into the form that model endpoints insist on, in OpenAI's chat format.

    Each result comes behind the message that called for it; what is missing is supplied, and what
    answers nothing is left out, as are calls that nothing could answer.
    The store keeps what it has: this is only what is sent.
    """
    results: dict[int, dict[Call | None, Message]] = {}
    for place, call in answers(messages).items():
        if call is not None:
            # Of two results of one call the later one counts.
            results.setdefault(call, {})[answer(messages[place])] = messages[place]
    ordered: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        if message.role in {"tool", "function"}:
            continue
        sent = _sent(message)
        ordered.append(sent)
        given = results.get(place, {})
        made = dict.fromkeys(_calls(sent.get("tool_calls"), sent.get("function_call")))
        ordered += [_sent(given[call]) if call in given else _supplied(*call) for call in made]
    return ordered


def _sent(message: Message) -> dict[str, Any]:
    """Take out what endpoints answer with but refuse in a request, such as `tool_calls: []`.

    Once stored, it would spoil the conversation for good.
    """
    sent = {
        key: value
        for key, value in message.to_openai().items()
        if value != [] and (value is not None or key == "content")
    }
    sent["tool_calls"] = [call for call in sent.get("tool_calls", ()) if _is_sound(call)]
    if message.role != "assistant" or not sent["tool_calls"]:
        del sent["tool_calls"]
    if message.role != "assistant" or not _is_named(sent.get("function_call")):
        sent.pop("function_call", None)
    if not sent.get("content") and not sent.keys() & {"tool_calls", "function_call"}:
        sent["content"] = ""
    return sent


def _is_sound(call: object) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("id"), str) or not call["id"]:
        return False
    kind = call.get("type", "function")
    return isinstance(kind, str) and _is_named(call.get(kind))


def _is_named(function: object) -> bool:
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def answerable(tool_calls: object) -> list[dict[str, Any]]:
    """Give each call that a model made what its result needs: some leave ids or arguments out.

    `ConfigurationError` where there is nothing to call.
    """
    if not isinstance(tool_calls, list):
        raise ConfigurationError(f"the model's tool_calls is {type(tool_calls).__name__}, no list")
    return [_answerable(call) for call in tool_calls]


def _answerable(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(call, dict) and isinstance(function, dict) and _is_named(function):
        call_id, arguments = call.get("id"), function.get("arguments")
        if isinstance(call_id, str | None) and isinstance(arguments, str | None):
            filled = {**function, "arguments": "{}" if arguments is None else arguments}
            return {**call, "id": call_id or f"call_{uuid7()}", "function": filled}
    raise ConfigurationError(
        "the model called a tool in a form that can't be answered: "
        "id, function.name and function.arguments have to be text"
    )


def _supplied(role: str, name: str) -> dict[str, Any]:
    key = "tool_call_id" if role == "tool" else "name"
    return {"role": role, key: name, "content": "No result: the call was broken off."}
