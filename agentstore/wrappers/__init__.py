"""Wrappers: stores around stores, one idea each.

Data goes `Database → wrappers → driver`. A wrapper changes how a call is made, in one hook, and
forwards everything else, capabilities included.
"""

from __future__ import annotations

from ._base import Operation, Wrapper
from ._bound import Bound
from ._deadline import Deadline

__all__ = ["Bound", "Deadline", "Operation", "Wrapper"]
