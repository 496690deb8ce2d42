from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any

import openai
import pytest

from agentstore.errors import ConfigurationError, MissingDependencyError
from agentstore.models import DEFAULT_MODEL, Completion, ModelLike, resolve
from agentstore.types import Reply, Usage
from openai_server import JSON, Fault, OpenAIServer, complaint, openai_server

pytestmark = pytest.mark.asyncio
server = openai_server  # the fixture, by a short name

HELLO = [{"role": "user", "content": "My name is Alice"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = [
    {"id": f"call_{n}", "type": "function", "function": {"name": "add", "arguments": arguments}}
    for n, arguments in enumerate(['{"a": 1, "b": 2}', '{"a": 30, "b": 40}', "{}"])
]


async def ask(
    llm: ModelLike,
    messages: list[JSON] = HELLO,
    *,
    tools: list[JSON] | None = None,
    stream: bool = False,
) -> tuple[list[str], Completion]:
    """Return the pieces and the completion that a model answers with."""
    pieces: list[str] = []
    async with aclosing(resolve(llm).respond(messages, tools=tools or [], stream=stream)) as answer:
        async for piece in answer:
            if isinstance(piece, Completion):
                return pieces, piece
            pieces.append(piece)
    raise AssertionError("the answer ended without a Completion")


def said(text: str) -> Completion:
    return Completion(message={"role": "assistant", "content": text})


# Functions


def sync_text(messages: list[JSON]) -> str:
    return f"{len(messages)} message"


async def async_text(messages: list[JSON]) -> str:
    return f"{len(messages)} message"


class Callee:
    async def __call__(self, messages: list[JSON]) -> str:
        return f"{len(messages)} message"


def sync_pieces(messages: list[JSON]) -> Iterator[str]:
    yield str(len(messages))
    yield " message"


async def async_pieces(messages: list[JSON]) -> AsyncGenerator[str, None]:
    yield str(len(messages))
    yield " message"


@pytest.mark.parametrize(
    ("function", "pieces"),
    [
        (sync_text, ["1 message"]),
        (async_text, ["1 message"]),
        (lambda messages: async_text(messages), ["1 message"]),  # noqa: PLW0108 - the case
        (Callee(), ["1 message"]),
        (partial(async_text), ["1 message"]),
        (lambda _: Reply("1 message"), ["1 message"]),
        (lambda _: {"content": "1 message"}, ["1 message"]),
        (lambda _: said("1 message"), ["1 message"]),
        (sync_pieces, ["1", " message"]),
        (async_pieces, ["1", " message"]),
        (lambda messages: sync_pieces(messages), ["1", " message"]),  # noqa: PLW0108 - the case
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_function(function: Callable[..., Any], pieces: list[str], *, stream: bool) -> None:
    """A function is a model whichever way it is written; pieces come only to those who ask."""
    given, completion = await ask(function, stream=stream)
    assert given == (pieces if stream else [])
    assert completion == said("1 message")
    assert type(completion.message["content"]) is str


async def test_function_with_tools() -> None:
    """A function with a parameter `tools` gets the schemas."""

    def llm(_messages: list[JSON], tools: list[JSON]) -> JSON:
        return {"content": None, "tool_calls": CALLS[: len(tools)]}

    pieces, completion = await ask(llm, tools=[TOOL], stream=True)
    assert completion.message == {"role": "assistant", "content": None, "tool_calls": CALLS[:1]}
    assert (pieces, completion.text) == ([], "")


async def test_function_message_is_kept() -> None:
    """A dict that a function returns keeps every key, known here or not."""
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2", "refusal": None}
    _, completion = await ask(lambda _: message)
    assert completion.message == message


_user = ContextVar("user", default="nobody")


async def test_sync_function_runs_in_a_thread() -> None:
    """A function that isn't async doesn't block the event loop, and sees the caller's context."""
    running, released = threading.Event(), threading.Event()

    def llm(_messages: list[JSON]) -> Iterator[str]:
        running.set()
        yield f"released: {released.wait(5)}, "
        yield _user.get()

    _user.set("ann")
    answer = asyncio.create_task(ask(llm))
    assert await asyncio.to_thread(running.wait, 5)
    released.set()
    assert (await answer)[1] == said("released: True, ann")


async def test_function_gets_a_copy() -> None:
    """A function that changes its list of messages changes nobody else's."""

    def llm(messages: list[JSON]) -> str:
        messages.append({"role": "user", "content": "more"})
        return "done"

    messages = list(HELLO)
    await ask(llm, messages)
    assert messages == HELLO


@pytest.mark.parametrize("sync", [True, False])
async def test_generator_is_closed(*, sync: bool) -> None:
    """A stream that is left early closes the function's generator."""
    closed: list[bool] = []

    def sync_llm(_messages: list[JSON]) -> Iterator[str]:
        try:
            yield from "abc"
        finally:
            closed.append(True)

    async def async_llm(_messages: list[JSON]) -> AsyncGenerator[str, None]:
        try:
            for letter in "abc":
                yield letter
        finally:
            closed.append(True)

    model = resolve(sync_llm if sync else async_llm)
    async with aclosing(model.respond(HELLO, tools=[], stream=True)) as answer:
        assert await anext(answer) == "a"
        assert closed == []
    assert closed == [True]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda _: None, "returned NoneType"),
        (lambda _: ["secret"], "returned list"),
        (lambda _: {"choices": ["secret"]}, "returned a dict that is no assistant message"),
        (lambda _: {"role": "user", "content": "secret"}, "returned a dict that is no assistant"),
        (lambda _: iter(["secret"]), "returned list_iterator"),
        (lambda _: (letter for letter in [b"secret"]), "yielded bytes"),
    ],
)
async def test_wrong_answer(function: Callable[..., Any], what: str) -> None:
    """What isn't an answer is refused with what it is and what is expected, not with its words."""
    with pytest.raises(ConfigurationError) as refusal:
        await ask(function)
    assert f"llm function <lambda> {what}" in str(refusal.value)
    assert "return str, an assistant message as a dict in OpenAI's format" in str(refusal.value)
    assert "secret" not in str(refusal.value)


async def test_function_failure() -> None:
    """What a function raises is raised, itself."""
    failure = KeyError("mine")

    def llm(_messages: list[JSON]) -> str:
        raise failure

    with pytest.raises(KeyError) as raised:
        await ask(llm)
    assert raised.value is failure


async def test_exhausted_script() -> None:
    """A function that raises StopIteration in its thread fails, instead of hanging."""
    answers = iter(["first"])

    def llm(_messages: list[JSON]) -> str:
        return next(answers)

    assert (await ask(llm))[1] == said("first")
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await ask(llm)


async def test_own_model() -> None:
    """An object with the method of a model is used as it is."""

    class Echo:
        async def respond(
            self, messages: list[JSON], *, tools: list[JSON], stream: bool
        ) -> AsyncGenerator[str | Completion, None]:
            yield said(messages[-1]["content"])

    model = Echo()
    assert resolve(model) is model
    assert (await ask(model))[1] == said("My name is Alice")


# Which model


async def test_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llm and without a key or a URL, the error names the three ways out."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with pytest.raises(ConfigurationError) as refusal:
        resolve(None)
    for way in ("a function as llm=", "OPENAI_API_KEY", 'llm="model-name"', 'llm="offline"'):
        assert way in str(refusal.value)


@pytest.mark.parametrize(("named", "model"), [(None, DEFAULT_MODEL), ("local", "local")])
async def test_model_of_environment(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, named: str | None, model: str
) -> None:
    """Without llm, the model is the one that OPENAI_MODEL names."""
    if named:
        monkeypatch.setenv("OPENAI_MODEL", named)
    assert (await ask(None))[1].text == "Hello, Alice!"
    assert server.requests == [{"model": model, "messages": HELLO}]


@pytest.mark.usefixtures("server")
async def test_url_without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server at home needs its URL, and no key."""
    monkeypatch.delenv("OPENAI_API_KEY")
    assert (await ask(None))[1].text == "Hello, Alice!"


async def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the openai package, naming a model tells the command that installs it."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "agentstore-sdk\[openai\]"'):
        resolve("gpt")


async def test_what_is_no_model() -> None:
    """What can't be a model is refused with what can."""
    with pytest.raises(ConfigurationError, match="llm= can't be int: pass a function"):
        resolve(7)  # type: ignore[arg-type]  # the case


async def test_import_is_light() -> None:
    """Importing the module doesn't import openai."""
    code = "import sys, agentstore.models; sys.exit('openai' in sys.modules)"
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await done.wait() == 0


# Offline


async def test_offline_remembers() -> None:
    """The offline model answers with the name that the messages hold, and says what it is."""
    messages: list[JSON] = [
        {"role": "user", "content": "my name is Bob"},
        {"role": "user", "content": "Sorry, my name is Alice."},
        {"role": "assistant", "content": "My name is Robot"},
        {"role": "user", "content": [{"type": "text", "text": "What's my name?"}]},
    ]
    assert (await ask("offline", messages))[1] == said(
        "Your name is Alice, says the offline model."
    )


async def test_offline_repeats() -> None:
    """For the rest, the offline model says what it is, what it was sent, and the last words."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    assert (await ask("offline", messages))[1] == said(
        "This is the offline model. It was sent 2 messages, and at last: Hello!"
    )


# An endpoint

ANSWERS: list[JSON] = [
    {"role": "assistant", "content": "Two words,\n\nor three. ", "refusal": None},
    {"role": "assistant", "content": None, "refusal": "I can't do that."},
    {"role": "assistant", "content": None, "refusal": None, "tool_calls": CALLS},
    {"role": "assistant", "content": "Let me add.", "refusal": None, "tool_calls": CALLS[:1]},
    {
        "role": "assistant",
        "content": "4",
        "refusal": None,
        "reasoning_content": "2 + 2 is 4",
        "annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.org"}}],
        "vendor": {"score": 1},
    },
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("stream", [False, True])
async def test_endpoint_message(server: OpenAIServer, answer: JSON, *, stream: bool) -> None:
    """An endpoint's message arrives key for key, streamed or not; the pieces are its text."""
    server.reply = lambda _messages, _tools: answer
    pieces, completion = await ask("gpt", stream=stream)
    assert completion.message == answer
    assert "".join(pieces) == (completion.text if stream else "")
    assert completion.text == (answer["content"] or "") + (answer["refusal"] or "")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("server")
async def test_usage(*, stream: bool) -> None:
    """The tokens that the endpoint counted come with the completion, streamed or not."""
    _, completion = await ask("gpt", stream=stream)
    assert completion.usage == Usage(input_tokens=4, output_tokens=2)


async def test_tools_are_sent(server: OpenAIServer) -> None:
    """Schemas go to the endpoint as they are."""
    await ask("gpt", tools=[TOOL])
    assert server.requests[0]["tools"] == [TOOL]


async def test_streamed_calls_that_repeat(server: OpenAIServer) -> None:
    """A streamed call is put together also where the endpoint repeats its id, type and name."""
    server.repeats = True
    server.reply = lambda _messages, _tools: {"tool_calls": CALLS}
    _, completion = await ask("gpt", stream=True)
    assert completion.message["tool_calls"] == CALLS


@pytest.mark.parametrize(
    "answer",
    [
        {"content": None, "reasoning_content": "cut off within the thoughts"},
        {"content": "4", "tool_calls": [], "function_call": None, "audio": None},
    ],
)
async def test_answers_are_taken_back(server: OpenAIServer, answer: JSON) -> None:
    """What an endpoint answers is sent back in a form that endpoints take, and kept as it was."""
    server.reply = lambda messages, _tools: answer if len(messages) == 1 else "fine"
    _, first = await ask("gpt")
    kept = dict(first.message)
    assert complaint([*HELLO, kept]) is not None
    _, second = await ask("gpt", [*HELLO, first.message, *HELLO])
    assert second.text == "fine"
    assert first.message == kept == {"role": "assistant", "refusal": None, **answer}


ASKED: JSON = {"role": "assistant", "content": None, "tool_calls": CALLS[:2]}
RESULTS = [{"role": "tool", "content": "3", "tool_call_id": call["id"]} for call in CALLS[:2]]


async def test_exchange(server: OpenAIServer) -> None:
    """Calls and their results, in any order, reach the endpoint as they are."""
    messages = [*HELLO, ASKED, *reversed(RESULTS), *HELLO]
    assert (await ask("gpt", messages))[1].text == "Hello, Alice!"
    sent = server.requests[0]["messages"]
    assert sent == [*HELLO, {**ASKED, "content": ""}, *reversed(RESULTS), *HELLO]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (RESULTS[:1], "messages with role 'tool' must be a response"),
        ([ASKED, RESULTS[0], RESULTS[0]], "messages with role 'tool' must be a response"),
        ([ASKED, RESULTS[0]], "without a response are: call_1"),
        ([ASKED, RESULTS[0], *HELLO, RESULTS[1]], "without a response are: call_1"),
        ([{"role": "robot", "content": "beep"}], "invalid value for 'role'"),
        ([{"role": "user", "content": None}], "invalid value for 'content'"),
        ([], "is too short"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("server")
async def test_refused_messages(messages: list[JSON], problem: str, *, stream: bool) -> None:
    """What the endpoint refuses is raised as the openai package raises it."""
    with pytest.raises(openai.BadRequestError, match=problem):
        await ask("gpt", messages, stream=stream)


async def test_retries(server: OpenAIServer) -> None:
    """The openai package tries three times."""
    server.reply = lambda _messages, _tools: Fault.ERROR
    with pytest.raises(openai.InternalServerError):
        await ask("gpt")
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.END])
async def test_broken_stream(server: OpenAIServer, fault: Fault) -> None:
    """A stream that ends before its answer is an error, whether it was cut or ended in order."""
    server.reply = lambda _messages, _tools: fault
    answer = resolve("gpt").respond(HELLO, tools=[], stream=True)
    async with aclosing(answer):
        assert await anext(answer) == "one "
        with pytest.raises(openai.APIConnectionError):
            await anext(answer)


async def test_answer_without_choice(server: OpenAIServer) -> None:
    """An endpoint that answers 200 without a choice is an error that holds what it said."""
    server.reply = lambda _messages, _tools: Fault.EMPTY
    with pytest.raises(openai.APIResponseValidationError) as raised:
        await ask("gpt")
    assert raised.value.body == {"choices": None, "error": {"message": "out of credit"}}


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled(server: OpenAIServer, *, stream: bool) -> None:
    """A call that hangs can be cancelled, and the model answers the next one."""
    model = resolve("gpt")
    received = threading.Event()

    def hang(_messages: list[JSON], _tools: list[JSON]) -> Fault:
        received.set()
        return Fault.HANG

    server.reply = hang
    task = asyncio.create_task(ask(model, stream=stream))
    assert await asyncio.to_thread(received.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.reply = lambda _messages, _tools: "still here"
    assert (await ask(model, stream=stream))[1].text == "still here"


@pytest.mark.usefixtures("server")
async def test_stream_left_early() -> None:
    """A stream that is left early leaves the model usable."""
    model = resolve("gpt")
    async with aclosing(model.respond(HELLO, tools=[], stream=True)) as answer:
        assert await anext(answer) == "Hello, "
    assert (await ask(model, stream=True))[1].text == "Hello, Alice!"


async def test_connection_is_kept(server: OpenAIServer) -> None:
    """Calls on one event loop share a connection, streamed or not."""
    model = resolve("gpt")
    for stream in (False, True, False):
        await ask(model, stream=stream)
    assert server.connections == 1


async def test_several_loops(server: OpenAIServer) -> None:
    """One model serves several event loops, and closes its connections when one ends."""
    model = resolve("gpt")
    for stream in (False, True):
        await asyncio.to_thread(asyncio.run, ask(model, stream=stream))
    assert server.connections == 2
    assert await asyncio.to_thread(server.wait_disconnected)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # such a loop leaves its sockets open
@pytest.mark.usefixtures("server")
async def test_loop_closed_by_hand() -> None:
    """A loop that was closed without its async generators isn't kept for ever."""
    model = resolve("gpt")

    def by_hand() -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask(model))
        loop.close()
        return weakref.ref(loop)

    first = await asyncio.to_thread(by_hand)
    await ask(model)
    gc.collect()
    assert first() is None
