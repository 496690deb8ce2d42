"""PostgreSQL passes the conformance kit."""

from __future__ import annotations

import pytest

from agentstore.testing import StoreTests


class TestPostgreSQL(StoreTests):
    @pytest.fixture
    def database_url(self, postgresql_url: str) -> str:
        return postgresql_url
