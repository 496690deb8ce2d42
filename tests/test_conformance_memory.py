"""The memory driver passes the conformance kit."""

from __future__ import annotations

import pytest

from agentstore.testing import StoreTests


class TestMemory(StoreTests):
    @pytest.fixture
    def database_url(self) -> str:
        return "memory://"
