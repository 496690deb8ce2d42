"""The list of all sessions, so that no listing has to look into every file."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from msgspec import Struct, structs
from msgspec.json import Decoder, encode

from agentstore.driver import TOMBSTONE_AGE, from_micros, key_hash, to_micros
from agentstore.errors import DataError

from . import _files as files
from ._locks import Locks
from ._log import Log
from ._records import HEAD, Head, decode, moment

_logger = logging.getLogger("agentstore.json")

Place = tuple[int | str, ...]
"""Where a session stands in a listing; the last part is its id."""

# More changes than these are sorted in at once and not one by one.
_FEW = 1_000
# The catalog is written anew whenever it outgrows a power of two, from this one on.
_SMALL = 1 << 20
_LONG_AGO = from_micros(0)


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A line of the catalog, which holds in place of all before it for the same session.

    Without `updated_at` the session is not listed, without `due` as well it is forgotten.
    `due` is when it may be time to purge something of the session, or earlier.
    `user` is a hash: lines stay for a while after a user was erased.
    """

    tenant: str
    session_id: str
    user: str | None = None
    updated_at: datetime | None = None
    due: datetime | None = None

    @classmethod
    def of(cls, tenant: str, session_id: str, head: Head | None) -> Entry:
        """Say what a session's file says."""
        if head is None:
            return cls(tenant=tenant, session_id=session_id)
        if head.deleted_at is not None:
            due = from_micros(to_micros(head.deleted_at) + TOMBSTONE_AGE)
            return cls(tenant=tenant, session_id=session_id, due=due)
        return cls(
            tenant=tenant,
            session_id=session_id,
            user=_user(tenant, head.user_id),
            updated_at=head.updated_at,
            due=head.expires_at,
        )


_ENTRY = Decoder(Entry)


class Catalog:
    """A log of entries, and an index of them that is made when it is first asked for.

    It follows from the sessions' files and never the other way round: what it lists is looked up
    there, and where it is missing or damaged it is made again from them.
    """

    def __init__(self, base: Path, locks: Locks) -> None:
        self._base = base
        self._locks = locks
        self._log = Log(base / "catalog.jsonl")
        self._index = _Index()

    def note(self, entry: Entry) -> None:
        """Add an entry, at a cost that doesn't depend on how many there are."""
        line = encode(entry)
        with self._locks.hold("catalog"):
            try:
                size = self._log.push([line])
            except (FileNotFoundError, DataError):
                self._rebuild()
                size = self._log.push([line])
            if self._log.end:
                self._index.put(entry)
            if size > _SMALL and size.bit_length() > (size - len(line) - 1).bit_length():
                self._refresh()
                self._write()

    def shrink(self) -> None:
        """Drop the lines that no longer hold."""
        with self._locks.hold("catalog"):
            self._refresh()
            self._write()

    def page(
        self, tenant: str, user_id: str | None, prefix: str | None, behind: Place, limit: int
    ) -> list[Place]:
        """List up to `limit` places behind one: the newest first, or by id with `prefix`."""
        with self._locks.hold("catalog"):
            self._refresh()
            return self._index.page(tenant, _user(tenant, user_id), prefix, behind, limit)

    def due(self, tenant: str) -> list[str]:
        """List the sessions of which something may be purged now."""
        now = moment()
        with self._locks.hold("catalog"):
            self._refresh()
            entries = self._index.entries.values()
            return [e.session_id for e in entries if e.tenant == tenant and e.due and e.due <= now]

    def _refresh(self) -> None:
        """Bring the index up to date with what other processes have noted."""
        try:
            anew, lines = self._log.pull()
            noted = lines[1:] if anew else lines
            entries = [decode(line, _ENTRY, str(self._log.path)) for line in noted]
        except DataError as error:
            _logger.warning("%s; it is made again from the sessions", error)
            self._rebuild()
            return
        if anew and not lines:  # there is no file
            self._rebuild()
            return
        if anew:
            self._index = _Index()
        self._index.put(*entries)

    def _rebuild(self) -> None:
        """Make the catalog from the first line of each session's file.

        These are read without their locks: whoever changes one now, notes it afterwards.
        """
        self._index = _Index()
        self._index.put(*self._entries())
        self._write()

    def _entries(self) -> Iterator[Entry]:
        for path in self._base.glob("conversations/*/*.jsonl"):
            with files.opened(path, os.O_RDONLY) as fd, open(fd, "rb", closefd=False) as file:
                head = decode(file.readline(), HEAD, f"line 1 of {path}")
                entry = Entry.of(head.tenant, head.session_id, head)
                if entry.updated_at is not None:
                    # The lines behind the first may say otherwise: the file's own time is that
                    # of the last one, and a purge is to look into them.
                    written = from_micros(os.fstat(fd).st_mtime_ns // 1_000)
                    latest = max(entry.updated_at, written)
                    entry = structs.replace(entry, updated_at=latest, due=_LONG_AGO)
                yield entry

    def _write(self) -> None:
        first = encode({"catalog": uuid4().hex})
        self._log.replace([first, *map(encode, self._index.entries.values())])


class _Index:
    """The newest entry of each session, and the listings that follow from them."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self._listings: defaultdict[_Listing, list[Place]] = defaultdict(list)

    def put(self, *entries: Entry) -> None:
        """Take in entries, in their order."""
        if len(entries) > _FEW:
            for entry in entries:
                self._keep(entry)
            self._listings.clear()
            for entry in self.entries.values():
                for listing, place in _places(entry):
                    self._listings[listing].append(place)
            for places in self._listings.values():
                places.sort()
            return
        for entry in entries:
            for listing, place in _places(self._keep(entry)):
                places = self._listings[listing]
                del places[bisect_left(places, place)]
            for listing, place in _places(entry):
                insort(self._listings[listing], place)

    def page(
        self, tenant: str, user: str | None, prefix: str | None, behind: Place, limit: int
    ) -> list[Place]:
        """List up to `limit` places behind one."""
        places = self._listings.get((tenant, user, prefix is not None), [])
        start = bisect_right(places, behind)
        if prefix is None:
            return places[start : start + limit]
        start = max(start, bisect_left(places, (prefix,)))
        # Python orders text by code point, which is the order of its UTF-8 bytes.
        return [p for p in places[start : start + limit] if str(p[0]).startswith(prefix)]

    def _keep(self, entry: Entry) -> Entry | None:
        """Put an entry in the place of the one before it, which is given back."""
        key = (entry.tenant, entry.session_id)
        before = self.entries.pop(key, None)
        if entry.updated_at is not None or entry.due is not None:
            self.entries[key] = entry
        return before


def _user(tenant: str, user_id: str | None) -> str | None:
    return None if user_id is None else key_hash(tenant, user_id).hex()


_Listing = tuple[str, str | None, bool]


def _places(entry: Entry | None) -> Iterator[tuple[_Listing, Place]]:
    """Say where a session stands: among all and among its user's, by time and by id."""
    if entry is not None and entry.updated_at is not None:
        for user in {None, entry.user}:
            newest = (-to_micros(entry.updated_at), entry.session_id)
            yield (entry.tenant, user, False), newest
            yield (entry.tenant, user, True), (entry.session_id,)
