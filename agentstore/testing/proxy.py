"""A TCP proxy that breaks connections on purpose, to stand between a client and a real server.

::

    with FaultProxy("127.0.0.1", 6379) as proxy:      # or `async with`
        client = connect(proxy.host, proxy.port)
        proxy.inject(CutReply(b"INCR"))               # the next INCR is applied, its answer lost
        ...
        proxy.inject(Blackhole())                     # silence, until
        proxy.heal()                                  # bytes pass again

The proxy runs on a thread of its own.
So it serves blocking and async clients alike, and an event loop under test can't slow it down.
A fault may be injected from any thread, at any time, and is in force when the call returns.

A request is what a client sends before the server's next bytes, and those bytes are its reply: this
fits protocols that ask and answer, where a pipeline then is one request.
Under TLS no pattern matches, and the first requests of a connection are its handshake.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Self

__all__ = [
    "Blackhole",
    "CutReply",
    "CutRequest",
    "Eof",
    "Fault",
    "FaultProxy",
    "Latency",
    "Refuse",
    "Reset",
]

_CHUNK = 2**20
_PATIENCE = 5.0
_LINGER_NOT = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong, and on which connections: those open when it is injected, those later."""

    existing: bool = True
    new: bool = True


@dataclass(frozen=True, slots=True)
class Refuse(Fault):
    """Refuse new connections, as no server listens; existing ones are reset, as it was killed."""


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """Reset existing connections (RST) at once, and new ones as soon as they are accepted.

    A client may meet the reset in its `connect` already.
    """


@dataclass(frozen=True, slots=True)
class Eof(Fault):
    """End existing connections (FIN) at once, and new ones as soon as they are accepted.

    A client that still sends on an existing one is reset, as by a server that is gone.
    """


@dataclass(frozen=True, slots=True)
class Blackhole(Fault):
    """Accept connections and let nothing through, in either direction.

    Bytes are held, and the end of file too, as TCP sends again what a broken network lost.
    So a request may reach the server when the fault is lifted, long after its client gave up.
    """


@dataclass(frozen=True, slots=True)
class Latency(Fault):
    """Delay every chunk by `seconds`, each way, and a new connection to the server as well.

    What arrives during the delay goes out together after the next one.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class _Cut(Fault):
    match: bytes = b""
    times: int = 1

    def hits(self, request: bytearray, arrived: int) -> bool:
        """Say whether a match ends within the bytes that `arrived` last."""
        return request.find(self.match, max(0, len(request) - arrived - len(self.match) + 1)) >= 0


@dataclass(frozen=True, slots=True)
class CutReply(_Cut):
    """Let the next request with `match` in it work, drop its reply and reset the connection.

    The server's first bytes after the request stand for the whole reply.
    After so many `times` the proxy is healed again: its `fault` is `None`.
    """


@dataclass(frozen=True, slots=True)
class CutRequest(_Cut):
    """Reset the connection in place of forwarding the next request with `match` in it.

    Of a request that comes in pieces, those before the match have reached the server.
    After so many `times` the proxy is healed again: its `fault` is `None`.
    """


class _Link:
    """One client's connection and the proxy's own to the server."""

    def __init__(self, number: int, client: asyncio.StreamWriter) -> None:
        self.number = number
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.request = bytearray()
        self.cut = False

    def reset(self) -> None:
        for writer in filter(None, (self.client, self.server)):
            if not writer.transport.is_closing():
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()


class FaultProxy:
    """Forward a free port on loopback to `host` and `port`, and do it badly when told to.

    The counters only grow; take differences.
    `connections` are those accepted, `requests` those read from clients, forwarded or not, and the
    bytes are those forwarded.
    On exit every connection is reset.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0
        self.requests = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self._target = host, port
        self._listener: socket.socket | None = None
        self._fault: Fault | None = None
        self._changed = asyncio.Event()
        self._cuts_left = 0
        self._newest_existing = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._loop = asyncio.SelectorEventLoop()  # whatever loop the program under test prefers
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="FaultProxy", daemon=True
        )
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    # Entering and leaving wait for the proxy's thread alone, and that for about a millisecond.
    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    @property
    def fault(self) -> Fault | None:
        """What goes wrong now; `None` while all bytes pass."""
        return self._fault

    def inject(self, fault: Fault) -> None:
        """Let `fault` be what goes wrong from now on, in place of any other."""
        self._run(self._set(fault))

    def heal(self) -> None:
        """Let bytes pass again, and connections be made."""
        self._run(self._set(None))

    def _run(self, coroutine: Coroutine[object, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            self._listener.settimeout(0)
            self.port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _close(self) -> None:
        self._stop_listening()
        await asyncio.sleep(0)  # a task that never started would not close its socket
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The loop closes the sockets of what is reset here before it answers the caller.
    async def _set(self, fault: Fault | None) -> None:
        self._fault = fault
        self._cuts_left = fault.times if isinstance(fault, _Cut) else 0
        self._newest_existing = self.connections
        self._changed.set()
        self._changed = asyncio.Event()
        if isinstance(fault, Refuse) and fault.new:
            self._stop_listening()
        else:
            self._listen()
        for link in self._links:
            match self._fault_of(link):
                case Refuse() | Reset():
                    link.reset()
                case Eof() if link.server:
                    link.server.close()  # its end of file then reaches the client
                case _:
                    pass

    def _fault_of(self, link: _Link) -> Fault | None:
        if self._fault is None:
            return None
        is_existing = link.number <= self._newest_existing
        return self._fault if (self._fault.existing if is_existing else self._fault.new) else None

    async def _admit(self, link: _Link) -> Fault | None:
        """Wait while the fault of `link` holds its bytes back; return the one in force then."""
        if isinstance(fault := self._fault_of(link), Latency):
            await asyncio.sleep(fault.seconds)
        while isinstance(fault := self._fault_of(link), Blackhole):
            await self._changed.wait()
        return fault

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(0)
        task = self._loop.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        client, writer = await asyncio.open_connection(sock=connection, limit=_CHUNK)
        self.connections += 1
        link = _Link(self.connections, writer)
        self._links.add(link)
        try:
            match await self._admit(link):
                case Refuse() | Reset():
                    return
                case Eof():
                    await self._end(client, writer)
                case _:
                    await self._forward(link, client)
        except* OSError:
            pass  # either side broke, or the server can't be reached: the other gets a reset
        finally:
            self._links.discard(link)
            link.reset()

    async def _end(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        while await client.read(_CHUNK):
            pass  # closed with bytes unread, the connection would be reset

    async def _forward(self, link: _Link, client: asyncio.StreamReader) -> None:
        server, link.server = await asyncio.open_connection(*self._target, limit=_CHUNK)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump_requests(link, client, link.server))
            pumps.create_task(self._pump_replies(link, server, link.client))
        for writer in (link.client, link.server):
            writer.close()
            await writer.wait_closed()

    async def _pump_requests(
        self, link: _Link, client: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        while data := await client.read(_CHUNK):
            if not link.request:
                self.requests += 1
            link.request += data
            fault = await self._admit(link)
            if isinstance(fault, _Cut) and not link.cut and fault.hits(link.request, len(data)):
                self._cuts_left -= 1
                if not self._cuts_left:
                    self._fault = None
                if isinstance(fault, CutRequest):
                    link.reset()
                    return
                link.cut = True
            self.bytes_to_server += len(data)
            server.write(data)
            await server.drain()
        await self._admit(link)
        server.write_eof()

    async def _pump_replies(
        self, link: _Link, server: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        while data := await server.read(_CHUNK):
            await self._admit(link)
            if link.cut:
                link.reset()
                return
            link.request.clear()
            self.bytes_to_client += len(data)
            client.write(data)
            await client.drain()
        await self._admit(link)
        client.write_eof()
