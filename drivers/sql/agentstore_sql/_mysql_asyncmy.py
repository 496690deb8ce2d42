"""asyncmy's connection, which gives nothing away and takes nothing too large."""

from __future__ import annotations

from typing import Any

from asyncmy import connection
from asyncmy.constants.CLIENT import SSL
from asyncmy.errors import OperationalError

from ._mysql_errors import NO_TLS, TOO_LARGE

# Its types leave out what is overridden here.
_Base: Any = connection.Connection
_UTF8_MOST = 4  # bytes of a character


class Connection(_Base):  # type: ignore[misc]
    """A connection that is encrypted where that was asked for, or is none."""

    packet: int | None = None
    """The longest statement that the server takes, once it is known."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, binary_prefix=True)
        self._is_encrypted = arguments["ssl"] is not None
        self._is_private = self._is_encrypted or arguments["unix_socket"] is not None

    async def open(self) -> None:
        """Connect; whatever happens meanwhile, nothing is left open."""
        await self.connect()

    @property
    def is_dead(self) -> bool:
        """Whether the server has closed it."""
        return bool(self._stream_broken)

    async def _request_authentication(self) -> Any:  # noqa: ANN401
        # asyncmy itself waits for the handshake of a server that may not know what that is.
        if self._is_encrypted and not self.server_capabilities & SSL:
            raise OperationalError(NO_TLS, "the server offers no TLS")
        return await super()._request_authentication()

    async def _process_auth(self, plugin_name: bytes, auth_packet: Any) -> Any:  # noqa: ANN401
        # These send the password as it is, to whoever asks for it.
        if plugin_name in (b"mysql_clear_password", b"dialog") and not self._is_private:
            raise OperationalError(NO_TLS, "the server wants the password in plaintext")
        return await super()._process_auth(plugin_name, auth_packet)

    async def query(self, sql: str | bytes, unbuffered: bool = False) -> int:  # noqa: FBT001, FBT002
        """Send a statement, unless the server would cut the connection off because of it."""
        if self.packet is not None and _is_longer(sql, self.packet):
            raise OperationalError(TOO_LARGE, "larger than max_allowed_packet")
        affected: int = await super().query(sql, unbuffered)
        return affected


def _is_longer(sql: str | bytes, packet: int) -> bool:
    if isinstance(sql, str):
        # Encoded only where it may be too much.
        if len(sql) * _UTF8_MOST < packet:
            return False
        sql = sql.encode(errors="surrogateescape")
    # One byte says what the packet is.
    return len(sql) + 1 > packet
