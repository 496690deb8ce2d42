"""URLs keep their secrets, and find their drivers."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from agentstore import ConfigurationError, connect, db, registry
from agentstore.driver import take_options
from agentstore.errors import DriverNotFoundError
from agentstore.url import URL

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:hunter2@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:hun@ter2@host/db", "postgresql://user:***@host/db"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("mysql://host/db?password=hunter2&x=1", "mysql://host/db?password=***&x=1"),
        ("mysql://host/db?sslkey=hunter2", "mysql://host/db?sslkey=***"),
        ("mysql://host/db?%70assword=hunter2", "mysql://host/db?%70assword=***"),
        ("clickhouse://host/?access_token=hunter2", "clickhouse://host/?access_token=***"),
        ("mongodb://u:hunter2@a,b/?authSource=admin", "mongodb://u:***@a,b/?authSource=admin"),
        ("sqlite:///a.db?timeout=5", "sqlite:///a.db?timeout=5"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    """Neither `str` nor `repr` of a URL shows a password or a secret of its query."""
    assert str(URL.parse(text)) == shown
    assert repr(URL.parse(text)) == f"URL({shown!r})"


@pytest.mark.parametrize("text", ["postgresql://u:hun/ter2@host/db", "redis://u:hun?ter2@host/0"])
def test_unescaped_password(text: str) -> None:
    """A password with an unescaped `/` or `?` in it is hidden all the same."""
    assert "ter2" not in str(URL.parse(text))
    assert "hun" not in str(URL.parse(text))


def test_not_pickled() -> None:
    """A URL can't be written to a file by accident."""
    with pytest.raises(TypeError, match="password"):
        pickle.dumps(URL.parse("redis://:hunter2@host"))


@pytest.mark.parametrize(
    "text", ["", "conversations.db", "sqlite:a.db", "://x", "hunter2", "1a://"]
)
def test_not_a_url(text: str) -> None:
    """What is no URL is refused with an example, and not repeated: it may be a password."""
    with pytest.raises(ConfigurationError, match="sqlite:///agents.db") as raised:
        URL.parse(text)
    assert text == "" or text not in str(raised.value)


def test_none() -> None:
    """An unset environment variable is not a database in memory."""
    with pytest.raises(ConfigurationError, match="environment variable"):
        db(None)


@pytest.mark.asyncio
async def test_none_of_connect() -> None:
    """The same for `connect`."""
    with pytest.raises(ConfigurationError, match="environment variable"):
        async with connect(None):
            pass


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        ("sqlit", r"did you mean sqlite://\?"),
        ("postgresql", r'pip install "agentstore-sql\[postgresql\]"'),
        ("redis", "installed are .*sqlite"),
        ("mysql+asyncmy", r'pip install "agentstore-sql\[mysql\]"'),
        ("zzz", "installed are .*memory"),
    ],
)
def test_unknown_scheme(scheme: str, advice: str) -> None:
    """A scheme that nobody serves gets the nearest one, or the command that installs it."""
    if scheme in registry.schemes():
        pytest.skip(f"a driver for {scheme}:// is installed")
    with pytest.raises(DriverNotFoundError, match=advice):
        db(f"{scheme}://host/x")


def entry(value: str, name: str = "toy") -> EntryPoint:
    return EntryPoint(name=name, value=value, group=registry.GROUP)


class Future:
    api_version = 99


def test_two_claim_one_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two distributions claim a scheme, neither is taken by chance."""
    claims = (entry("one:Driver"), entry("two:Driver"))
    monkeypatch.setattr(registry, "entry_points", lambda **_: claims)
    with pytest.raises(ConfigurationError, match="claimed by one:Driver and two:Driver"):
        db("toy://x")


def test_other_api_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that was written for other protocols is refused when it is loaded."""
    monkeypatch.setattr(registry, "entry_points", lambda **_: (entry(f"{__name__}:Future"),))
    monkeypatch.setattr(EntryPoint, "load", lambda _: Future)
    with pytest.raises(ConfigurationError, match="version 99"):
        db("toy://x")


def test_unknown_option() -> None:
    """A misspelt option is refused with the nearest known one, wherever it stands."""
    with pytest.raises(ConfigurationError, match="did you mean timeout"):
        db("sqlite:///a.db?timeot=5")
    with pytest.raises(ConfigurationError, match="did you mean timeout"):
        db("sqlite:///a.db", timeot=5)


def test_options_of_python_win() -> None:
    """An option given in Python goes before the same one of the URL; twice in a URL is refused."""
    url = URL.parse("toy://?a=1&b=2")
    assert take_options(url, {"a": 3}, known=("a", "b")) == {"a": 3, "b": "2"}
    with pytest.raises(ConfigurationError, match="twice"):
        take_options(URL.parse("toy://?a=1&a=2"), {}, known=("a",))


@pytest.mark.parametrize("name", ["connect_timeout", "attempt_timeout", "operation_timeout"])
@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), float("inf")])
def test_bad_timeouts(name: str, value: Any) -> None:  # noqa: ANN401
    """A wait without an end, or of no time at all, is refused."""
    with pytest.raises(ConfigurationError, match=name):
        db("memory://", **{name: value})
