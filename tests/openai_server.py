"""An endpoint that speaks OpenAI's chat completions, on the loopback, for tests.

It refuses the lists of messages that a real endpoint refuses, which is half of its use.
"""

from __future__ import annotations

import enum
import itertools
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

import pytest

JSON = dict[str, Any]


class Fault(enum.Enum):
    """What a script returns instead of an answer."""

    ERROR = "status 500"
    HANG = "no answer until the server closes"
    CUT = "a connection cut in the middle of the answer"
    END = "a stream that ends in good order before the answer is whole"
    EMPTY = "status 200 with an error and no choices, as some proxies have it"


Script = Callable[[list[JSON], list[JSON]], str | JSON | Fault]


def remember(messages: list[JSON], _tools: list[JSON]) -> str:
    """Greet whoever gives a name, and tell it when asked; all from the messages that were sent."""
    words = [str(message["content"]) for message in messages if message["role"] == "user"]
    names = re.findall(r"My name is (\w+)", " ".join(words))
    if "my name?" in words[-1]:
        return f"Your name is {names[-1]}." if names else "You haven't told me your name."
    return f"Hello, {names[-1]}!" if names else "Hello!"


class OpenAIServer:
    """The server, from `with` on.

    `reply` answers each request; set it to a function of the messages and the tools that returns
    text, an assistant message or a `Fault`.
    `repeats` sends id, type and name of a call with each streamed piece, as some endpoints do.
    `requests` are the bodies that came, refused ones too; `connections` counts what they came by,
    `connected` those that are open.
    """

    def __init__(self, reply: Script = remember) -> None:
        self.reply = reply
        self.requests: list[JSON] = []
        self.repeats = False
        self.connections = 0
        self.connected = 0
        self.closed = threading.Event()
        self._counted = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self, *, connections: int = 0, connected: int) -> None:
        """Count a connection that came or went."""
        with self._counted:
            self.connections += connections
            self.connected += connected
            self._counted.notify_all()

    def wait_disconnected(self) -> bool:
        """Wait until no connection is open, for up to five seconds."""
        with self._counted:
            return self._counted.wait_for(lambda: self.connected == 0, timeout=5)


@pytest.fixture
def openai_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """Run a server, with the environment pointing to it."""
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.delenv("OPENAI_MODEL", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def complaint(messages: list[JSON]) -> str | None:
    """Say why a real endpoint refuses these messages, in about its words."""
    unanswered: set[str] = set()
    for place, message in enumerate(messages):
        if problem := _malformed(message):
            return f"messages.[{place}]: {problem}"
        if message["role"] == "tool":
            if message.get("tool_call_id") not in unanswered:
                return (
                    f"messages.[{place}]: messages with role 'tool' must be a response to a "
                    "preceding message with 'tool_calls'."
                )
            unanswered.remove(message["tool_call_id"])
        elif unanswered:
            break
        else:
            unanswered = {call["id"] for call in message.get("tool_calls", ())}
    if unanswered:
        return (
            "an assistant message with 'tool_calls' must be followed by tool messages responding "
            f"to each 'tool_call_id'; without a response are: {', '.join(sorted(unanswered))}."
        )
    return None if messages else "[] is too short - 'messages'."


def _malformed(message: JSON) -> str | None:
    if message.get("role") not in _ROLES:
        return f"invalid value for 'role': {message.get('role')!r}."
    for key in ("tool_calls", "function_call"):
        if key in message and (message["role"] != "assistant" or not message[key]):
            return f"invalid value for '{key}'."
    if message.get("content") is None and not message.keys() & {"tool_calls", "function_call"}:
        return "invalid value for 'content': expected a string, got null."
    return None


_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: OpenAIServer

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        # A client that went away is what some tests are about; a script that fails is not.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def owner(self) -> OpenAIServer:
        return cast("_Server", self.server).owner

    def setup(self) -> None:
        super().setup()
        self.owner.count(connections=1, connected=1)

    def finish(self) -> None:
        self.owner.count(connected=-1)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"unknown path {self.path}")
        elif not self.headers.get("Authorization", "").startswith("Bearer "):
            self._refuse(401, "you didn't provide an API key")
        else:
            self.owner.requests.append(request)
            problem = complaint(request["messages"])
            if problem is None and request.get("tools") == []:
                problem = "[] is too short - 'tools'"
            if problem is None:
                self._answer(request)
            else:
                self._refuse(400, problem)

    def _answer(self, request: JSON) -> None:
        answer = self.owner.reply(request["messages"], request.get("tools", []))
        if answer is Fault.ERROR:
            self._refuse(500, "the server had an error")
        elif answer is Fault.EMPTY:
            self._send(200, {"choices": None, "error": {"message": "out of credit"}})
        elif answer is Fault.HANG:
            self.owner.closed.wait(60)
            self.close_connection = True
        else:
            fault = answer if isinstance(answer, Fault) else None
            said = answer if isinstance(answer, dict) else {"content": answer}
            completion = _completion(request, {**_EMPTY, **(_LOST if fault else said)})
            if request.get("stream"):
                self._stream(list(_chunks(request, completion, repeats=self.owner.repeats)), fault)
            else:
                self._send(200, completion, cut=fault is not None)

    def _refuse(self, status: int, message: str) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": None}
        self._send(status, {"error": error})

    def _send(self, status: int, body: JSON, *, cut: bool = False) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._cut()

    def _stream(self, chunks: list[JSON], fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks[:2] if fault else chunks:
            self._chunk(f"data: {json.dumps(chunk)}\n\n")
        if fault is Fault.CUT:
            self._cut()
            return
        if fault is None:
            self._chunk("data: [DONE]\n\n")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _cut(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


_EMPTY = {"role": "assistant", "content": None, "refusal": None}
_LOST = {"content": "one two"}
_numbers = itertools.count(1)


def _completion(request: JSON, message: JSON) -> JSON:
    prompt = sum(len(str(sent.get("content") or "").split()) for sent in request["messages"])
    answer = len((message["content"] or "").split())
    return {
        "id": f"chatcmpl-{next(_numbers)}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        },
    }


def _chunks(request: JSON, completion: JSON, *, repeats: bool) -> Iterator[JSON]:
    """Take a completion apart as a stream does, ending with the usage if that was asked for."""
    choice = completion["choices"][0]
    head = {**completion, "object": "chat.completion.chunk", "usage": None}
    for delta in _deltas(choice["message"], repeats=repeats):
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {
        **head,
        "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}],
    }
    if request.get("stream_options", {}).get("include_usage"):
        yield {**head, "choices": [], "usage": completion["usage"]}


def _deltas(message: JSON, *, repeats: bool) -> Iterator[JSON]:
    yield {key: None if value is None else "" for key, value in message.items() if key in _TEXT} | {
        "role": "assistant"
    }
    for key, value in message.items():
        if key in _TEXT and value:
            yield from ({key: piece} for piece in re.findall(r"\S+\s*|\s+", value))
        elif key == "tool_calls":
            for index, call in enumerate(value):
                function = call["function"]
                yield {key: [{**call, "index": index, "function": {**function, "arguments": ""}}]}
                for start in range(0, len(function["arguments"]), 5):
                    more = {"arguments": function["arguments"][start : start + 5]}
                    if repeats:
                        more = {**call, "function": {**function, **more}}
                    else:
                        more = {"function": more}
                    yield {key: [{**more, "index": index}]}
        elif key not in _TEXT and key != "role":
            yield {key: value}


_TEXT = frozenset({"content", "refusal", "reasoning_content"})
