import pytest

from agentstore.testing import StoreTests


class TestLMDB(StoreTests):
    @pytest.fixture
    def database_url(self, tmp_path):
        return f"lmdb:///{tmp_path}/agents"
