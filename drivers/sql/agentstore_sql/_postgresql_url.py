"""A URL and its options, as asyncpg and SQLAlchemy's pool take them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from agentstore.driver import take_options
from agentstore.errors import ConfigurationError
from agentstore.url import URL

from ._postgresql_tls import TLS_OPTIONS, tls_context, tls_mode
from ._tables import PREFIX

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_PORT = 5432
_LONGEST = 24 * 3600


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may be set in the URL's query or as arguments; times are seconds."""

    pool_size: int = 10
    max_overflow: int = 0  # one that is opened for a moment costs more than waiting
    pool_timeout: float = 4.0
    pool_recycle: float = 1800.0
    pool_check: float = 30.0
    connect_timeout: float = 5.0
    statement_timeout: float = 10.0
    pgbouncer: bool = False
    application_name: str = "agentstore"
    target_session_attrs: str | None = None
    schema: str | None = None
    table_prefix: str = PREFIX
    create_schema: bool = True
    engine: AsyncEngine | None = None

    def __post_init__(self) -> None:
        for name in ("schema", "table_prefix"):
            value = getattr(self, name)
            if value is not None and _NAME.fullmatch(value) is None:
                raise ConfigurationError(
                    f"{name} is {value!r}: small letters, digits and underscores, at most 40"
                )
        for name in self.__struct_fields__:
            value = getattr(self, name)
            least = 1 if name == "pool_size" else 0
            if isinstance(value, int | float) and not least <= value <= _LONGEST:
                raise ConfigurationError(f"{name} is {value}: {least} to {_LONGEST}")
        if self.engine is not None and self.engine.dialect.driver != "asyncpg":
            raise ConfigurationError("engine is not one of postgresql+asyncpg://")


_PLACE = ("host", "password", "port", "user")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, and how to get in."""

    hosts: tuple[str, ...]
    ports: tuple[int, ...]
    user: str | None
    password: str | None
    database: str | None
    sslmode: str
    certificates: Mapping[str, str]

    def arguments(self) -> dict[str, Any]:
        """Give the arguments of `asyncpg.connect`; reads the certificates."""
        return {
            "host": list(self.hosts) or None,
            "port": list(self.ports) or None,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "ssl": tls_context(self.sslmode, self.certificates),
        }

    def __repr__(self) -> str:
        # What frameworks print of a value in a traceback.
        return f"Target(hosts={self.hosts}, database={self.database!r})"


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
    return _target(url, place, tls), settings


def _target(url: URL, place: Mapping[str, Any], tls: Mapping[str, Any]) -> Target:
    # People don't escape the "@" in their passwords: the last one counts.
    userinfo, _, authority = url.authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    hosts, ports = _hosts(str(place.get("host") or authority or os.environ.get("PGHOST", "")))
    if "port" in place:
        ports = tuple(map(_port, str(place["port"]).split(",")))
        if len(ports) == 1:
            ports *= max(1, len(hosts))
        if hosts and len(ports) != len(hosts):
            raise ConfigurationError("port names another number of ports than there are hosts")
    return Target(
        hosts=hosts,
        ports=ports,
        user=place.get("user") or unquote(user) or None,
        password=place.get("password") or unquote(password) or None,
        database=url.decoded_path.strip("/") or None,
        sslmode=tls_mode(tls, hosts),
        certificates=tls,
    )


def _hosts(authority: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    hosts, ports = [], []
    for one in filter(None, authority.split(",")):
        host, port = one, ""
        if one.startswith("["):
            host, _, rest = one[1:].partition("]")
            port = rest.removeprefix(":")
        elif one.count(":") == 1:
            host, _, port = one.partition(":")
        # A socket's directory stands percent-encoded in the place of a host.
        hosts.append(unquote(host))
        ports.append(_port(port) if port else int(os.environ.get("PGPORT", _PORT)))
    return tuple(hosts), tuple(ports)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ConfigurationError(f"port is {text!r}: a number from 1 to 65535")
    return int(text)
