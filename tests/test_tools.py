from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import msgspec
import pytest

from agentstore.errors import ConfigurationError
from agentstore.tools import answer, tool, toolset

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal as OnlyForTypeCheckers

pytestmark = pytest.mark.asyncio


@dataclass
class Place:
    city: str
    country: str = "NO"


class Day(TypedDict):
    date: str
    rain: float


class Arguments(msgspec.Struct):
    """A type with the name that the module uses itself."""

    text: str


def forecast(  # type: ignore[no-untyped-def]  # the case: `extra`
    place: Annotated[Place, "where it's looked for"],
    days: Annotated[int, msgspec.Meta(ge=1)] = 3,
    unit: Literal["C", "F"] = "C",
    tags: list[str] = ["any"],  # noqa: B006 - the case
    extra=None,  # noqa: ANN001 - the case
) -> list[Day]:
    """Tell the weather
    of the coming days.

    What is below isn't for the model.
    """  # noqa: D205 - the case
    return [Day(date=f"{place.city} {place.country} {days} {unit} {tags} {extra}", rain=0.5)]


async def test_schema() -> None:
    """A tool's entry says what the name, the docstring and the signature say."""
    assert tool(forecast).schema == {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Tell the weather of the coming days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"description": "where it's looked for", "$ref": "#/$defs/Place"},
                    "days": {"type": "integer", "minimum": 1, "default": 3},
                    "unit": {"enum": ["C", "F"], "default": "C"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "extra": {"default": None},
                },
                "required": ["place"],
                "additionalProperties": False,
                "$defs": {
                    "Place": {
                        "title": "Place",
                        "type": "object",
                        "properties": {
                            "city": {"type": "string"},
                            "country": {"type": "string", "default": "NO"},
                        },
                        "required": ["city"],
                    }
                },
            },
        },
    }


async def test_schema_of_nothing() -> None:
    """A function without parameters and docstring has an empty object and no description."""

    def ping() -> str:
        return "pong"

    assert tool(ping).schema["function"] == {
        "name": "ping",
        "parameters": {
            "type": "object",
            "properties": {},
            "required": [],
            "additionalProperties": False,
        },
    }


async def test_call() -> None:
    """The function gets its arguments as its signature types them, and its own defaults."""
    result = await tool(forecast).call('{"place": {"city": "Oslo"}, "extra": [1]}')
    assert json.loads(result) == [{"date": "Oslo NO 3 C ['any'] [1]", "rain": 0.5}]


@pytest.mark.parametrize("arguments", ["", "{}"])
async def test_no_arguments(arguments: str) -> None:
    """A function without parameters is called whether a model writes `{}` or nothing."""

    def ping() -> str:
        return "pong"

    assert await tool(ping).call(arguments) == "pong"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (None, "null"),
        (Place("Oslo"), '{"city":"Oslo","country":"NO"}'),
    ],
)
async def test_result(result: object, text: str) -> None:
    """Text is returned as it is, everything else as JSON."""

    def give() -> object:
        return result

    assert await tool(give).call("{}") == text


async def test_async_function() -> None:
    """An async function is awaited on the event loop."""

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2 if threading.current_thread() is threading.main_thread() else 0

    assert await tool(double).call('{"number": 21}') == "42"


_user = ContextVar("user", default="nobody")


async def test_sync_function() -> None:
    """A function that isn't async runs in a thread, with the caller's context."""

    def whoami() -> list[object]:
        return [_user.get(), threading.current_thread() is threading.main_thread()]

    _user.set("ann")
    assert await tool(whoami).call("{}") == '["ann",false]'


async def test_method() -> None:
    """A bound method is a tool without its `self`."""

    class Counter:
        count = 0

        def add(self, by: int) -> int:
            self.count += by
            return self.count

    assert await tool(Counter().add).call('{"by": 2}') == "2"


async def test_type_named_as_ours() -> None:
    """A parameter's type may have any name."""

    def show(it: Arguments) -> str:
        return it.text

    made = tool(show)
    parameters = made.schema["function"]["parameters"]
    reference = parameters["properties"]["it"]["$ref"].removeprefix("#/$defs/")
    assert list(parameters["$defs"]) == [reference]
    assert await made.call('{"it": {"text": "x"}}') == "x"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"place": {"city": "Oslo"}, "days": "three"}', "Expected `int`, got `str` - at `$.days`"),
        ('{"place": {"city": "Oslo"}, "days": 0}', "Expected `int` >= 1 - at `$.days`"),
        ("{}", "Object missing required field `place`"),
        ('{"place": {"city": "Oslo"}, "zip": 1}', "Object contains unknown field `zip`"),
        ("[]", "Expected `object`, got `array`"),
        ('{"place": ', "Input data was truncated"),
        ('{"place": {"city": "\ud800"}}', "surrogates not allowed"),
        ('{"extra": ' + "[" * 5000, "maximum recursion depth exceeded"),
    ],
)
async def test_wrong_arguments(
    arguments: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is told what is wrong with its arguments; that is no event for the log."""
    result = await tool(forecast).call(arguments)
    assert result.startswith("Error: forecast can't take these arguments: ")
    assert problem in result
    assert caplog.records == []


async def test_exception(caplog: pytest.LogCaptureFixture) -> None:
    """The model is told of an exception; the log has its type and the tool, and no more."""

    def look(key: str) -> str:
        raise ValueError(f"no {key} here")

    assert await tool(look).call('{"key": "secret"}') == "Error: ValueError: no secret here"
    assert caplog.record_tuples == [
        ("agentstore.tools", logging.WARNING, "tool look raised ValueError")
    ]
    assert caplog.records[0].exc_info is None


async def test_result_without_json() -> None:
    """A result that JSON can't hold is told to the model like an exception."""

    def give() -> object:
        return object()

    result = await tool(give).call("{}")
    assert result == "Error: TypeError: Encoding objects of type object is unsupported"


async def test_stop_iteration() -> None:
    """A function that raises StopIteration in its thread is answered, not waited for."""

    def first() -> str:
        return next(iter([]))

    async with asyncio.timeout(5):
        result = await tool(first).call("{}")
    assert result == "Error: RuntimeError: a function raised StopIteration"


async def test_cancellation() -> None:
    """A cancelled call is cancelled; it has no result."""

    async def wait() -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(tool(wait).call("{}"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_base_exception() -> None:
    """What is no `Exception` goes on to the caller."""

    class Interrupt(BaseException):
        pass

    async def stop() -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        await tool(stop).call("{}")


def _many(*cities: str) -> str: ...  # type: ignore[empty-body]  # only its signature matters
def _any(**options: str) -> str: ...  # type: ignore[empty-body]
def _place(city: str, /) -> str: ...  # type: ignore[empty-body]
def _complex(number: complex) -> str: ...  # type: ignore[empty-body]
def _union(when: Place | Day) -> str: ...  # type: ignore[empty-body]
def _hidden(price: OnlyForTypeCheckers) -> str: ...  # type: ignore[empty-body]
def _größe() -> str: ...  # type: ignore[empty-body]  # noqa: PLC2401


@pytest.mark.parametrize(
    ("function", "names", "remedy"),
    [
        (_many, "tool _many: parameter *cities: str", "take one list or dict"),
        (_any, "tool _any: parameter **options: str", "take one list or dict"),
        (_place, "tool _place: parameter city: str", "take the / out"),
        (_complex, "tool _complex: parameter number: complex", "a dataclass"),
        (_union, "tool _union: parameter when: ", "a dataclass"),
        (_hidden, "tool _hidden: name 'OnlyForTypeCheckers'", "outside TYPE_CHECKING"),
        (_größe, "_größe can't be a tool", "A-Z a-z 0-9 _"),
        (lambda: "", "<lambda> can't be a tool", "write a function with `def`"),
        (partial(forecast, days=1), "partial can't be a tool", "write a function with `def`"),
        ({"type": "function"}, "dict can't be a tool", "write a function with `def`"),
    ],
)
async def test_refused(function: Callable[..., Any], names: str, remedy: str) -> None:
    """What a model can't call is refused with the function, the parameter and what to do."""
    with pytest.raises(ConfigurationError) as refusal:
        tool(function)
    assert names in str(refusal.value)
    assert remedy in str(refusal.value)


async def test_toolset() -> None:
    """Tools are found by their names, which have to differ."""

    def ping() -> str:
        return "pong"

    assert list(toolset([forecast, ping])) == ["forecast", "ping"]
    with pytest.raises(ConfigurationError, match="two tools are named ping"):
        toolset([ping, ping])


async def test_answer() -> None:
    """A call is answered with a tool message that has its id."""

    def add(a: int, b: int) -> int:
        return a + b

    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": "add", "arguments": '{"a": 1, "b": 2}'}  # type: ignore[assignment]
    assert await answer(toolset([add]), call) == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "3",
    }


async def test_unknown_tool() -> None:
    """A call of a tool that doesn't exist is answered with the names of those that do."""
    call = {"id": "call_1", "type": "function", "function": {"name": "fly", "arguments": "{}"}}
    message = await answer(toolset([forecast]), call)
    assert message["content"] == "Error: there is no tool fly; there are: forecast"
