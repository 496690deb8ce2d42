"""How an agent reaches a model.

Messages are dicts in OpenAI's chat format, here and on both sides of here.

A failure of a model is no failure of a store: what the function or the `openai` package raised is
raised, unchanged.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from .errors import ConfigurationError, MissingDependencyError
from .tools import run
from .types import Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import CompletionUsage

__all__ = ["DEFAULT_MODEL", "Completion", "Model", "ModelLike", "resolve"]

DEFAULT_MODEL = "gpt-5.4-mini"


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered: a whole assistant message, with every key that the model gave."""

    message: dict[str, Any]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What a person reads: the content, and the refusal where the model refused."""
        return _text(self.message.get("content")) + (self.message.get("refusal") or "")


@runtime_checkable
class Model(Protocol):
    """What answers a list of messages."""

    def respond(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]], stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        """Yield the answer as it comes: pieces of its text, and at the end the `Completion`.

        There are pieces only if `stream` is set; joined, they are the text of the completion.
        Write it as an async generator.
        """
        ...


ModelLike: TypeAlias = Model | Callable[..., Any] | str | None


def resolve(llm: ModelLike) -> Model:
    """Return the model that `llm` stands for.

    A function is called with the messages, and with the schemas of the tools if it has a parameter
    `tools`; it returns the text, an assistant message or a `Completion`, or is a generator of
    pieces of text. It may be async; if it is not, it runs in a thread.

    `"offline"` is a stand-in that answers from the messages alone. Any other text names a model,
    which is reached through the `openai` package as that is configured: `OPENAI_API_KEY`,
    `OPENAI_BASE_URL`, two retries, and a deadline of ten minutes without a byte.

    `None` is the model that `OPENAI_MODEL` names, where the environment has a key or a URL.
    """
    if llm is None:
        if not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
            raise ConfigurationError(
                "the agent has no model: pass a function as llm=, "
                'or set OPENAI_API_KEY or OPENAI_BASE_URL and pass llm="model-name", '
                'or pass llm="offline" for a stand-in that needs no model'
            )
        return OpenAIModel(os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL)
    if isinstance(llm, str):
        return FunctionModel(offline) if llm == "offline" else OpenAIModel(llm)
    if isinstance(llm, Model):
        return llm
    if callable(llm):
        return FunctionModel(llm)
    raise ConfigurationError(
        f"llm= can't be {type(llm).__name__}: "
        'pass a function, the name of a model, "offline" or an object with a method `respond`'
    )


class FunctionModel:
    """A model that is a function of the messages."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._takes_tools = "tools" in inspect.signature(function).parameters

    async def respond(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]], stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        """Call the function, and bring what it gives into the shape of an answer."""
        options = {"tools": tools} if self._takes_tools else {}
        # A copy, because a thread whose caller was cancelled goes on reading.
        given = await run(self._function, list(messages), **options)
        if isinstance(given, Generator):
            given = _from_thread(given)
        if not isinstance(given, AsyncGenerator):
            completion = self._completion(given)
            if stream and completion.text:
                yield completion.text
            yield completion
            return
        text = ""
        async with aclosing(given) as pieces:
            async for piece in pieces:
                if not isinstance(piece, str):
                    raise self._unexpected(f"yielded {type(piece).__name__}")
                text += piece
                if stream and piece:
                    yield piece
        yield self._completion(text)

    def _completion(self, given: object) -> Completion:
        if isinstance(given, Completion):
            return given
        if isinstance(given, str):
            # A subclass, such as another agent's reply, can't be stored.
            return Completion(message={"role": "assistant", "content": str(given)})
        if not isinstance(given, dict):
            raise self._unexpected(f"returned {type(given).__name__}")
        message = {"role": "assistant", **given}
        if message["role"] != "assistant" or not message.keys() & {"content", "tool_calls"}:
            keys = ", ".join(map(str, given))
            raise self._unexpected(f"returned a dict that is no assistant message (keys: {keys})")
        return Completion(message=message)

    def _unexpected(self, what: str) -> ConfigurationError:
        name = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        return ConfigurationError(
            f"llm function {name} {what}: return str, an assistant message as a dict in OpenAI's "
            "format, or a Completion, or yield str"
        )


async def _from_thread(pieces: Generator[Any, Any, Any]) -> AsyncGenerator[Any, None]:
    # A cancelled `next` still runs in its thread, and a running generator can't be closed: that one
    # is left to the thread, which drops the last reference.
    end = object()
    while (piece := await run(next, pieces, end)) is not end:
        try:
            yield piece
        except GeneratorExit:
            await run(pieces.close)
            raise


class OpenAIModel:
    """A model behind an endpoint that speaks OpenAI's chat completions."""

    def __init__(self, name: str) -> None:
        # Here and not at the first turn: it takes most of a second, and would stop the event loop.
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"model {name!r} is reached through the openai package: "
                'run pip install "agentstore-sdk[openai]"'
            ) from error
        self._name = name
        self._openai = openai
        self._clients: dict[
            AbstractEventLoop, tuple[AsyncOpenAI, AsyncGenerator[AsyncOpenAI, None]]
        ] = {}

    async def respond(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]], stream: bool
    ) -> AsyncGenerator[str | Completion, None]:
        """Ask the endpoint."""
        request: dict[str, Any] = {
            "model": self._name,
            "messages": [_sendable(message) for message in messages],
        }
        if tools:  # endpoints refuse an empty list
            request["tools"] = tools
        client = await self._client()
        if not stream:
            yield await self._complete(client, request)
            return
        message: dict[str, Any] = {"role": "assistant"}
        usage: CompletionUsage | None = None
        finished = False
        async with await client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        ) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    delta = choice.delta.to_dict(warnings=False)
                    _merge(message, delta)
                    finished = finished or bool(choice.finish_reason)
                    for key in ("content", "refusal"):
                        if piece := delta.get(key):
                            yield piece
            if not finished:
                # An endpoint or a proxy that gives up may end the stream in good order.
                raise self._openai.APIConnectionError(
                    message="The stream ended before the answer was complete.",
                    request=chunks.response.request,
                )
        for call in message.get("tool_calls") or ():
            call.pop("index", None)
        yield Completion(message=message, usage=_usage(usage))

    async def _complete(self, client: AsyncOpenAI, request: dict[str, Any]) -> Completion:
        raw = await client.chat.completions.with_raw_response.create(**request)
        completion = raw.parse()
        if not completion.choices:
            # Some proxies answer 200 with an error in the body.
            raise self._openai.APIResponseValidationError(
                raw.http_response, completion.to_dict(), message="The endpoint gave no choice."
            )
        message = completion.choices[0].message.to_dict(warnings=False)
        return Completion(message=message, usage=_usage(completion.usage))

    async def _client(self) -> AsyncOpenAI:
        """Return the client of the running loop: connections belong to the loop they began on."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            for ended in [other for other in list(self._clients) if other.is_closed()]:
                self._clients.pop(ended, None)  # another thread's loop may be at it too
            lifetime = _lifetime(self._openai)
            self._clients[loop] = (await anext(lifetime), lifetime)
        return self._clients[loop][0]


async def _lifetime(openai: ModuleType) -> AsyncGenerator[AsyncOpenAI, None]:
    """Hold a client open until the loop ends, or until nobody holds this generator.

    Nothing tells a library that a loop ends, but `asyncio.run` and its like close the async
    generators that they find suspended, while the loop still runs.
    It must not refer to the model: in a reference cycle its sockets would be collected before it
    could close them.
    """
    key = os.environ.get("OPENAI_API_KEY")
    if not key and os.environ.get("OPENAI_BASE_URL"):
        key = "unused"  # a server at home wants none, but the package insists on one
    async with openai.AsyncOpenAI(api_key=key) as client:
        yield client


def _sendable(message: dict[str, Any]) -> dict[str, Any]:
    """Give an answer the form in which every endpoint takes it back.

    Endpoints answer with nulls and empty lists (`tool_calls: []`), or with nothing but reasoning,
    and refuse the same in a request: once stored, it would spoil the conversation for good.
    """
    if message["role"] != "assistant":
        return message
    said = {key: value for key, value in message.items() if value is not None and value != []}
    return {"content": "", **said}


# Endpoints that send these again with each piece send them whole.
_WHOLE = frozenset({"id", "name", "role", "type"})


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add the next piece of a streamed message to what came before it."""
    for key, value in piece.items():
        before = whole.get(key)
        if not before:
            whole[key] = value
        elif isinstance(value, str) and key not in _WHOLE:
            whole[key] = before + value
        elif isinstance(value, dict):
            _merge(before, value)
        elif isinstance(value, list):
            for item in value:
                index = item.get("index")
                begun = [one for one in before if index is not None and one.get("index") == index]
                if begun:
                    _merge(begun[0], item)
                else:
                    before.append(item)


def _usage(usage: CompletionUsage | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(part.get("text") or part.get("refusal") or "" for part in content)
    return content if isinstance(content, str) else ""


async def offline(messages: list[dict[str, Any]]) -> str:
    """Answer from the messages alone, for demonstrations and tests; it remembers a name."""
    said = [_text(message.get("content")) for message in messages if message["role"] == "user"]
    last = said[-1] if said else ""
    names = re.findall(r"my name is (\w+)", "\n".join(said), re.IGNORECASE)
    if names and re.search(r"what( is|\W?s) my name", last, re.IGNORECASE):
        return f"Your name is {names[-1]}, says the offline model."
    return f"This is the offline model. It was sent {len(messages)} messages, and at last: {last}"
