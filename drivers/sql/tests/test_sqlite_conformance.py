"""SQLite passes the conformance kit, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentstore.testing import StoreTests


class TestFile(StoreTests):
    @pytest.fixture
    def database_url(self, path: Path) -> str:
        return f"sqlite:///{path}"


class TestMemory(StoreTests):
    @pytest.fixture
    def database_url(self) -> str:
        return "sqlite://"
