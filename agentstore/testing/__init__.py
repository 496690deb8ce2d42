"""The conformance kit: what every driver has to pass.

::

    from agentstore.testing import StoreTests

    class TestMine(StoreTests):
        @pytest.fixture
        def database_url(self, tmp_path):
            return f"mine:///{tmp_path}/db"

`StoreTests` is everything; its parts can be taken one by one.
`FaultProxy` and `Recorder` are for tests of a driver's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from .suite import *  # noqa: F403

_SUITE = f"{__name__}.suite"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever it is that is exported
    # Not at import: the plugin, the proxy and `python -m` do without pytest and hypothesis.
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest

        pytest.register_assert_rewrite(_SUITE)
        suite = import_module(_SUITE)
    except ModuleNotFoundError as missing:
        if missing.name not in ("pytest", "pytest_asyncio", "hypothesis"):
            raise
        raise MissingDependencyError(
            f'the kit needs {missing.name}: run pip install "agentstore-sdk[testing]"'
        ) from None
    return getattr(suite, name)
