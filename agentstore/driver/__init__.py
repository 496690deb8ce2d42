"""What every driver would otherwise write again.

- `Row`: a message as engines keep it; its body is JSON text without NUL.
- `read_messages`: windows and pages over one primitive, a slice of a session.
- `Ledger`: one session in memory, with the rules of `append`.
- `OrderedDriver`: a whole driver over any engine with ordered keys and transactions.
- `encode_cursor`, `decode_cursor`: cursors of listings.
- `key_hash`: keys for engines whose keys are short.
- `translated`: turns an engine's exceptions into ours, at the edge.
- `operation_id`: which call this is, so that a repeat of it can be told.
- `now`, `to_micros`, `from_micros`: time as engines keep it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._clock import TOMBSTONE_AGE, TOUCH_INTERVAL, from_micros, now, to_micros
from ._cursor import decode_cursor, encode_cursor
from ._edge import translated
from ._keys import key_hash
from ._ledger import Ledger
from ._operation import operation_id
from ._options import take_options
from ._plan import Known, Plan, plan_append
from ._rows import Row, dump, load
from ._window import read_messages

if TYPE_CHECKING:
    from ._ordered import OrderedDriver, Transaction

__all__ = [
    "TOMBSTONE_AGE",
    "TOUCH_INTERVAL",
    "Known",
    "Ledger",
    "OrderedDriver",
    "Plan",
    "Row",
    "Transaction",
    "decode_cursor",
    "dump",
    "encode_cursor",
    "from_micros",
    "key_hash",
    "load",
    "now",
    "operation_id",
    "plan_append",
    "read_messages",
    "take_options",
    "to_micros",
    "translated",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever it is that is exported
    # Every program loads this package, and few have a driver that is built on these.
    if name not in ("OrderedDriver", "Transaction"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("._ordered", __name__), name)
