"""What every suite starts from: the fixtures, the gate by capability, and a guard."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from ...conversations import Conversations
from ...database import Database, connect
from ...errors import StoreError
from ...registry import find
from ...state import State
from ...stores import Driver
from ...types import Message
from ...url import URL

__all__ = [
    "SOON",
    "Suite",
    "contract",
    "driver_for",
    "eventually",
    "examples",
    "require",
    "say",
    "taken",
    "texts",
    "written",
]

SOON = 5.0
"""Seconds within which everything here has happened, or never will."""

contract = pytest.mark.contract
"""Marks the short part of the kit, which `-m contract` selects."""

_EXAMPLES = os.environ.get("AGENTSTORE_TEST_EXAMPLES")


def examples(count: int, *, steps: int = 30) -> settings:
    """Settings for generated cases: `count` of them, the same in every run.

    AGENTSTORE_TEST_EXAMPLES asks for as many as it says, other ones in every run.
    """
    return settings(
        max_examples=int(_EXAMPLES or count),
        stateful_step_count=steps,
        derandomize=_EXAMPLES is None,
        database=None,
        deadline=None,
        print_blob=True,
        # The store of a test serves all of its examples, each in a session of its own, and the
        # tests are inherited by every driver's class.
        suppress_health_check=[
            HealthCheck.differing_executors,
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )


class Suite:
    """The fixtures of all suites; a driver gives `database_url` and nothing else.

    Tests run under pytest-asyncio in either mode, each on an event loop of its own.
    """

    pytestmark = pytest.mark.asyncio(loop_scope="function")

    @pytest.fixture
    def database_url(self) -> str:
        """Name a store that is empty and that no other test uses."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a fixture database_url: the URL of a fresh, empty store"
        )

    @pytest_asyncio.fixture(loop_scope="function")
    async def database(self, database_url: str) -> AsyncIterator[Database]:
        """The store, open."""
        async with connect(database_url) as database:
            yield database

    @pytest.fixture
    def conversations(self, database: Database) -> Conversations:
        """The conversations of the tenant without a name."""
        return database.conversations

    @pytest.fixture
    def state(self, database: Database) -> State:
        """The application's state."""
        return database.state.app()

    @contract
    async def test_standard_tests_are_as_they_came(self) -> None:
        """Every test of the kit runs unchanged, or is an xfail that says why."""
        mine = type(self)
        changed = [
            f"{suite.__name__}.{name}"
            for suite in mine.__mro__
            if suite.__module__.startswith(__package__)
            for name, test in vars(suite).items()
            if name.startswith("test_")
            and getattr(mine, name) is not test
            and not _is_excused(getattr(mine, name))
        ]
        assert changed == [], f"mark with @pytest.mark.xfail(reason=…): {', '.join(changed)}"


def _is_excused(test: object) -> bool:
    marks = getattr(test, "pytestmark", [])
    return any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


def require(database: Database, **capabilities: object) -> None:
    """Skip the test unless the store declares these capabilities (of several values, any)."""
    for name, wanted in capabilities.items():
        declared = getattr(database.capabilities, name)
        if declared not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            what = f"no {name}" if wanted is True else f"{name}={declared!r}"
            pytest.skip(f"declares {what}")


def driver_for(database_url: str) -> Driver:
    """Build the driver that serves a URL, without any wrapper; opens nothing."""
    url = URL.parse(database_url)
    return find(url)(url)


async def taken(
    calls: Mapping[str, Callable[[], Awaitable[object]]], error: type[StoreError], match: str = ""
) -> list[str]:
    """Make calls that have to be refused, and list those that were not.

    A refusal is an `error` with `match` in its message.
    """
    accepted = []
    for name, call in calls.items():
        try:
            await call()
        except error as refusal:
            if match in str(refusal):
                continue
        accepted.append(name)
    return accepted


def say(text: str, **fields: Any) -> Message:
    """Make a message of a user."""
    return Message(role="user", content=text, **fields)


def texts(messages: Iterable[Message]) -> list[str]:
    """List what the messages say."""
    return [message.text for message in messages]


def written(message: Message) -> str:
    """Write down all of a message that a store keeps, so that 1, 1.0 and True differ."""
    return json.dumps(
        [
            message.id,
            message.to_openai(),
            message.metadata,
            message.tokens,
            message.created_at.isoformat(timespec="microseconds"),
        ]
    )


async def eventually(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until `check` holds, and fail with `what` where it takes too long."""
    deadline = time.monotonic() + SOON
    while not await check():
        assert time.monotonic() < deadline, f"not within {SOON:g} s: {what}"
        await asyncio.sleep(0.02)
