"""MariaDB passes the conformance kit, over either client."""

from __future__ import annotations

import pytest

from agentstore.testing import StoreTests


class TestMySQL(StoreTests):
    @pytest.fixture
    def database_url(self, mysql_url: str) -> str:
        return mysql_url


class TestAsyncmy(StoreTests):
    @pytest.fixture
    def database_url(self, asyncmy_url: str) -> str:
        return asyncmy_url
