"""agentstore: conversations and state of AI agents, on whatever store a URL names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent, Tokens
    from .database import Database, connect
    from .errors import AgentStoreError, ConfigurationError, StoreError
    from .hosted import db
    from .types import Durability, History, Message, Page, Reply, Session, Versioned

__all__ = [
    "Agent",
    "AgentStoreError",
    "ConfigurationError",
    "Database",
    "Durability",
    "History",
    "Message",
    "Page",
    "Reply",
    "Session",
    "StoreError",
    "Tokens",
    "Versioned",
    "connect",
    "db",
]

_HOMES = {
    "Agent": "agent",
    "AgentStoreError": "errors",
    "ConfigurationError": "errors",
    "Database": "database",
    "Durability": "types",
    "History": "types",
    "Message": "types",
    "Page": "types",
    "Reply": "types",
    "Session": "types",
    "StoreError": "errors",
    "Tokens": "agent",
    "Versioned": "types",
    "connect": "database",
    "db": "hosted",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever it is that is exported
    # Parts are loaded when they are first named: a program that only imports the package, or
    # only its errors, doesn't wait for the rest (PEP 562).
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
