"""Nothing is given away to a server that can't be the right one."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from agentstore.errors import ConfigurationError, TLSError
from agentstore.url import URL
from agentstore_sql import MySQLDriver
from servers import PASSWORD, MariaDB

pytestmark = pytest.mark.asyncio

CLIENTS = pytest.mark.parametrize("client", ["aiomysql", "asyncmy"])
_PLUGIN_AUTH, _SECURE, _PROTOCOL_41, _CONNECT_DB = 1 << 19, 1 << 15, 1 << 9, 1 << 3


@dataclass
class Impostor:
    """A server that offers no TLS, asks for the password in plaintext, and notes what it gets."""

    greeting_plugin: bytes
    switch_to: bytes | None
    port: int = 0
    received: bytearray = field(default_factory=bytearray)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flags = _PLUGIN_AUTH | _SECURE | _PROTOCOL_41 | _CONNECT_DB
        greeting = (
            b"\x0a8.0.36\0"
            + struct.pack("<I", 7)
            + b"12345678\0"
            + struct.pack("<HBHHB", flags & 0xFFFF, 45, 2, flags >> 16, 21)
            + bytes(10)
            + b"123456789012\0"
            + self.greeting_plugin
            + b"\0"
        )
        writer.write(_packet(0, greeting))
        self.received += await reader.read(65_536)
        if self.switch_to:
            writer.write(_packet(2, b"\xfe" + self.switch_to + b"\0"))
        with suppress(ConnectionError):
            self.received += await reader.read(65_536)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def _packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


@asynccontextmanager
async def impostor(plugin: bytes, switch_to: bytes | None = None) -> AsyncIterator[Impostor]:
    one = Impostor(plugin, switch_to)
    server = await asyncio.start_server(one.accept, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*one.tasks), 5)


async def opens(url: str, **options: object) -> None:
    driver = MySQLDriver(URL.parse(url), **options)
    await driver.open()
    await driver.close()


@CLIENTS
@pytest.mark.parametrize("mode", ["REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"])
async def test_no_credential_goes_out_without_tls(client: str, mode: str) -> None:
    """Where TLS was asked for and isn't offered, neither user nor password is sent."""
    async with impostor(b"mysql_clear_password") as server:
        url = f"mysql+{client}://somebody:sentinel@127.0.0.1:{server.port}/d?ssl_mode={mode}"
        with pytest.raises(TLSError):
            await opens(url, connect_timeout=2)
        assert b"sentinel" not in server.received
        assert b"somebody" not in server.received


@CLIENTS
@pytest.mark.parametrize(
    ("plugin", "switch"),
    [
        (b"mysql_clear_password", None),
        (b"mysql_native_password", b"mysql_clear_password"),
        (b"mysql_native_password", b"dialog"),
    ],
)
async def test_password_never_goes_out_in_plaintext(
    client: str, plugin: bytes, switch: bytes | None
) -> None:
    """A server on a plain connection does not get the password, whatever it asks for."""
    async with impostor(plugin, switch) as server:
        url = f"mysql+{client}://somebody:sentinel@127.0.0.1:{server.port}/d"
        with pytest.raises(Exception):  # noqa: B017 - what it gets is what counts
            await opens(url, connect_timeout=2)
        assert b"sentinel" not in server.received


async def test_other_machines_are_verified() -> None:
    """Off this machine a verified connection is the default; a socket file needs none."""
    verified = MySQLDriver(URL.parse("mysql://u:p@db.example.org/d"))
    assert verified._target.ssl_mode == "VERIFY_IDENTITY"
    for url in ("mysql://u:p@127.0.0.1/d", "mysql://u:p@[::1]/d", "mysql:///d?unix_socket=/s"):
        assert MySQLDriver(URL.parse(url))._target.ssl_mode == "DISABLED"
    plain = MySQLDriver(URL.parse("mysql://u:p@db.example.org/d?ssl_mode=disabled"))
    assert plain._target.ssl_mode == "DISABLED"


@pytest.mark.parametrize("mode", ["PREFERRED", "perhaps"])
async def test_modes_that_promise_nothing_are_refused(mode: str) -> None:
    """`PREFERRED`, which an attacker can turn off, is refused, and so is what nobody knows."""
    with pytest.raises(ConfigurationError, match="VERIFY_IDENTITY"):
        MySQLDriver(URL.parse(f"mysql://u:p@db.example.org/d?ssl_mode={mode}"))


@CLIENTS
async def test_connections_are_encrypted(client: str) -> None:
    """With its authority known, a server is verified; the other modes ask for less."""
    with MariaDB(fsync=False, tls="127.0.0.1") as server:
        url = URL.parse(server.url.replace("mysql:", f"mysql+{client}:"))
        ca = str(server.ca)
        for options in (
            {"ssl_mode": "VERIFY_IDENTITY", "ssl_ca": ca},
            {"ssl_mode": "VERIFY_CA", "ssl_ca": ca},
            {"ssl_mode": "REQUIRED"},
            {"ssl_ca": ca},
        ):
            driver = MySQLDriver(url, **options)
            await driver.open()
            ((_, cipher),) = await driver.fetch("SHOW STATUS LIKE 'Ssl_cipher'", (), "read")
            assert cipher != ""
            await driver.close()
    assert PASSWORD not in repr(driver._target)
