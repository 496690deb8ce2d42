"""Record what clients of a store saw, and find what an append-only store must never do.

::

    recorder = Recorder()
    with recorder.append("writer 1", message.id) as call:
        result = await store.append("s", [message])
        call.committed = result.durability is Durability.COMMITTED
    with recorder.read("reader 1") as call:
        call.ids = [message.id for message in await store.read("s")]
    ...
    recorder.final([message.id for message in await store.read("s")])
    assert check(recorder) == []

A session is one list that only grows, and every append is one id in it.
So one order explains everything that was seen, or it doesn't: that of the final read.

Writers and readers are sequences of calls: tasks that run at once need different names, and so do
processes.
Every read is of the whole session; don't record one that the store itself calls stale.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import zip_longest
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Self, TextIO

from ..errors import StoreError

__all__ = [
    "Anomaly",
    "Append",
    "AppendCall",
    "Kind",
    "Outcome",
    "Read",
    "ReadCall",
    "Recorder",
    "check",
]

_SESSION = "session"


class Outcome(StrEnum):
    """What the caller of an append was told."""

    ACKED = "acked"
    FAILED = "failed"
    """It was certainly not applied."""
    UNKNOWN = "unknown"
    """It may have been applied, or may yet be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """One append of one id; times are nanoseconds of the monotonic clock.

    `number` counts the appends of the writer.
    An id that is sent again, after an unknown outcome say, is another append of the same id.
    """

    session: str
    writer: str
    number: int
    id: str
    start: int
    end: int
    outcome: Outcome
    committed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read of a whole session: the ids it saw, oldest first."""

    session: str
    reader: str
    start: int
    end: int
    ids: tuple[str, ...]
    final: bool = False


class Kind(StrEnum):
    """What can be wrong with a history."""

    LOST = "LOST"
    """An acked append isn't in the final read."""
    DUPLICATE = "DUPLICATE"
    """An id is in the final read more than once."""
    PHANTOM = "PHANTOM"
    """An id in the final read was never appended."""
    RESURRECTED = "RESURRECTED"
    """An append that failed for certain is in the final read."""
    WRITER_ORDER = "WRITER_ORDER"
    """Two acked appends of one writer are in another order than it sent them."""
    REALTIME = "REALTIME"
    """An append stands before one that had been acked when it began."""
    HOLE = "HOLE"
    """A read isn't the beginning of the final one."""
    STALE = "STALE"
    """A read lacks an append that had been acked when it began."""
    NON_MONOTONIC = "NON_MONOTONIC"
    """A reader saw less than it had seen before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """One thing that must not happen; `str` of it says what, where and between which calls."""

    kind: Kind
    session: str
    ids: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} in {self.session!r}: {self.detail}"


@dataclass(slots=True)
class AppendCall:
    """What the block of `Recorder.append` may say about its call.

    `committed=False` is for an ack that promises less than being in the store by now (journaled,
    buffered): reads may lack it, and other appends may overtake it.
    `outcome` is for clients whose errors aren't a `StoreError`.
    """

    committed: bool = True
    outcome: Outcome | None = None


@dataclass(slots=True)
class ReadCall:
    """What the block of `Recorder.read` saw; without `ids` nothing is recorded."""

    ids: Iterable[str] | None = None


class Recorder:
    """Keep what happens, from any thread, and time it.

    With a `log`, each operation is written there as it begins and ends, a line of JSON each, so
    that a process that is killed leaves what it knew; `load` merges such files.
    Whoever opened the log closes it.
    """

    def __init__(self, log: TextIO | None = None) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._appends: dict[tuple[str, int], Append] = {}
        self._reads: list[Read] = []

    @classmethod
    def load(cls, *logs: str | Path) -> Self:
        """Read the logs of processes of one machine: they share its monotonic clock."""
        recorder = cls()
        for log in logs:
            with Path(log).open(encoding="ascii") as lines:
                for line in lines:
                    if line.endswith("\n"):  # a kill may tear the last one
                        recorder.record(_parse(line))
        return recorder

    @property
    def appends(self) -> list[Append]:
        with self._lock:
            return list(self._appends.values())

    @property
    def reads(self) -> list[Read]:
        with self._lock:
            return list(self._reads)

    def record(self, operation: Append | Read) -> None:
        """Add what was timed elsewhere; an append takes the place of the one with its number."""
        with self._lock:
            if isinstance(operation, Read):
                self._reads.append(operation)
            else:
                key = operation.writer, operation.number
                if self._appends.setdefault(key, operation).id != operation.id:
                    raise ValueError(
                        f"append {operation.number} of writer {operation.writer!r} is recorded"
                        " with two ids: give the writers of each process other names"
                    )
                self._appends[key] = operation
            if self._log:
                self._log.write(json.dumps(asdict(operation)) + "\n")
                self._log.flush()

    @contextmanager
    def append(self, writer: str, *ids: str, session: str = _SESSION) -> Iterator[AppendCall]:
        """Record that the block appends `ids`, in this order.

        It is acked if the block ends, failed if it raises a `StoreError` that says so, and unknown
        after any other exception.
        """
        with self._lock:
            first = self._numbers[writer]
            self._numbers[writer] += len(ids)
        call = AppendCall()
        start = time.monotonic_ns()

        def record(outcome: Outcome) -> None:
            end = time.monotonic_ns()
            for number, id_ in enumerate(ids, first):
                self.record(
                    Append(
                        session=session,
                        writer=writer,
                        number=number,
                        id=sys.intern(id_),
                        start=start,
                        end=end,
                        outcome=outcome,
                        committed=call.committed,
                    )
                )

        record(outcome := Outcome.UNKNOWN)
        try:
            yield call
            outcome = Outcome.ACKED
        except StoreError as error:
            if not error.outcome_unknown:
                outcome = Outcome.FAILED
            raise
        finally:
            record(call.outcome or outcome)

    @contextmanager
    def read(self, reader: str, *, session: str = _SESSION) -> Iterator[ReadCall]:
        """Record what the block reads, once it has put it into `ids`."""
        call = ReadCall()
        start = time.monotonic_ns()
        yield call
        end = time.monotonic_ns()
        if call.ids is not None:
            # Interned, thousands of long reads are small, and quick to compare.
            ids = tuple(map(sys.intern, call.ids))
            self.record(Read(session=session, reader=reader, start=start, end=end, ids=ids))

    def final(self, ids: Iterable[str], *, session: str = _SESSION) -> None:
        """Record what the session holds when every append has ended: the order to explain."""
        now = time.monotonic_ns()
        read = tuple(map(sys.intern, ids))
        self.record(Read(session=session, reader="final", start=now, end=now, ids=read, final=True))


def _parse(line: str) -> Append | Read:
    fields = json.loads(line)
    if "ids" in fields:
        return Read(**fields | {"ids": tuple(map(sys.intern, fields["ids"]))})
    return Append(
        **fields | {"id": sys.intern(fields["id"]), "outcome": Outcome(fields["outcome"])}
    )


def check(recorder: Recorder) -> list[Anomaly]:
    """Return all that is wrong, in O(n log n); an empty list if one order explains everything."""
    appends: defaultdict[str, list[Append]] = defaultdict(list)
    reads: defaultdict[str, list[Read]] = defaultdict(list)
    for append in sorted(recorder.appends, key=attrgetter("start")):
        appends[append.session].append(append)
    for read in sorted(recorder.reads, key=attrgetter("start")):
        reads[read.session].append(read)
    return [
        anomaly
        for session in appends | reads
        for anomaly in _Session(session, appends[session], reads[session]).anomalies()
    ]


class _Entry:
    """All appends of one id: it was sent once, or again and again until it was acked."""

    def __init__(self, attempts: list[Append]) -> None:
        may = [attempt for attempt in attempts if attempt.outcome is not Outcome.FAILED]
        acks = [attempt for attempt in may if attempt.outcome is Outcome.ACKED]
        self.id = attempts[0].id
        self.attempts = attempts
        self.writers = {attempt.writer for attempt in attempts}
        self.acked = bool(acks)
        self.failed = not may
        # It took its place between these two, by the clock and in the count of its writer.
        self.start = min((attempt.start for attempt in may), default=-inf)
        self.visible = min((ack.end for ack in acks if ack.committed), default=inf)
        self.first = min((attempt.number for attempt in may), default=-inf)
        self.last = min((ack.number for ack in acks), default=inf)


def _inversions(
    entries: Iterable[_Entry], start: Callable[[_Entry], float], end: Callable[[_Entry], float]
) -> Iterator[tuple[_Entry, _Entry]]:
    """Yield each entry that ended before one in front of it started, behind that one."""
    latest: _Entry | None = None
    for entry in entries:
        if latest and end(entry) < start(latest):
            yield latest, entry
        if not latest or start(entry) > start(latest):
            latest = entry


class _Session:
    """What is known of one session; its appends and reads come sorted by their start."""

    def __init__(self, session: str, appends: list[Append], reads: list[Read]) -> None:
        finals = [read for read in reads if read.final]
        if not finals:
            raise ValueError(f"session {session!r} has no final read: add one by Recorder.final")
        self.session = session
        self.origin = min([reads[0].start, *(append.start for append in appends[:1])])
        self.final = finals[-1]
        self.reads = [read for read in reads if read is not self.final]
        attempts: defaultdict[str, list[Append]] = defaultdict(list)
        for append in appends:
            attempts[append.id].append(append)
        self.entries = {id_: _Entry(made) for id_, made in attempts.items()}
        self.places: defaultdict[str, list[int]] = defaultdict(list)
        for place, id_ in enumerate(self.final.ids):
            self.places[id_].append(place)
        self.stored = [self.entries[id_] for id_ in self.places if id_ in self.entries]

    def anomalies(self) -> Iterator[Anomaly]:
        yield from self._contents()
        yield from self._order()
        yield from self._prefixes()
        yield from self._progress()

    def _contents(self) -> Iterator[Anomaly]:
        final = self._tell_read(self.final)
        for entry in self.entries.values():
            if entry.acked and entry.id not in self.places:
                yield self._anomaly(Kind.LOST, f"{self._tell(entry)} isn't in {final}", entry.id)
        for id_, places in self.places.items():
            if len(places) > 1:
                yield self._anomaly(Kind.DUPLICATE, f"{id_!r} is at {places} in {final}", id_)
            if id_ not in self.entries:
                what = f"{id_!r}, which nobody appended, is at {places} in {final}"
                yield self._anomaly(Kind.PHANTOM, what, id_)
            elif self.entries[id_].failed:
                what = f"{self._tell(self.entries[id_])} is at {places} in {final}"
                yield self._anomaly(Kind.RESURRECTED, what, id_)

    def _order(self) -> Iterator[Anomaly]:
        by_writer: defaultdict[str, list[_Entry]] = defaultdict(list)
        for entry in self.stored:
            # An id that several writers sent has its place from any of them.
            if entry.acked and len(entry.writers) == 1:
                by_writer[min(entry.writers)].append(entry)
        for entries in by_writer.values():
            for front, behind in _inversions(entries, attrgetter("first"), attrgetter("last")):
                what = f"{self._tell(front)} stands before {self._tell(behind)}, sent earlier"
                yield self._anomaly(Kind.WRITER_ORDER, what, front.id, behind.id)
        for front, behind in _inversions(self.stored, attrgetter("start"), attrgetter("visible")):
            what = f"{self._tell(front)} stands before {self._tell(behind)}, acked when it began"
            yield self._anomaly(Kind.REALTIME, what, front.id, behind.id)

    def _prefixes(self) -> Iterator[Anomaly]:
        acked = sorted(
            (entry for entry in self.stored if entry.visible < inf), key=attrgetter("visible")
        )
        acked_at = [entry.visible for entry in acked]
        # Of all that were acked up to each, the one furthest behind.
        reach: list[_Entry] = []
        for entry in acked:
            reach.append(max([*reach[-1:], entry], key=self._place))
        for read in self.reads:
            length = len(read.ids)
            before = bisect_left(acked_at, read.start)
            if read.ids != self.final.ids[:length]:
                pairs = zip_longest(read.ids, self.final.ids)
                place, (seen, there) = next(
                    (place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]
                )
                what = (
                    f"{self._tell_read(read)} has {seen!r} at {place},"
                    f" where {self._tell_read(self.final)} has {there!r}"
                )
                yield self._anomaly(Kind.HOLE, what, *filter(None, (seen, there)))
            elif before and self._place(reach[before - 1]) >= length:
                missed = reach[before - 1]
                what = f"{self._tell_read(read)} lacks {self._tell(missed)}, acked when it began"
                yield self._anomaly(Kind.STALE, what, missed.id)

    def _progress(self) -> Iterator[Anomaly]:
        longest: dict[str, Read] = {}
        for read in self.reads:
            before = longest.setdefault(read.reader, read)
            if len(read.ids) < len(before.ids):
                gone = before.ids[len(read.ids)]
                what = f"{self._tell_read(read)} lacks {gone!r}, in {self._tell_read(before)}"
                yield self._anomaly(Kind.NON_MONOTONIC, what, gone)
            else:
                longest[read.reader] = read

    def _place(self, entry: _Entry) -> int:
        return self.places[entry.id][0]

    def _anomaly(self, kind: Kind, detail: str, *ids: str) -> Anomaly:
        return Anomaly(kind=kind, session=self.session, ids=ids, detail=detail)

    def _tell(self, entry: _Entry) -> str:
        attempts = "; ".join(
            f"append {made.number} of {made.writer!r}, {made.outcome}, {self._when(made)}"
            for made in entry.attempts
        )
        place = f" at {self._place(entry)}" if entry.id in self.places else ""
        return f"{entry.id!r}{place} ({attempts})"

    def _tell_read(self, read: Read) -> str:
        name = "the final read" if read.final else f"a read of {read.reader!r}"
        return f"{name} ({len(read.ids)} ids, {self._when(read)})"

    def _when(self, operation: Append | Read) -> str:
        start, end = ((stamp - self.origin) / 1e9 for stamp in (operation.start, operation.end))
        return f"+{start:.6f} to +{end:.6f} s"
