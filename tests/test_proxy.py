"""The fault proxy, against a small server of our own and against a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentstore.testing.proxy import (
    Blackhole,
    CutReply,
    CutRequest,
    Eof,
    Fault,
    FaultProxy,
    Latency,
    Refuse,
    Reset,
)

SOON = 5.0  # longer than anything here takes


class Upper:
    """A server that answers a line with the same line in capitals, and keeps what it was sent."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(line.upper())
        self.ended += 1
        writer.close()


@pytest_asyncio.fixture
async def upper() -> AsyncIterator[Upper]:
    upper = Upper()
    server = await asyncio.start_server(upper.serve, "127.0.0.1", 0)
    upper.port = server.sockets[0].getsockname()[1]
    async with server:
        yield upper


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def line(self, within: float = SOON) -> bytes:
        return await asyncio.wait_for(self.reader.readline(), within)

    async def ask(self, line: bytes) -> bytes:
        await self.send(line)
        return await self.line()


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


@pytest.mark.asyncio
async def test_bytes_pass_and_are_counted(upper: Upper) -> None:
    """Without a fault bytes pass both ways; connections, requests and bytes are counted."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        async with connected(proxy) as one, connected(proxy) as two:
            assert await one.ask(b"ab\n") == b"AB\n"
            assert await one.ask(b"cde\n") == b"CDE\n"
            assert await two.ask(b"f\n") == b"F\n"
        assert (proxy.connections, proxy.requests) == (2, 3)
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == (9, 9)


@pytest.mark.asyncio
async def test_a_large_reply_passes_whole(upper: Upper) -> None:
    """A reply of many chunks, to a slow client that has said goodbye already, comes whole."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as client:
        lines = [b"%d" % number * 1000 + b"\n" for number in range(2000)]
        await client.send(b"".join(lines))
        client.writer.write_eof()
        await asyncio.sleep(0.1)
        assert [await client.line() for _ in lines] == lines
        assert await client.line() == b""


@pytest.mark.asyncio
async def test_a_server_that_is_down_resets() -> None:
    """With no server behind it the proxy resets its client."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with FaultProxy("127.0.0.1", port) as proxy:
        with pytest.raises(ConnectionResetError):
            async with connected(proxy) as client:
                await client.line()


@pytest.mark.asyncio
async def test_refuse(upper: Upper) -> None:
    """New connections are refused, existing ones reset; lifted, the same port serves again."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        port = proxy.port
        async with connected(proxy) as client:
            assert await client.ask(b"a\n") == b"A\n"
            proxy.inject(Refuse())
            with pytest.raises(ConnectionResetError):
                await client.line()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, port)
        proxy.heal()
        assert proxy.port == port
        async with connected(proxy) as client:
            assert await client.ask(b"b\n") == b"B\n"


@pytest.mark.asyncio
async def test_refuse_new_connections_only(upper: Upper) -> None:
    """With `existing=False` an open connection goes on while new ones are refused."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as client:
        assert await client.ask(b"a\n") == b"A\n"
        proxy.inject(Refuse(existing=False))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        assert await client.ask(b"b\n") == b"B\n"


@pytest.mark.asyncio
async def test_reset(upper: Upper) -> None:
    """An existing connection is reset at once, a new one as soon as it is accepted."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as existing:
        assert await existing.ask(b"a\n") == b"A\n"
        proxy.inject(Reset())
        with pytest.raises(ConnectionResetError):
            await existing.line()
        with pytest.raises(ConnectionResetError):
            async with connected(proxy) as new:
                await new.line()
        assert upper.connections == 1


@pytest.mark.asyncio
async def test_eof(upper: Upper) -> None:
    """Existing and new connections end with an end of file, even if the client has just sent."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as existing:
        assert await existing.ask(b"a\n") == b"A\n"
        proxy.inject(Eof())
        assert await existing.line() == b""
        async with connected(proxy) as new:
            assert await new.ask(b"b\n") == b""
        assert upper.lines == [b"a\n"]


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [Reset(new=False), Eof(new=False), Blackhole(new=False)], ids=str)
async def test_existing_connections_only(upper: Upper, fault: Fault) -> None:
    """With `new=False` pooled connections break and a client that connects again is served."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as existing:
        assert await existing.ask(b"a\n") == b"A\n"
        proxy.inject(fault)
        async with connected(proxy) as new:
            assert await new.ask(b"b\n") == b"B\n"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError, TimeoutError)):
            await asyncio.wait_for(existing.reader.readexactly(1), 0.1)


@pytest.mark.asyncio
async def test_blackhole_holds_bytes(upper: Upper) -> None:
    """Nothing reaches either side; once lifted, all that was sent arrives in order."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as existing:
        assert await existing.ask(b"a\n") == b"A\n"
        proxy.inject(Blackhole())
        async with connected(proxy) as new:
            await existing.send(b"b\n")
            await new.send(b"c\n")
            for client in (existing, new):
                with pytest.raises(TimeoutError):
                    await client.line(within=0.1)
            assert upper.lines == [b"a\n"]
            assert upper.connections == 1
            await existing.send(b"d\n")
            proxy.heal()
            assert [await existing.line(), await existing.line()] == [b"B\n", b"D\n"]
            assert await new.line() == b"C\n"


@pytest.mark.asyncio
async def test_blackhole_holds_the_end_of_file(upper: Upper) -> None:
    """Neither side learns that the other has closed, until the fault is lifted."""
    async with (
        FaultProxy("127.0.0.1", upper.port) as proxy,
        connected(proxy) as closing,
        connected(proxy) as closed,
    ):
        assert await closing.ask(b"a\n") == b"A\n"
        assert await closed.ask(b"b\n") == b"B\n"
        proxy.inject(Blackhole())
        closing.writer.write_eof()
        upper.writers[1].write_eof()
        with pytest.raises(TimeoutError):
            await closed.line(within=0.1)
        assert upper.ended == 0
        proxy.heal()
        assert [await closing.line(), await closed.line()] == [b"", b""]
        assert upper.ended == 1


@pytest.mark.asyncio
async def test_latency(upper: Upper) -> None:
    """A request and its reply are late by the latency each; without the fault they are not."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as client:
        assert await client.ask(b"a\n") == b"A\n"
        proxy.inject(Latency(0.1))
        started = time.monotonic()
        assert await client.ask(b"b\n") == b"B\n"
        assert 0.2 <= time.monotonic() - started < SOON
        proxy.heal()
        started = time.monotonic()
        assert await client.ask(b"c\n") == b"C\n"
        assert time.monotonic() - started < 0.2


@pytest.mark.asyncio
async def test_cut_reply(upper: Upper) -> None:
    """The server gets the request, the client a reset, and the next connection is served."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        async with connected(proxy) as client:
            assert await client.ask(b"a\n") == b"A\n"
            proxy.inject(CutReply())
            with pytest.raises(ConnectionResetError):
                await client.ask(b"b\n")
        assert upper.lines == [b"a\n", b"b\n"]
        assert proxy.fault is None
        async with connected(proxy) as client:
            assert await client.ask(b"c\n") == b"C\n"
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == (6, 4)


@pytest.mark.asyncio
async def test_cut_request(upper: Upper) -> None:
    """The client is reset, and the server has never seen the request."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        async with connected(proxy) as client:
            assert await client.ask(b"a\n") == b"A\n"
            proxy.inject(CutRequest())
            with pytest.raises(ConnectionResetError):
                await client.ask(b"b\n")
        assert proxy.fault is None
        async with connected(proxy) as client:
            assert await client.ask(b"c\n") == b"C\n"
        assert upper.lines == [b"a\n", b"c\n"]
        assert proxy.requests == 3


@pytest.mark.asyncio
async def test_cut_waits_for_its_pattern(upper: Upper) -> None:
    """Requests without the pattern pass; one that has it in two pieces is cut."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy, connected(proxy) as client:
        proxy.inject(CutReply(b"COMMIT"))
        assert await client.ask(b"com\n") == b"COM\n"
        assert await client.ask(b"mit\n") == b"MIT\n"
        await client.send(b"xCOM")
        await asyncio.sleep(0.05)
        assert proxy.bytes_to_server == len(b"com\nmit\nxCOM")
        with pytest.raises(ConnectionResetError):
            await client.ask(b"MITx\n")
        assert upper.lines[-1] == b"xCOMMITx\n"
        assert proxy.fault is None


@pytest.mark.asyncio
async def test_cut_times(upper: Upper) -> None:
    """So many requests are cut, in one piece or two, and the one after them is served."""
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        proxy.inject(CutReply(times=3))
        for _ in range(3):
            assert proxy.fault == CutReply(times=3)
            async with connected(proxy) as client:
                sent = proxy.bytes_to_server
                await client.send(b"a")
                await asyncio.sleep(0.05)
                assert proxy.bytes_to_server == sent + 1
                with pytest.raises(ConnectionResetError):
                    await client.ask(b"b\n")
        assert proxy.fault is None
        async with connected(proxy) as client:
            assert await client.ask(b"c\n") == b"C\n"
        assert upper.lines == [b"ab\n"] * 3 + [b"c\n"]


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [CutReply(b"-"), Blackhole(), Eof(), Latency(60.0)], ids=str)
async def test_exit_closes_everything(upper: Upper, fault: Fault) -> None:
    """Leaving takes no time, whatever hangs, resets every client and ends the thread."""
    threads = threading.active_count()
    async with FaultProxy("127.0.0.1", upper.port) as proxy:
        existing = await asyncio.open_connection(proxy.host, proxy.port)
        existing[1].write(b"a\n")
        assert await existing[0].readline() == b"A\n"
        proxy.inject(fault)
        new = await asyncio.open_connection(proxy.host, proxy.port)
        for _, writer in (existing, new):
            writer.write(b"b\n" * 1000)
        await asyncio.sleep(0.05)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    assert threading.active_count() == threads
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    for reader, writer in (existing, new):
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), SOON)
        writer.transport.abort()


def test_exit_while_clients_connect() -> None:
    """A connection that is accepted at the last moment is closed as well."""
    for _ in range(100):
        with FaultProxy("127.0.0.1", 1) as proxy:
            client = socket.create_connection((proxy.host, proxy.port))
        client.close()
    gc.collect()  # a socket left open would warn now


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis of our own, without persistence."""
    if not (binary := shutil.which("redis-server")):
        if os.environ.get("AGENTSTORE_REQUIRE_SERVERS") == "1":
            pytest.fail("redis-server is not on PATH")
        pytest.skip("redis-server is not on PATH")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    directory: Path = tmp_path_factory.mktemp("redis")
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
    server = subprocess.Popen(
        [binary, "--port", str(port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + SOON
        while True:
            try:
                assert ask(port, "PING") == b"+PONG\r\n"
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "redis-server doesn't listen"
                time.sleep(0.02)
        yield port
    finally:
        server.kill()
        server.wait(SOON)


def ask(port: int, *words: str) -> bytes:
    """Send one command to a Redis and read its short reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as connection:
        connection.sendall(resp(*words))
        return connection.recv(1000)


def resp(*words: str) -> bytes:
    return f"*{len(words)}\r\n".encode() + b"".join(
        f"${len(word)}\r\n{word}\r\n".encode() for word in words
    )


def test_redis_applies_a_write_whose_reply_is_cut(redis_port: int) -> None:
    """A blocking client sees a reset, and the server has applied its INCR once."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        proxy.inject(CutReply(b"INCR"))
        assert ask(proxy.port, "PING") == b"+PONG\r\n"
        with pytest.raises(ConnectionResetError):
            ask(proxy.port, "INCR", "cut-reply")
        assert proxy.fault is None
        assert ask(proxy.port, "GET", "cut-reply") == b"$1\r\n1\r\n"


def test_redis_never_sees_a_request_that_is_cut(redis_port: int) -> None:
    """A blocking client sees a reset, and the server has applied nothing."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        proxy.inject(CutRequest(b"INCR"))
        with pytest.raises(ConnectionResetError):
            ask(proxy.port, "INCR", "cut-request")
        assert ask(proxy.port, "GET", "cut-request") == b"$-1\r\n"


def test_redis_applies_a_held_write_after_its_client_gave_up(redis_port: int) -> None:
    """What a blackhole held is applied when it is lifted, though nobody waits for it now."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        with socket.create_connection((proxy.host, proxy.port), timeout=0.1) as client:
            client.sendall(resp("PING"))
            assert client.recv(1000) == b"+PONG\r\n"
            proxy.inject(Blackhole())
            client.sendall(resp("INCR", "held"))
            with pytest.raises(TimeoutError):
                client.recv(1000)
        assert ask(redis_port, "GET", "held") == b"$-1\r\n"
        proxy.heal()
        deadline = time.monotonic() + SOON
        while ask(redis_port, "GET", "held") != b"$1\r\n1\r\n":
            assert time.monotonic() < deadline


def test_a_fault_is_in_force_when_the_call_returns(redis_port: int) -> None:
    """No client has to wait for the fault that was injected."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        for fault in [Reset(), Refuse()] * 10:
            with socket.create_connection((proxy.host, proxy.port), timeout=SOON) as client:
                client.sendall(resp("PING"))
                assert client.recv(1000) == b"+PONG\r\n"
                proxy.inject(fault)
                with pytest.raises(ConnectionResetError):
                    client.recv(1000, socket.MSG_DONTWAIT)
            proxy.heal()


def test_eof_is_no_reset(redis_port: int) -> None:
    """A new client meets an end of file, however late and however much it sends before it reads."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        proxy.inject(Eof())
        with socket.create_connection((proxy.host, proxy.port), timeout=SOON) as client:
            for _ in range(3):
                time.sleep(0.02)
                client.sendall(resp("PING"))
            assert client.recv(1000) == b""


def test_faults_are_set_from_any_thread(redis_port: int) -> None:
    """While clients run in threads, faults come and go, and every client is served in the end."""
    with FaultProxy("127.0.0.1", redis_port) as proxy:
        done = threading.Event()
        served = [0, 0]

        def work(index: int) -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    served[index] += ask(proxy.port, "PING") == b"+PONG\r\n"

        workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for worker in workers:
            worker.start()
        for fault in [Reset(), Refuse(), Eof(), CutReply(), Blackhole(), Latency(0.001)] * 5:
            proxy.inject(fault)
            time.sleep(0.01)
        proxy.heal()
        before = list(served)
        time.sleep(0.2)
        done.set()
        for worker in workers:
            worker.join(SOON)
        assert [now > then for now, then in zip(served, before, strict=True)] == [True, True]
