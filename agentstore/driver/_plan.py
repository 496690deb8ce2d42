"""Deciding an append before anything of it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import ConflictError
from ..types import AppendResult, Durability, Message
from ._rows import Row, digest

Known = tuple[int, bytes]
"""The `seq` and the digest of a stored message."""


@dataclass(slots=True)
class Plan:
    """An append, decided: the rows to add, and for each message its `seq` and its newness."""

    rows: list[Row] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    created: list[bool] = field(default_factory=list)

    def result(self, durability: Durability = Durability.COMMITTED) -> AppendResult:
        """Say to the caller what was decided."""
        return AppendResult(
            seqs=tuple(self.seqs), created=tuple(self.created), durability=durability
        )


def plan_append(
    messages: Sequence[Message],
    *,
    find: Callable[[str], Known | None],
    next_seq: int,
    last_seq: int,
    expect_seq: int | None,
) -> Plan:
    """Decide an append to a session whose newest message has `last_seq`.

    `find` looks a stored message up by its id.
    `ConflictError` where an id stands for another body, or where `expect_seq` is not the last one
    (a batch of repeats alone was stored before and is no conflict).
    """
    plan = Plan()
    fresh: dict[str, Known] = {}
    for message in messages:
        body = message.digest or digest(message)
        known = fresh.get(message.id) or find(message.id)
        if known is None:
            row = Row.of(message, next_seq + len(plan.rows))
            plan.rows.append(row)
            fresh[message.id] = (row.seq, body)
        elif known[1] != body:
            raise ConflictError(f"message id {message.id} stands for another body already")
        plan.created.append(known is None)
        plan.seqs.append(known[0] if known else fresh[message.id][0])
    if plan.rows and expect_seq is not None and expect_seq != last_seq:
        raise ConflictError(f"expect_seq is {expect_seq}, and the last one is {last_seq}")
    return plan
