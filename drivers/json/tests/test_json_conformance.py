"""The JSON driver passes the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentstore.testing import StoreTests


class TestJSON(StoreTests):
    @pytest.fixture
    def database_url(self, tmp_path: Path) -> str:
        return f"json:///{tmp_path}/store"
