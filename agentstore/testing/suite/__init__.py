"""The suites, one rule or operation each, and `StoreTests`, which is all of them."""

from __future__ import annotations

from ._base import Suite
from .append import AppendTests
from .cancellation import CancellationTests
from .capabilities import CapabilityTests
from .concurrency import ConcurrencyTests
from .cost import CostTests
from .editing import EditingTests
from .expiry import ExpiryTests
from .hostile import HostileTests
from .isolation import IsolationTests
from .lifecycle import LifecycleTests
from .limits import LimitTests
from .processes import ProcessTests
from .reading import ReadingTests
from .refusal import RefusalTests
from .repeats import RepeatTests
from .roundtrip import RoundTripTests
from .sessions import SessionTests
from .state import StateTests
from .stateful import ModelTests
from .windows import WindowTests

__all__ = [
    "AppendTests",
    "CancellationTests",
    "CapabilityTests",
    "ConcurrencyTests",
    "CostTests",
    "EditingTests",
    "ExpiryTests",
    "HostileTests",
    "IsolationTests",
    "LifecycleTests",
    "LimitTests",
    "ModelTests",
    "ProcessTests",
    "ReadingTests",
    "RefusalTests",
    "RepeatTests",
    "RoundTripTests",
    "SessionTests",
    "StateTests",
    "StoreTests",
    "Suite",
    "WindowTests",
]


class StoreTests(
    AppendTests,
    CancellationTests,
    CapabilityTests,
    ConcurrencyTests,
    CostTests,
    EditingTests,
    ExpiryTests,
    HostileTests,
    IsolationTests,
    LifecycleTests,
    LimitTests,
    ProcessTests,
    ReadingTests,
    RefusalTests,
    RepeatTests,
    RoundTripTests,
    SessionTests,
    StateTests,
    ModelTests,
    WindowTests,
):
    """The whole kit."""
