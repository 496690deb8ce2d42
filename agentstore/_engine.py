"""From a URL to the stack of wrappers around its driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .errors import ConfigurationError
from .registry import find
from .stores import Driver
from .types import Limits
from .url import URL
from .wrappers import Deadline

__all__ = ["Engine", "Timeouts", "engines", "fitting"]


_LONGEST = 24 * 3600


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds: to connect, for one attempt, for a whole operation."""

    connect: float
    attempt: float
    operation: float

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= _LONGEST
            ):
                raise ConfigurationError(f"{name}_timeout is {value!r}: give seconds above 0")


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """One store that a URL names, ready to be built as often as it is needed."""

    url: URL
    make: Callable[..., Driver]
    options: Mapping[str, Any]
    timeouts: Timeouts

    def __repr__(self) -> str:
        return f"<Engine {self.url}>"  # options may hold a password

    def build(self) -> Driver:
        """Make the driver with its wrappers; opens nothing."""
        driver = self.make(self.url, **self.options)
        # An embedded engine is not unreachable but busy: waiting for its lock is the attempt.
        embedded = driver.capabilities.embedded
        attempt = self.timeouts.operation if embedded else self.timeouts.attempt
        return Deadline(driver, attempt=attempt, connect=self.timeouts.connect)


def engines(
    database_url: str | None,
    state_url: str | None,
    *,
    timeouts: Timeouts,
    options: Mapping[str, Any],
) -> tuple[Engine, ...]:
    """Find the drivers: one, or two where the state has a URL of its own.

    Each is built once, and thrown away, so that a wrong option is refused now and not at the
    first use.
    """
    if database_url is None:
        raise ConfigurationError("database_url is None: is the environment variable unset?")
    wanted: list[tuple[str, Mapping[str, Any]]] = [(database_url, options)]
    if state_url is not None:
        wanted.append((state_url, {}))
    found = []
    for text, given in wanted:
        url = URL.parse(text)
        engine = Engine(url=url, make=find(url), options=given, timeouts=timeouts)
        engine.build()
        found.append(engine)
    return tuple(found)


def fitting(wanted: Limits | None, drivers: tuple[Driver, ...]) -> Limits:
    """Give the limits to check by: those wanted, or the defaults as far as the stores take them.

    `ConfigurationError` where nothing could be stored, or more is wanted than a store takes.
    """
    limits = wanted or Limits()
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"limits.{name} is {value!r}: give a whole number above 0")
    for driver in drivers:
        for name in limits.__struct_fields__:
            most, value = getattr(driver.capabilities.limits, name), getattr(limits, name)
            if value > most and wanted is not None:
                raise ConfigurationError(f"limits.{name} is {value}: the store takes {most}")
            if value > most:
                limits = msgspec.structs.replace(limits, **{name: most})
    return limits
