"""What pytest has to know of the kit, whoever runs it: its marker, under `--strict-markers` too.

pytest loads this module wherever agentstore is installed, so that it imports nothing else.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "contract: the short part of agentstore's conformance kit, for variants"
    )
