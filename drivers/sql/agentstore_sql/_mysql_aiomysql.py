"""aiomysql's connection, which gives nothing away and takes nothing too large."""

from __future__ import annotations

from typing import Any

import aiomysql  # type: ignore[import-untyped]
from aiomysql.connection import MysqlPacket  # type: ignore[import-untyped]
from pymysql.constants import CLIENT  # type: ignore[import-untyped]
from pymysql.err import OperationalError  # type: ignore[import-untyped]

from ._mysql_errors import NO_TLS, TOO_LARGE


class Cursor(aiomysql.Cursor):  # type: ignore[misc]
    """A cursor that doesn't ask for warnings: that is one more round trip, to print them."""

    async def _show_warnings(self, conn: Any) -> None:  # noqa: ANN401
        pass


class Connection(aiomysql.Connection):  # type: ignore[misc]
    """A connection that is encrypted where that was asked for, or is none."""

    packet: int | None = None
    """The longest statement that the server takes, once it is known."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, cursorclass=Cursor)

    async def open(self) -> None:
        """Connect; whatever happens meanwhile, nothing is left open."""
        try:
            await self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def is_dead(self) -> bool:
        """Whether the server has closed it, or has said a last word before it does."""
        reader = self._reader
        return (
            reader is None
            or reader.eof_received
            or reader.exception() is not None
            or bool(reader._buffer)  # nothing comes of itself but an error
        )

    async def _request_authentication(self) -> None:
        # aiomysql itself goes on in plaintext, and the server may be anybody.
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise OperationalError(NO_TLS, "the server offers no TLS")
        if self._server_auth_plugin == "mysql_clear_password" and not self._ssl_context:
            raise _clear()
        await super()._request_authentication()

    async def _process_auth(self, plugin_name: bytes, auth_packet: MysqlPacket) -> Any:  # noqa: ANN401
        if plugin_name == b"mysql_clear_password" and not self._secure:
            raise _clear()
        return await super()._process_auth(plugin_name, auth_packet)

    async def _execute_command(self, command: int, sql: str | bytes) -> None:
        encoded = sql.encode(self.encoding) if isinstance(sql, str) else sql
        if self.packet is not None and len(encoded) + 1 > self.packet:
            # The server would cut the connection off, as if it had broken.
            raise OperationalError(TOO_LARGE, "larger than max_allowed_packet")
        await super()._execute_command(command, encoded)


def _clear() -> OperationalError:
    return OperationalError(NO_TLS, "the server wants the password in plaintext")
