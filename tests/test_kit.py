"""The conformance kit finds the defects that drivers have, and runs wherever it is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import Phase, find, settings
from msgspec.structs import replace

import agentstore.testing.suite
from agentstore._ids import uuid7
from agentstore.driver import Ledger, Row
from agentstore.errors import ConflictError, UnsupportedError
from agentstore.memory import MemoryConversations, MemoryDriver, MemoryState
from agentstore.testing.corpus import IDS
from agentstore.testing.strategies import conversations
from agentstore.testing.suite import StoreTests
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

pytestmark = pytest.mark.timeout(180)


# The defects. Each is the memory driver with one mistake, as its docstring says it.


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

    Talks: type[MemoryConversations] = _Talks
    Values: type[MemoryState] = _Values

    def conversations(self, tenant: str) -> MemoryConversations:
        return self.Talks(self, tenant)

    def state(self, tenant: str, scope: Scope) -> MemoryState:
        return self.Values(self, tenant, scope)


class NoDeduplication(_Defect):
    """A message that comes again is stored again."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            known = {message.id for message in await self._stored(session_id)}
            fresh = [replace(m, id=uuid7()) if m.id in known else m for m in messages]
            return await super().append(session_id, fresh, **how)


class LosesTheLast(_Defect):
    """The last message of a batch is acknowledged, and not stored."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            result = await super().append(session_id, messages, **how)
            if len(messages) > 1 and result.created[-1]:
                self._tenant.sessions[session_id].ledger.rewind(result.seqs[-2] or 0)
            return result


class OrdersById(_Defect):
    """Messages are read in the order of their ids."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            found = await super().read(session_id, **how)
            return History(sorted(found, key=lambda message: message.id))


class ReusesSeqAfterRewind(_Defect):
    """`seq` is the highest that is stored, plus one."""

    class Talks(_Talks):
        async def rewind(self, session_id: str, *, to: int) -> int:
            dropped = await super().rewind(session_id, to=to)
            if kept := self._tenant.find(session_id):
                kept.ledger.next_seq = kept.ledger.last_seq + 1
            return dropped


class ReusesSeqAfterDelete(_Defect):
    """A deleted session leaves nothing behind, not even how far its `seq` had come."""

    class Talks(_Talks):
        async def delete(self, session_id: str) -> bool:
            deleted = await super().delete(session_id)
            if deleted:
                self._tenant.sessions[session_id].ledger = Ledger()
            return deleted


class GivesSeqBeforeTheCommit(_Defect):
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


class AcknowledgesFirst(_Defect):
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


class WritesByHalves(_Defect):
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


class FoldsCase(_Renaming):
    """`Abc` and `abc` are one session."""

    @staticmethod
    def rename(name: str) -> str:
        return name.lower()


class TrimsIds(_Renaming):
    """`abc ` and `abc` are one session, as in MySQL's default collations."""

    @staticmethod
    def rename(name: str) -> str:
        return name.rstrip()


class NormalisesIds(_Renaming):
    """`é` composed and decomposed are one session, as on some file systems."""

    @staticmethod
    def rename(name: str) -> str:
        return unicodedata.normalize("NFC", name)


class CutsIds(_Renaming):
    """Ids are compared by their first 255 bytes."""

    @staticmethod
    def rename(name: str) -> str:
        return name.encode()[:255].decode(errors="ignore")


class IgnoresTenant(_Defect):
    """All tenants share the sessions."""

    def conversations(self, tenant: str) -> MemoryConversations:
        return super().conversations("")


class IgnoresUser(_Defect):
    """Whoever knows an id reads the session."""

    class Talks(_Talks):
        async def read(self, session_id: str, *, user_id: str | None = None, **how: Any) -> History:
            return await super().read(session_id, **how)


class ListsTheExpired(_Defect):
    """Expired sessions are listed until they are purged."""

    class Talks(_Talks):
        async def sessions(self, *, user_id: str | None = None, **how: Any) -> Page[Session]:
            kept = self._tenant.sessions.values()
            shown = [one.shown(self._name) for one in kept if one.deleted is None]
            return Page([session for session in shown if user_id in (None, session.user_id)])


class ExpiryGoesBackToOne(_Defect):
    """An expired session begins anew with a `seq` that it had before."""

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            if self._tenant.find(session_id) is None:
                self._tenant.sessions.pop(session_id, None)
                self._tenant.listings.clear()
            return await super().append(session_id, *args, **how)


class IgnoresExpect(_Defect):
    """The last writer wins, whatever it expected."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            return await super().put(key, value, ttl=how.get("ttl"))


class ChecksThenPuts(_Defect):
    """The version is compared in one step and written in another."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            stored = await self.get(key)
            expect = how.pop("expect", None)
            if expect is not None and expect != (stored.version if stored else 0):
                raise ConflictError("another version")
            await asyncio.sleep(0)
            return await super().put(key, value, **how)


class RepeatsVersions(_Defect):
    """Versions count from 1 for each key, and again after a deletion."""

    class Values(_Values):
        async def put(self, key: str, value: object, **how: Any) -> Versioned:
            stored = await self.get(key)
            put = await super().put(key, value, **how)
            self._values[key].version = version = (stored.version if stored else 0) + 1
            return replace(put, version=version)


class ReplaceKeepsTheBody(_Defect):
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


class CutsExchanges(_Defect):
    """A window is the last n messages, whatever they are."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            if how.get("last") and how.get("max_tokens") is None:
                how["after"] = how.get("after") or 0
            return await super().read(session_id, **how)


class AnswersTheFirstCall(_Defect):
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


class IncludesTheBound(_Defect):
    """`after` gives the message again that it names."""

    class Talks(_Talks):
        async def read(self, session_id: str, **how: Any) -> History:
            if how.get("after"):
                how["after"] -= 1
            return await super().read(session_id, **how)


class PrefixIsAPattern(_Defect):
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


class LosesNul(_Altering):
    """NUL is cut out of the text."""

    @staticmethod
    def alter(message: Message) -> Message:
        if not isinstance(message.content, str):
            return message
        return replace(message, content=message.content.replace("\0", ""))


class LosesAbsence(_Altering):
    """A content that was absent comes back as null."""

    @staticmethod
    def alter(message: Message) -> Message:
        return replace(message, content=None) if message.content is UNSET else message


class LosesMicroseconds(_Altering):
    """Times are kept to the millisecond."""

    @staticmethod
    def alter(message: Message) -> Message:
        whole = message.created_at.microsecond // 1000 * 1000
        return replace(message, created_at=message.created_at.replace(microsecond=whole))


class ForgetsItsOperations(_Defect):
    """A rewind that comes again counts what is left to drop."""

    class Talks(_Talks):
        async def rewind(self, session_id: str, *, to: int) -> int:
            if kept := self._tenant.find(session_id):
                kept.operation = ""
            return await super().rewind(session_id, to=to)


class TellsTheBody(_Defect):
    """A conflict quotes what it is about, as servers do."""

    class Talks(_Talks):
        async def append(
            self, session_id: str, messages: Sequence[Message], **how: Any
        ) -> AppendResult:
            try:
                return await super().append(session_id, messages, **how)
            except ConflictError:
                raise ConflictError(f"failing row contains {messages[0].content}") from None


class TakesAnAppendDown(_Defect):
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


class GrowsWithTheSession(_Defect):
    """An append rewrites all of the session."""

    class Talks(_Talks):
        async def append(self, session_id: str, *args: Any, **how: Any) -> AppendResult:
            result = await super().append(session_id, *args, **how)
            ledger = self._tenant.sessions[session_id].ledger
            ledger.rows = [Row.of(row.message(), row.seq) for row in ledger.rows]
            return result


class IgnoresTtl(_Defect):
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


# What the kit makes of them.

FINDS: list[tuple[type[MemoryDriver], str]] = [
    (NoDeduplication, "test_repeat_changes_nothing"),
    (NoDeduplication, "test_append_again"),
    (LosesTheLast, "test_append_then_read"),
    (LosesTheLast, "test_size_of_a_batch"),
    (OrdersById, "test_message_ids"),
    (ReusesSeqAfterRewind, "test_seq_never_comes_again"),
    (ReusesSeqAfterRewind, "test_any_sequence_of_calls"),
    (ReusesSeqAfterDelete, "test_seq_never_comes_again"),
    (ReusesSeqAfterDelete, "test_any_sequence_of_calls"),
    (GivesSeqBeforeTheCommit, "test_pager_misses_nothing"),
    (GivesSeqBeforeTheCommit, "test_one_session"),
    (AcknowledgesFirst, "test_append_then_read"),
    (AcknowledgesFirst, "test_one_session"),
    (WritesByHalves, "test_conflict_writes_nothing_of_the_batch"),
    (WritesByHalves, "test_cancelled_append"),
    (WritesByHalves, "test_one_session"),
    (FoldsCase, "test_session_ids"),
    (TrimsIds, "test_session_ids"),
    (NormalisesIds, "test_session_ids"),
    (CutsIds, "test_session_ids"),
    (IgnoresTenant, "test_tenants"),
    (IgnoresTenant, "test_tenants_share_nothing"),
    (IgnoresUser, "test_session_of_another_user"),
    (ListsTheExpired, "test_expired_session_is_absent"),
    (ListsTheExpired, "test_listing_skips_the_expired"),
    (ExpiryGoesBackToOne, "test_expired_session_begins_anew"),
    (IgnoresExpect, "test_put_expecting_a_version"),
    (IgnoresExpect, "test_one_put_wins"),
    (ChecksThenPuts, "test_one_put_wins"),
    (ChecksThenPuts, "test_increments_add_up"),
    (RepeatsVersions, "test_versions_never_repeat"),
    (ReplaceKeepsTheBody, "test_replaced_body_is_gone"),
    (CutsExchanges, "test_window_holds_the_call_of_its_first_result"),
    (CutsExchanges, "test_generated_windows"),
    (AnswersTheFirstCall, "test_call_ids_that_come_again"),
    (AnswersTheFirstCall, "test_generated_windows"),
    (IncludesTheBound, "test_bounds_are_exclusive"),
    (PrefixIsAPattern, "test_prefix_is_no_pattern"),
    (LosesNul, "test_text"),
    (LosesAbsence, "test_openai_format"),
    (LosesMicroseconds, "test_times"),
    (ForgetsItsOperations, "test_rewind_again"),
    (TellsTheBody, "test_conflict_shows_no_text"),
    (TakesAnAppendDown, "test_bad_append_spares_its_neighbours"),
    (GrowsWithTheSession, "test_length_of_a_session_costs_nothing"),
    (IgnoresTtl, "test_without_ttl"),
]


def _scheme(driver: type[MemoryDriver]) -> str:
    return driver.__name__.lower()


class Results:
    """What became of the tests of one run."""

    def __init__(self, report: Path) -> None:
        self._outcomes: dict[tuple[str, str], str] = {}
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
            outcome = next((found.tag for found in case if found.tag in _OUTCOMES), "passed")
            self._outcomes[case.attrib["classname"].rpartition(".")[2], case.attrib["name"]] = (
                outcome
            )

    def __getitem__(self, key: tuple[str, str]) -> str:
        return self._outcomes[key]

    def of(self, name: str) -> dict[str, str]:
        """Give the outcomes of the tests of one class."""
        return {test: found for (owner, test), found in self._outcomes.items() if owner == name}


_OUTCOMES = {"failure", "error", "skipped"}


class Elsewhere:
    """A project of somebody else, with drivers and tests of its own and no settings for pytest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        installed = root / "site" / "defects-0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: defects\nVersion: 0\n")
        drivers = {driver for driver, _ in FINDS} | {Sound, Modest}
        entries = [f"{_scheme(one)} = {Path(__file__).stem}:{one.__name__}" for one in drivers]
        (installed / "entry_points.txt").write_text("\n".join(["[agentstore.drivers]", *entries]))
        paths = [str(root / "site"), str(Path(__file__).parent)]
        inherited = os.environ.get("PYTHONPATH")
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST")
        } | {"PYTHONPATH": os.pathsep.join([*paths, inherited] if inherited else paths)}

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def test(self, source: str, *options: str) -> Results:
        """Run a file of tests, with warnings as errors."""
        (self.root / "test_theirs.py").write_text(_IMPORTS + source)
        report = self.root / "report.xml"
        ran = self.python(
            *("-m", "pytest", "--strict-markers", "-p", "no:cacheprovider", f"--junitxml={report}"),
            # pytest-asyncio deprecates that it isn't configured.
            *("-W", "error", "-W", "ignore::pytest.PytestDeprecationWarning"),
            *options,
        )
        assert ran.returncode in (0, 1), ran.stdout + ran.stderr
        return Results(report)


_IMPORTS = """
import pytest
from hypothesis import Phase, settings

# What is found here need not be made small.
settings.register_profile("found", phases=[Phase.generate])
settings.load_profile("found")

from agentstore.testing import AppendTests, CapabilityTests, StoreTests
"""


def _suite(name: str, base: str, url: str, body: str = "") -> str:
    return f"""
class {name}({base}):
    @pytest.fixture
    def database_url(self):
        return "{url}"
{body}
"""


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def found(elsewhere: Elsewhere) -> Results:
    """Run, in one go, each defect against the tests that have to find it."""
    drivers = {driver for driver, _ in FINDS} | {Sound}
    classes = [_suite(f"Test{one.__name__}", "StoreTests", f"{_scheme(one)}://") for one in drivers]
    finding = {f"test_theirs.py::Test{driver.__name__}::{test}" for driver, test in FINDS}
    control = {f"test_theirs.py::TestSound::{test}" for _, test in FINDS}
    return elsewhere.test("".join(classes), *sorted(finding | control))


@pytest.mark.parametrize(
    ("driver", "test"), FINDS, ids=[f"{driver.__name__}-{test}" for driver, test in FINDS]
)
def test_defect_is_found(found: Results, driver: type[MemoryDriver], test: str) -> None:
    """A driver with this defect fails this test, and one without any doesn't."""
    assert found[f"Test{driver.__name__}", test] == "failure"
    assert found["TestSound", test] != "failure"


def test_what_is_declared_absent_is_not_asked_for(elsewhere: Elsewhere) -> None:
    """A driver that can do little, and says so, passes; what it can't do is skipped."""
    results = elsewhere.test(_suite("TestModest", "StoreTests", "modest://"), "-m", "contract")
    outcomes = results.of("TestModest")
    assert {test for test, outcome in outcomes.items() if outcome in ("failure", "error")} == set()
    for test in ("test_without_ttl", "test_without_compare_and_set", "test_append_then_read"):
        assert outcomes[test] == "passed"
    for test in ("test_expired_session_is_absent", "test_one_put_wins", "test_newest_first"):
        assert outcomes[test] == "skipped"


def test_kit_is_whole() -> None:
    """`StoreTests` has every suite, and no test of one hides that of another."""
    suites = {
        value
        for name, value in vars(agentstore.testing.suite).items()
        if name.endswith("Tests") and value is not StoreTests
    }
    assert set(StoreTests.__bases__) == suites
    assert len(suites) == len(list(Path(agentstore.testing.suite.__file__).parent.glob("[a-z]*")))
    names = [name for suite in suites for name in vars(suite) if name.startswith("test_")]
    assert len(names) == len(set(names))
    undocumented = [name for name in names if not getattr(StoreTests, name).__doc__]
    assert undocumented == []


def test_overridden_tests_show(elsewhere: Elsewhere) -> None:
    """A standard test that is replaced or taken away fails the guard, unless it says why."""
    removed = "    test_append_then_read = None\n"
    replaced = "    async def test_append_then_read(self):\n        pass\n"
    excused = f"    @pytest.mark.xfail(reason='their engine')\n{replaced}"
    silent = f"    @pytest.mark.xfail\n{replaced}"
    skipped = f"    @pytest.mark.skip(reason='too slow')\n{replaced}"
    more = "    async def test_of_their_own(self, database):\n        pass\n"
    bodies = {
        "Removed": removed,
        "Replaced": replaced,
        "Excused": excused,
        "Silent": silent,
        "Skipped": skipped,
        "More": more,
    }
    source = "".join(
        _suite(f"Test{name}", "AppendTests", "sound://", body) for name, body in bodies.items()
    )
    results = elsewhere.test(source, "-k", "standard or then_read or own")
    guard = "test_standard_tests_are_as_they_came"
    assert {name: results[f"Test{name}", guard] for name in bodies} == {
        "Removed": "failure",
        "Replaced": "failure",
        "Excused": "passed",
        "Silent": "failure",
        "Skipped": "failure",
        "More": "passed",
    }
    assert results["TestMore", "test_of_their_own"] == "passed"


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_either_mode_of_asyncio(elsewhere: Elsewhere, mode: str) -> None:
    """The suites run in both modes of pytest-asyncio, whatever loops the project shares."""
    results = elsewhere.test(
        _suite("TestMode", "CapabilityTests", "sound://"),
        *("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_test_loop_scope=session"),
        *("-o", "asyncio_default_fixture_loop_scope=session"),
    )
    outcomes = results.of("TestMode")
    assert outcomes["test_driver_is_one"] == outcomes["test_capabilities_make_sense"] == "passed"
    assert set(outcomes.values()) == {"passed", "skipped"}


def test_url_is_asked_for(elsewhere: Elsewhere) -> None:
    """A class without `database_url` says what it lacks."""
    elsewhere.test("class TestNothing(CapabilityTests):\n    pass\n")
    report = (elsewhere.root / "report.xml").read_text()
    assert "TestNothing needs a fixture database_url" in report


def test_without_pytest(elsewhere: Elsewhere) -> None:
    """Without pytest the kit names the command that installs it; the proxy needs none."""
    code = "import sys; sys.modules[{!r}] = None; import agentstore.testing.proxy; {}"
    suites = "from agentstore.testing import StoreTests"
    for missing in ("pytest", "pytest_asyncio", "hypothesis"):
        assert elsewhere.python("-c", code.format(missing, "")).returncode == 0
        ran = elsewhere.python("-c", code.format(missing, suites))
        assert ran.stderr.splitlines()[-1] == (
            "agentstore.errors.MissingDependencyError: the kit needs "
            f'{missing}: run pip install "agentstore-sdk[testing]"'
        )


def test_report_of_a_driver(elsewhere: Elsewhere) -> None:
    """`python -m agentstore.testing URL` tells what a driver declares, and that it works."""
    ran = elsewhere.python("-m", "agentstore.testing", "sound://")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("sound://", "ok")
    table = dict(line.split()[:2] for line in lines if len(line.split()) > 1)
    assert (table["compare_and_set"], table["shared"], table["order"]) == ("yes", "no", "commit")
    assert table["depth"] == "400"
    assert float(table["get"]) > 0


def test_report_of_a_defect(elsewhere: Elsewhere) -> None:
    """Where something came back wrong, the report says what, and exits with 1."""
    ran = elsewhere.python("-m", "agentstore.testing", "losesnul://")
    assert ran.returncode == 1
    assert "messages came back other than they were written" in ran.stdout.splitlines()[-1]


@pytest.mark.parametrize("url", ["sound://ada:s3cret@host/x?token=s3cret", "nobody://a:s3cret@b/"])
def test_report_hides_secrets(elsewhere: Elsewhere, url: str) -> None:
    """The secrets of the URL are in no line of the report, nor of its errors."""
    ran = elsewhere.python("-m", "agentstore.testing", url)
    assert ran.returncode == 1
    assert "s3cret" not in ran.stdout + ran.stderr
    assert "Error: " in ran.stderr
    assert "Traceback" not in ran.stderr


def _reuses_a_call_id(session: list[Message]) -> bool:
    ids = [call["id"] for message in session for call in message.tool_calls or ()]
    return len(set(ids)) < len(ids)


def test_corpus_is_of_valid_ids() -> None:
    """The ids of the corpus are all different, and all within the limits of an id."""
    assert len(set(IDS)) == len(IDS)
    assert {one for one in IDS if not 0 < len(one.encode()) <= 512 or "\0" in one} == set()


@pytest.mark.parametrize(
    "is_hard",
    [
        lambda session: any(len(message.tool_calls or ()) == 20 for message in session),
        lambda session: len(session) > 60,
        _reuses_a_call_id,
    ],
    ids=["20 calls", "60 messages", "a call id again"],
)
def test_generated_sessions_are_hard(is_hard: Callable[[list[Message]], bool]) -> None:
    """The strategy for conversations soon makes the sessions that it promises."""
    soon = settings(max_examples=200, derandomize=True, database=None, phases=[Phase.generate])
    assert is_hard(find(conversations(), is_hard, settings=soon))
