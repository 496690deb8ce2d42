"""A URL and its options, as the clients of MySQL and SQLAlchemy's pool take them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from agentstore.driver import take_options
from agentstore.errors import ConfigurationError
from agentstore.url import URL

from ._mysql_tls import TLS_OPTIONS, tls_context, tls_mode
from ._tables import PREFIX

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_PORT = 3306
_LONGEST = 24 * 3600
_CLIENTS = ("aiomysql", "asyncmy")

Client = Literal["aiomysql", "asyncmy"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may be set in the URL's query or as arguments; times are seconds."""

    pool_size: int = 5
    max_overflow: int = 10
    pool_timeout: float = 4.0
    pool_recycle: float = 1800.0
    pool_check: float = 30.0
    connect_timeout: float = 5.0
    statement_timeout: float = 10.0
    table_prefix: str = PREFIX
    create_schema: bool = True
    engine: AsyncEngine | None = None

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.table_prefix) is None:
            raise ConfigurationError(
                f"table_prefix is {self.table_prefix!r}: small letters, digits and underscores, "
                "at most 40"
            )
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least = 1 if name == "pool_size" else 0
            if isinstance(value, int | float) and not least <= value <= _LONGEST:
                raise ConfigurationError(f"{name} is {value}: {least} to {_LONGEST}")
        if self.engine is not None and self.engine.dialect.driver not in _CLIENTS:
            raise ConfigurationError("engine is not one of mysql+aiomysql:// or mysql+asyncmy://")


_PLACE = ("host", "password", "port", "unix_socket", "user")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, and how to get in."""

    client: Client
    host: str
    port: int
    unix_socket: str | None
    user: str | None
    password: str
    database: str | None
    ssl_mode: str
    certificates: Mapping[str, str]

    def arguments(self) -> dict[str, Any]:
        """Give what both clients take by the same names; reads the certificates."""
        return {
            "host": self.host,
            "port": self.port,
            "unix_socket": self.unix_socket,
            "user": self.user,
            "password": self.password,
            "db": self.database,
            "ssl": tls_context(self.ssl_mode, self.certificates),
        }

    def __repr__(self) -> str:
        # What frameworks print of a value in a traceback.
        return f"Target(host={self.host!r}, database={self.database!r})"


def read_url(url: URL, given: Mapping[str, Any]) -> tuple[Target, Options]:
    """Take a URL and the options beside it apart; refuses what nobody knows."""
    known = (*Options.__struct_fields__, *_PLACE, *TLS_OPTIONS)
    options = take_options(url, given, known=known)
    place = {name: options.pop(name) for name in _PLACE if name in options}
    tls = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
    try:
        settings = msgspec.convert(options, Options, strict=False)
    except msgspec.ValidationError as error:
        # Its text names the option and the type that it expects, and no value.
        raise ConfigurationError(f"{url.scheme}:// has a wrong option: {error}") from None
    target = _target(url, place, tls)
    if settings.engine is None and target.database is None:
        raise ConfigurationError(f"{url} names no database: mysql://user@host/database")
    return target, settings


def _target(url: URL, place: Mapping[str, Any], tls: Mapping[str, Any]) -> Target:
    # People don't escape the "@" in their passwords: the last one counts.
    userinfo, _, authority = url.authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    host, port = _host(str(place.get("host", authority)))
    # As MySQL's own client does, a socket goes before a host.
    unix_socket = place.get("unix_socket")
    return Target(
        client="asyncmy" if url.scheme.endswith("+asyncmy") else "aiomysql",
        host=host,
        port=_port(place["port"]) if "port" in place else port,
        unix_socket=unix_socket,
        user=place.get("user") or unquote(user) or None,
        password=place.get("password") or unquote(password),
        database=url.decoded_path.strip("/") or None,
        ssl_mode=tls_mode(tls, None if unix_socket else host),
        certificates=tls,
    )


def _host(authority: str) -> tuple[str, int]:
    if "," in authority:
        raise ConfigurationError("mysql:// takes one host: put a proxy in front of several")
    host, port = authority, ""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        port = rest.removeprefix(":")
    elif authority.count(":") == 1:
        host, _, port = authority.partition(":")
    return unquote(host) or "localhost", _port(port) if port else _PORT


def _port(given: object) -> int:
    text = str(given)
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ConfigurationError(f"port is {text!r}: a number from 1 to 65535")
    return int(text)
