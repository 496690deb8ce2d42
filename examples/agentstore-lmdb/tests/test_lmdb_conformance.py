"""The rules that every driver keeps."""

from pathlib import Path

import pytest

from agentstore.testing import StoreTests


class TestLMDB(StoreTests):
    @pytest.fixture
    def database_url(self, tmp_path: Path) -> str:
        return f"lmdb:///{tmp_path}/agents"
