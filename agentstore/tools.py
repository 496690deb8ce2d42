"""Python functions as tools that a model can call.

A tool is made of a function's name, the first paragraph of its docstring, and its signature::

    def forecast(city: Annotated[str, "the nearest big one"], days: int = 3) -> list[Day]: ...

A parameter without a type takes any JSON value.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

import msgspec

from .errors import ConfigurationError

__all__ = ["Tool", "answer", "run", "tool", "toolset"]

_logger = logging.getLogger(__name__)


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function with what a model has to know of it.

    `schema` is its entry in the `tools` of a request, in the shape of OpenAI's chat format.
    """

    name: str
    schema: dict[str, Any]
    function: Callable[..., Any]
    decoder: msgspec.json.Decoder[Any]

    async def call(self, arguments: str) -> str:
        """Call the function with the JSON that a model wrote, and return the text for the model.

        A result that is no text is returned as JSON.
        Arguments that don't fit the signature, and exceptions of the function, are returned as
        text that begins with `Error:`, so that the model can try again or say so.
        The message of an exception is therefore shown to the model; it is not logged.

        Cancellation leaves a function that is not async running in its thread.
        """
        try:
            # Some models write nothing at all where a function takes nothing.
            decoded = self.decoder.decode(arguments or "{}")
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            return f"Error: {self.name} can't take these arguments: {error}"
        try:
            result = await run(self.function, **msgspec.structs.asdict(decoded))
            return str(result) if isinstance(result, str) else msgspec.json.encode(result).decode()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancels this call: it is what the function waited for that was cancelled.
            _logger.warning("tool %s raised CancelledError", self.name)
            return "Error: CancelledError"
        except Exception as error:  # noqa: BLE001
            # A function of the user's may raise anything. The model has asked and must be
            # answered: a call without a result makes every endpoint refuse the conversation.
            _logger.warning("tool %s raised %s", self.name, type(error).__name__)
            return f"Error: {type(error).__name__}: {error}"


def tool(function: Callable[..., Any]) -> Tool:
    """Make a tool of a function, async or not.

    `ConfigurationError` where the signature can't be told to a model.
    """
    name = getattr(function, "__name__", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigurationError(
            f"{name or type(function).__name__} can't be a tool: write a function with `def`, "
            "its name at most 64 of A-Z a-z 0-9 _"
        )
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise ConfigurationError(
            f"tool {name}: {error}: import the types of its parameters outside TYPE_CHECKING, "
            "and define them at the top of the module"
        ) from error
    fields = [_field(name, parameter) for parameter in signature.parameters.values()]
    arguments = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    described: dict[str, Any] = {"name": name, "parameters": _parameters(arguments)}
    if documentation := inspect.getdoc(function):
        described["description"] = " ".join(documentation.split("\n\n")[0].split())
    schema = {"type": "function", "function": described}
    # Made once and here: two threads that decode into a new type at once crash the interpreter
    # (msgspec 0.22).
    decoder = msgspec.json.Decoder(arguments)
    return Tool(name=name, schema=schema, function=function, decoder=decoder)


def toolset(functions: Iterable[Callable[..., Any]]) -> dict[str, Tool]:
    """Make a tool of each function; their names must differ."""
    tools: dict[str, Tool] = {}
    for made in map(tool, functions):
        if made.name in tools:
            raise ConfigurationError(f"two tools are named {made.name}: rename one")
        tools[made.name] = made
    return tools


async def answer(tools: Mapping[str, Tool], call: Mapping[str, Any]) -> dict[str, Any]:
    """Make one of an assistant's `tool_calls`, and return the message that answers it.

    A tool that doesn't exist is answered with an error that names those that do.
    """
    name = call["function"]["name"]
    if name in tools:
        content = await tools[name].call(call["function"]["arguments"])
    else:
        content = f"Error: there is no tool {name}; there are: {', '.join(tools) or 'none'}"
    return {"role": "tool", "tool_call_id": call["id"], "content": content}


async def run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call a function: on the event loop if it is async, otherwise in a thread.

    An awaitable that it returns is awaited: a lambda around an async function is not async.
    """
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    work = partial(contextvars.copy_context().run, _run, function, args, kwargs)
    result = await asyncio.get_running_loop().run_in_executor(_threads, work)
    return await result if inspect.isawaitable(result) else result


def _begin_anew() -> None:
    # Not the threads of the loop, of which there are a few more than the machine has cores: where
    # functions wait for other functions, as an agent does that is the tool of another, they would
    # be used up, and all wait for ever. Here threads are begun as they are needed.
    global _threads  # noqa: PLW0603
    _threads = ThreadPoolExecutor(max_workers=10_000, thread_name_prefix="agentstore-function")


_threads: ThreadPoolExecutor
_begin_anew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)  # where the threads themselves are missing


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # Python 3.11 can't bring it back from a thread, and waits for ever (python/cpython#112182).
        # Async functions turn it into the same error (PEP 479).
        raise RuntimeError("a function raised StopIteration") from error


_Field = tuple[str, Any] | tuple[str, Any, Any]


def _field(tool: str, parameter: inspect.Parameter) -> _Field:
    """Describe a parameter as `msgspec.defstruct` takes it."""
    where = f"tool {tool}: parameter {parameter}"
    if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
        raise ConfigurationError(f"{where}: name each argument, or take one list or dict")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ConfigurationError(f"{where}: models name their arguments: take the / out")
    hint = Any if parameter.annotation is parameter.empty else parameter.annotation
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, str):
            hint = Annotated[hint, msgspec.Meta(description=note)]
    try:
        msgspec.json.schema(hint)
    except TypeError as error:
        raise ConfigurationError(
            f"{where}: no JSON stands for this type: use str, int, float, bool, list, dict, "
            "Literal, a dataclass, a TypedDict or a msgspec.Struct"
        ) from error
    default = parameter.default
    if default is parameter.empty:
        return parameter.name, hint
    if default is None or isinstance(default, bool | int | float | str):
        return parameter.name, hint, default  # which the schema shows
    return parameter.name, hint, msgspec.field(default_factory=lambda: default)


def _parameters(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Give the JSON schema of the arguments, which has to be an object and no reference to one."""
    (root,), definitions = msgspec.json.schema_components([arguments])
    parameters: dict[str, Any] = definitions.pop(root["$ref"].removeprefix("#/$defs/"))
    del parameters["title"]
    return parameters | ({"$defs": definitions} if definitions else {})
