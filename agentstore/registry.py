"""Finding the driver for a URL, among the entry points of the group `agentstore.drivers`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from .errors import ConfigurationError, DriverNotFoundError
from .stores import API_VERSION, Driver
from .url import URL

__all__ = ["GROUP", "find", "schemes"]

GROUP = "agentstore.drivers"

# Only to say what to install: nothing is loaded by this table.
_DISTRIBUTIONS = MappingProxyType(
    {
        "sqlite": "agentstore-sql",
        "postgresql": "agentstore-sql[postgresql]",
        "postgres": "agentstore-sql[postgresql]",
        "mysql": "agentstore-sql[mysql]",
        "mariadb": "agentstore-sql[mysql]",
        "json": "agentstore-json",
    }
)


def schemes() -> list[str]:
    """List the schemes that the installed drivers serve."""
    return sorted({entry.name.replace(".", "+") for entry in entry_points(group=GROUP)})


def find(url: URL) -> Callable[..., Driver]:
    """Load the driver that serves the URL's scheme.

    `DriverNotFoundError` where there is none, `ConfigurationError` where two distributions claim
    the scheme or where the driver was written for another version of the protocols.
    """
    name = url.scheme.replace("+", ".")
    entries = tuple(entry_points(group=GROUP, name=name))
    if not entries:
        raise DriverNotFoundError(_advice(url.scheme))
    if len({entry.value for entry in entries}) > 1:
        owners = " and ".join(sorted(_distribution(entry) for entry in entries))
        raise ConfigurationError(f"{url.scheme}:// is claimed by {owners}: uninstall one of them")
    driver: Any = entries[0].load()
    version = getattr(driver, "api_version", None)
    if version != API_VERSION:
        raise ConfigurationError(
            f"{_distribution(entries[0])} was written for version {version} of agentstore's "
            f"protocols, and this is version {API_VERSION}: upgrade the older one"
        )
    return driver  # type: ignore[no-any-return]  # an entry point can't be typed


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _advice(scheme: str) -> str:
    ours = _DISTRIBUTIONS.get(scheme) or _DISTRIBUTIONS.get(scheme.partition("+")[0])
    if ours:
        return f'no driver for {scheme}:// is installed: run pip install "{ours}"'
    installed = schemes()
    near = difflib.get_close_matches(scheme, {*installed, *_DISTRIBUTIONS}, n=1)
    hint = f"did you mean {near[0]}://?" if near else f"installed are {', '.join(installed)}"
    return f"no driver serves {scheme}://; {hint}"
