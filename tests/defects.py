"""Drivers with a defect each, for the conformance kit to find.

Each is the memory driver with the one mistake that its docstring states; `found_by` names tests of
the kit that have to fail on it.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from msgspec.structs import replace

from agentstore._ids import uuid7
from agentstore.driver import Ledger, Row
from agentstore.errors import ConflictError, UnsupportedError
from agentstore.memory import MemoryConversations, MemoryDriver, MemoryState
from agentstore.types import (
    UNSET,
    AppendResult,
    Capabilities,
    History,
    Message,
    Page,
    Scope,
    Session,
    Versioned,
)


class Sound(MemoryDriver):
    """No mistake: what fails here fails because of the others' frame."""


class _Talks(MemoryConversations):
    """Where a defect of conversations goes."""

    async def _stored(self, session_id: str) -> History:
        return await MemoryConversations.read(self, session_id)


class _Values(MemoryState):
    """Where a defect of state goes."""


class _Defect(MemoryDriver):
    """A driver that uses the classes which stand in it."""

    found_by: tuple[str, ...] = ()
    Talks: type[MemoryConversations] = _Talks
    Values: type[MemoryState] = _Values

    def __init_subclass__(cls, *, found_by: tuple[str, ...] = ()) -> None:
        cls.found_by = found_by

    def conversations(self, tenant: str) -> MemoryConversations:
        return self.Talks(self, tenant)

    def state(self, tenant: str, scope: Scope) -> MemoryState:
        return self.Values(self, tenant, scope)


class NoDeduplication(_Defect, found_by=("test_repeat_changes_nothing", "test_append_again")):
    """A message that comes again is stored again."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            known = {message.id for message in await self._stored(session_id)}
            fresh = [replace(m, id=uuid7()) if m.id in known else m for m in messages]
            return await super().append(session_id, fresh, **how)


class LosesTheLast(_Defect, found_by=("test_append_then_read", "test_size_of_a_batch")):
    """The last message of a batch is acknowledged, and not stored."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            result = await super().append(session_id, messages, **how)
            if len(messages) > 1 and result.created[-1]:
                self._tenant.sessions[session_id].ledger.rewind(result.seqs[-2] or 0)
            return result


class OrdersById(_Defect, found_by=("test_message_ids",)):
    """Messages are read in the order of their ids."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            found = await super().read(session_id, **how)
            return History(sorted(found, key=lambda message: message.id))


class ReusesSeqAfterRewind(
    _Defect, found_by=("test_seq_never_comes_again", "test_any_sequence_of_calls")
):
    """`seq` is the highest that is stored, plus one."""

    class Talks(_Talks):
        async def rewind(self, session_id: str, *, to: int) -> int:
            dropped = await super().rewind(session_id, to=to)
            if kept := self._tenant.find(session_id):
                kept.ledger.next_seq = kept.ledger.last_seq + 1
            return dropped


class ReusesSeqAfterDelete(
    _Defect, found_by=("test_seq_never_comes_again", "test_any_sequence_of_calls")
):
    """A deleted session leaves nothing behind, not even how far its `seq` had come."""

    class Talks(_Talks):
        async def delete(self, session_id: str) -> bool:
            deleted = await super().delete(session_id)
            if deleted:
                self._tenant.sessions[session_id].ledger = Ledger()
            return deleted


class GivesSeqBeforeTheCommit(_Defect, found_by=("test_pager_misses_nothing", "test_one_session")):
    """`seq` is drawn before the write, and the writes end in another order."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            result = await super().append(session_id, messages, **how)
            ledger = self._tenant.sessions[session_id].ledger
            hidden = [row for row in ledger.rows if row.seq in result.seqs]
            ledger.rows = [row for row in ledger.rows if row.seq not in result.seqs]
            for _ in range((result.seqs[0] or 0) % 5):
                await asyncio.sleep(0)
            ledger.rows = sorted([*ledger.rows, *hidden], key=lambda row: row.seq)
            return result


class AcknowledgesFirst(_Defect, found_by=("test_append_then_read", "test_one_session")):
    """An append is answered before it is written."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            known = len(await self._stored(session_id))
            seqs = tuple(range(known + 1, known + 1 + len(messages)))
            write = super().append(session_id, messages, **how)
            asyncio.get_running_loop().call_later(0.01, asyncio.ensure_future, write)
            return AppendResult(seqs=seqs, created=(True,) * len(messages))


class WritesByHalves(
    _Defect,
    found_by=(
        "test_conflict_writes_nothing_of_the_batch",
        "test_cancelled_append",
        "test_one_session",
    ),
):
    """A batch is written message by message, and the caller can come between."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            results = []
            for message in messages:
                results.append(await super().append(session_id, [message], **how))
                await asyncio.sleep(0)
            return AppendResult(
                seqs=tuple(result.seqs[0] for result in results),
                created=tuple(result.created[0] for result in results),
                durability=results[0].durability,
            )


class _Renaming(_Defect):
    """Ids are changed on their way in."""

    @staticmethod
    def rename(name: str) -> str:
        raise NotImplementedError

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            return await super().append(self._name_of(session_id), *args, **how)

        async def read(self, session_id: str, **how: Any) -> History:
            return await super().read(self._name_of(session_id), **how)

        def _name_of(self, session_id: str) -> str:
            assert isinstance(self._driver, _Renaming)
            return self._driver.rename(session_id)


class FoldsCase(_Renaming, found_by=("test_session_ids",)):
    """`Abc` and `abc` are one session."""

    @staticmethod
    def rename(name: str) -> str:
        return name.lower()


class TrimsIds(_Renaming, found_by=("test_session_ids",)):
    """`abc ` and `abc` are one session, as in MySQL's default collations."""

    @staticmethod
    def rename(name: str) -> str:
        return name.rstrip()


class NormalisesIds(_Renaming, found_by=("test_session_ids",)):
    """`é` composed and decomposed are one session, as on some file systems."""

    @staticmethod
    def rename(name: str) -> str:
        return unicodedata.normalize("NFC", name)


class CutsIds(_Renaming, found_by=("test_session_ids",)):
    """Ids are compared by their first 255 bytes."""

    @staticmethod
    def rename(name: str) -> str:
        return name.encode()[:255].decode(errors="ignore")


class IgnoresTenant(_Defect, found_by=("test_tenants", "test_tenants_share_nothing")):
    """All tenants share the sessions."""

    def conversations(self, tenant: str) -> MemoryConversations:
        return super().conversations("")


class IgnoresUser(_Defect, found_by=("test_session_of_another_user",)):
    """Whoever knows an id reads the session."""

    class Talks(_Talks):
        async def read(self, session_id: str, *, user_id: str | None = None, **how: Any) -> History:
            return await super().read(session_id, **how)


class ListsTheExpired(
    _Defect, found_by=("test_expired_session_is_absent", "test_listing_skips_the_expired")
):
    """Expired sessions are listed until they are purged."""

    class Talks(_Talks):
        async def sessions(self, *, user_id: str | None = None, **how: Any) -> Page[Session]:
            kept = self._tenant.sessions.values()
            shown = [one.shown(self._name) for one in kept if one.deleted is None]
            return Page([session for session in shown if user_id in (None, session.user_id)])


class ExpiryGoesBackToOne(_Defect, found_by=("test_expired_session_begins_anew",)):
    """An expired session begins anew with a `seq` that it had before."""

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            if self._tenant.find(session_id) is None:
                self._tenant.sessions.pop(session_id, None)
                self._tenant.listings.clear()
            return await super().append(session_id, *args, **how)


class IgnoresExpect(_Defect, found_by=("test_put_expecting_a_version", "test_one_put_wins")):
    """The last writer wins, whatever it expected."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            return await super().put(key, value, ttl=how.get("ttl"))


class ChecksThenPuts(_Defect, found_by=("test_one_put_wins", "test_increments_add_up")):
    """The version is compared in one step and written in another."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            stored = await self.get(key)
            expect = how.pop("expect", None)
            if expect is not None and expect != (stored.version if stored else 0):
                raise ConflictError("another version")
            await asyncio.sleep(0)
            return await super().put(key, value, **how)


class RepeatsVersions(_Defect, found_by=("test_versions_never_repeat",)):
    """Versions count from 1 for each key, and again after a deletion."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            stored = await self.get(key)
            put = await super().put(key, value, **how)
            self._values[key].version = version = (stored.version if stored else 0) + 1
            return replace(put, version=version)


class ReplaceKeepsTheBody(_Defect, found_by=("test_replaced_body_is_gone",)):
    """After a replacement the old body still counts as the stored one."""

    class Talks(_Talks):
        async def replace(self, session_id: str, message_id: str, **what: Any) -> bool:
            kept = self._tenant.find(session_id)
            before = kept.ledger.find(message_id) if kept else None
            replaced = await super().replace(session_id, message_id, **what)
            if kept and before:
                after = kept.ledger.find(message_id)
                assert after is not None
                kept.ledger.put(replace(after, digest=before.digest))
            return replaced


class CutsExchanges(
    _Defect, found_by=("test_window_holds_the_call_of_its_first_result", "test_generated_windows")
):
    """A window is the last n messages, whatever they are."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            if how.get("last") and how.get("max_tokens") is None:
                how["after"] = how.get("after") or 0
            return await super().read(session_id, **how)


class AnswersTheFirstCall(
    _Defect, found_by=("test_call_ids_that_come_again", "test_generated_windows")
):
    """A result is taken to answer the first call with its id, not the nearest."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            found = await super().read(session_id, **how)
            whole = await self._stored(session_id)
            if len(found) == len(whole) or not how.get("last"):
                return found
            asked = {message.tool_call_id for message in found if message.role == "tool"}
            for place, message in enumerate(whole):
                if asked & {call["id"] for call in message.tool_calls or ()}:
                    return History(whole[min(place, len(whole) - len(found)) :])
            return found


class IncludesTheBound(_Defect, found_by=("test_bounds_are_exclusive",)):
    """`after` gives the message again that it names."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            if how.get("after"):
                how["after"] -= 1
            return await super().read(session_id, **how)


class PrefixIsAPattern(_Defect, found_by=("test_prefix_is_no_pattern",)):
    """`prefix` goes into a pattern as it is."""

    class Talks(_Talks):
        async def sessions(self, *, prefix: str | None = None, **how: Any) -> Page[Session]:
            if prefix is None:
                return await super().sessions(**how)
            page = await super().sessions(prefix="", limit=1000)
            pattern = prefix.replace("_", "?").replace("%", "*") + "*"
            return Page([one for one in page if fnmatch(one.session_id, pattern)])


class _Altering(_Defect):
    """Messages are changed on their way in."""

    @staticmethod
    def alter(message: Message) -> Message:
        raise NotImplementedError

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            assert isinstance(self._driver, _Altering)
            altered = [self._driver.alter(message) for message in messages]
            return await super().append(session_id, altered, **how)


class LosesNul(_Altering, found_by=("test_text",)):
    """NUL is cut out of the text."""

    @staticmethod
    def alter(message: Message) -> Message:
        if not isinstance(message.content, str):
            return message
        return replace(message, content=message.content.replace("\0", ""))


class LosesAbsence(_Altering, found_by=("test_openai_format",)):
    """A content that was absent comes back as null."""

    @staticmethod
    def alter(message: Message) -> Message:
        return replace(message, content=None) if message.content is UNSET else message


class LosesMicroseconds(_Altering, found_by=("test_times",)):
    """Times are kept to the millisecond."""

    @staticmethod
    def alter(message: Message) -> Message:
        whole = message.created_at.microsecond // 1000 * 1000
        return replace(message, created_at=message.created_at.replace(microsecond=whole))


class ForgetsItsOperations(_Defect, found_by=("test_rewind_again",)):
    """A rewind that comes again counts what is left to drop."""

    class Talks(_Talks):
        async def rewind(self, session_id: str, *, to: int) -> int:
            if kept := self._tenant.find(session_id):
                kept.operation = ""
            return await super().rewind(session_id, to=to)


class TellsTheBody(_Defect, found_by=("test_conflict_shows_no_text",)):
    """A conflict quotes what it is about, as servers do."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            try:
                return await super().append(session_id, messages, **how)
            except ConflictError:
                raise ConflictError(f"failing row contains {messages[0].content}") from None


class TakesAnAppendDown(_Defect, found_by=("test_bad_append_spares_its_neighbours",)):
    """A conflict fails everything that is written at the same time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.failed = 0

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            assert isinstance(self._driver, TakesAnAppendDown)
            failed = self._driver.failed
            await asyncio.sleep(0)
            try:
                return await super().append(session_id, *args, **how)
            except ConflictError:
                self._driver.failed += 1
                raise
            finally:
                if self._driver.failed > failed:
                    raise ConflictError("the group was rolled back")


class GrowsWithTheSession(_Defect, found_by=("test_length_of_a_session_costs_nothing",)):
    """An append rewrites all of the session."""

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            result = await super().append(session_id, *args, **how)
            ledger = self._tenant.sessions[session_id].ledger
            ledger.rows = [Row.of(row.message(), row.seq) for row in ledger.rows]
            return result


class IgnoresTtl(_Defect, found_by=("test_without_ttl",)):
    """Nothing expires, and nobody is told."""

    capabilities = replace(MemoryDriver.capabilities, ttl=False)


class Modest(MemoryDriver):
    """No mistake: this one can do very little, and says so."""

    capabilities: Capabilities = replace(
        MemoryDriver.capabilities,
        conflict_detection=False,
        compare_and_set=False,
        ttl=False,
        order="eventual",
        listing="eventual",
    )

    def conversations(self, tenant: str) -> MemoryConversations:
        return _ModestTalks(self, tenant)

    def state(self, tenant: str, scope: Scope) -> MemoryState:
        return _ModestValues(self, tenant, scope)


class _ModestTalks(MemoryConversations):
    async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
        _refuse(how, "ttl", "expect_seq")
        return await super().append(session_id, *args, **how)

    async def update(self, session_id: str, **what: Any) -> Session | None:
        if what.get("ttl"):
            _refuse(what, "ttl")
        return await super().update(session_id, **what)


class _ModestValues(MemoryState):
    async def put(self, key: str, value: object, **how: Any) -> Versioned:
        _refuse(how, "ttl", "expect")
        return await super().put(key, value, **how)

    async def delete(self, key: str, **how: Any) -> bool:
        _refuse(how, "expect")
        return await super().delete(key, **how)


def _refuse(how: dict[str, Any], *names: str) -> None:
    if any(how.get(name) is not None for name in names):
        raise UnsupportedError("not here")


DEFECTS = tuple(
    value
    for value in list(vars().values())
    if isinstance(value, type) and issubclass(value, _Defect) and value.found_by
)
