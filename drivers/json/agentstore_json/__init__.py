"""Plain JSON files for agentstore."""

from __future__ import annotations

from ._driver import JSONDriver

__all__ = ["JSONDriver"]
