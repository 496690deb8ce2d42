"""A store of JSON files for each test, and the names of its files."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agentstore import Database, connect


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


@pytest.fixture
def url(base: Path) -> str:
    """Name the store."""
    return f"json:///{base}"


@pytest_asyncio.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The store, open."""
    async with connect(url) as database:
        yield database


@pytest_asyncio.fixture
async def other(url: str) -> AsyncIterator[Database]:
    """The same store, open once more: as another process has it, with a memory of its own."""
    async with connect(url) as database:
        yield database


@pytest.fixture
def file_of(base: Path) -> Callable[..., Path]:
    """Say where a session lies, by the documented rule."""

    def path(session_id: str, tenant: str = "") -> Path:
        name = hashlib.sha256(f"{tenant}\0{session_id}".encode()).hexdigest()
        return base / "conversations" / name[:2] / f"{name}.jsonl"

    return path
