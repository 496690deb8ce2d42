"""Ids on MySQL are bytes: nothing that its collations take for the same is the same here."""

from __future__ import annotations

from itertools import product
from urllib.parse import quote

import pytest

from agentstore import Message, connect
from agentstore.errors import ConflictError
from servers import MariaDB, ask

pytestmark = pytest.mark.asyncio

# Case, space at the end, accents composed and decomposed, width, ligature, sign without weight.
TWINS = (
    *("Abc", "abc", "aBC", "aBC ", "aBC\t", "abc\x01"),
    *("\u00e9", "e\u0301", "e", "\u00c9"),
    *("\uff41bc", "stra\u00dfe", "strasse", "a\u200bbc", "\U0001f600", "\U0001f601"),
)
LONG = ("\U0001f600" * 128, "\U0001f600" * 127 + "\U0001f601", "x" * 511 + "y", "x" * 511 + "Y")


def say(text: str) -> Message:
    return Message(role="user", content=text)


async def test_twins_are_different_sessions(mysql_url: str) -> None:
    """Sessions whose ids look alike don't see one another's messages, nor their ids change."""
    async with connect(mysql_url) as database:
        ids = (*TWINS, *LONG)
        for session in ids:
            await database.conversations.append(session, [say(session)])
        for session in ids:
            read = await database.conversations.read(session)
            assert [message.content for message in read] == [session]
        page = await database.conversations.sessions(limit=100)
        assert sorted(one.session_id for one in page) == sorted(ids)


async def test_twins_are_different_tenants_and_users(mysql_url: str) -> None:
    """The same holds for tenants and for owners."""
    async with connect(mysql_url) as database:
        pairs = list(product(TWINS, TWINS[:4]))
        for tenant, user in pairs:
            conversations = database.for_tenant(tenant).conversations
            await conversations.append(f"of {user}", [say(f"{tenant}/{user}")], user_id=user)
        for tenant, user in pairs:
            conversations = database.for_tenant(tenant).conversations
            (session,) = await conversations.sessions(user_id=user)
            assert (session.session_id, session.user_id) == (f"of {user}", user)
            (message,) = await conversations.read(f"of {user}", user_id=user)
            assert message.content == f"{tenant}/{user}"


async def test_twins_are_different_messages_and_keys(mysql_url: str) -> None:
    """The same holds for the ids of messages and for the keys of state."""
    async with connect(mysql_url) as database:
        ids = (*TWINS, *LONG)
        messages = [Message(role="user", content=one, id=one) for one in ids]
        result = await database.conversations.append("s", messages)
        assert result.created == (True,) * len(ids)
        state = database.state.app()
        for key in ids:
            await state.put(key, key, expect=0)
        assert sorted(one.key for one in await state.items()) == sorted(ids)
        with pytest.raises(ConflictError):
            await state.put("Abc", 1, expect=0)


async def test_order_is_that_of_bytes(mysql_url: str) -> None:
    """Listings by id are in the order of the ids' bytes, and a prefix is one of bytes."""
    async with connect(mysql_url) as database:
        for session in TWINS:
            await database.conversations.append(session, [say("x")])
        page = await database.conversations.sessions(prefix="")
        assert [one.session_id for one in page] == sorted(TWINS, key=str.encode)
        page = await database.conversations.sessions(prefix="aBC")
        assert [one.session_id for one in page] == ["aBC", "aBC\t", "aBC "]


async def test_bodies_in_a_database_of_another_character_set(mariadb: MariaDB) -> None:
    """The tables keep any text, though the database itself would not."""
    name = "agentstore_latin1"
    ask(mariadb.url, f"CREATE DATABASE {name} CHARACTER SET latin1")
    url = mariadb.url.rpartition("/")[0] + f"/{name}"
    try:
        async with connect(url, connect_timeout=30) as database:
            text = "\U0001f600 \u0416 \\ ' \" % %s \n \r \x1a"
            await database.conversations.append(text, [say(text)])
            (message,) = await database.conversations.read(text)
            assert message.content == text
    finally:
        ask(mariadb.url, f"DROP DATABASE {name}")


async def test_socket_and_options_of_the_url(mariadb: MariaDB, mysql_url: str) -> None:
    """A socket file takes the place of a host, and a prefix keeps stores apart."""
    database_name = mysql_url.rpartition("/")[2]
    _, _, rest = mysql_url.partition("://")
    credentials = rest.rpartition("@")[0]
    socket = quote(str(mariadb.socket), safe="")
    for client in ("mysql", "mysql+asyncmy"):
        url = f"{client}://{credentials}@/{database_name}?unix_socket={socket}"
        async with connect(url) as database:
            await database.conversations.append("s", [say(client)])
    async with connect(mysql_url) as database:
        read = await database.conversations.read("s")
        assert [message.content for message in read] == ["mysql", "mysql+asyncmy"]
