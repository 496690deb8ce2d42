"""What every test here starts from."""

from __future__ import annotations

import os
import signal

import pytest

from openai_server import openai_server

__all__ = ["openai_server"]

# A shell that runs the tests in the background makes them ignore Ctrl-C, and so would every
# program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_model_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches a paid model because of the environment that it runs in."""
    for variable in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(variable)
