"""The conformance kit finds the defects that drivers have, and runs wherever it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import Phase, find, settings

import agentstore.testing.suite
import defects
from agentstore.testing.corpus import IDS
from agentstore.testing.strategies import conversations
from agentstore.testing.suite import StoreTests
from agentstore.types import Message

pytestmark = pytest.mark.timeout(180)


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
        drivers = [one.__name__ for one in (*defects.DEFECTS, defects.Sound, defects.Modest)]
        entries = [f"{name.lower()} = defects:{name}" for name in drivers]
        (installed / "entry_points.txt").write_text("\n".join(["[agentstore.drivers]", *entries]))
        paths = [str(root / "site"), str(Path(__file__).parent)]
        inherited = os.environ.get("PYTHONPATH")
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AGENTSTORE", "PYTEST"))
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


FINDS = [(defect.__name__, test) for defect in defects.DEFECTS for test in defect.found_by]


@pytest.fixture(scope="session")
def found(elsewhere: Elsewhere) -> Results:
    """Run, in one go, each defect against the tests that have to find it."""
    names = {"Sound", *(defect for defect, _ in FINDS)}
    source = "".join(_suite(f"Test{name}", "StoreTests", f"{name.lower()}://") for name in names)
    finding = {f"test_theirs.py::Test{defect}::{test}" for defect, test in FINDS}
    control = {f"test_theirs.py::TestSound::{test}" for _, test in FINDS}
    return elsewhere.test(source, *sorted(finding | control))


@pytest.mark.parametrize(("defect", "test"), FINDS)
def test_defect_is_found(found: Results, defect: str, test: str) -> None:
    """A driver with this defect fails this test, and one without any doesn't."""
    assert found[f"Test{defect}", test] == "failure"
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
