"""What users install: the wheels, and what has to be in them."""

from __future__ import annotations

import importlib
import os
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("AGENTSTORE_TEST_WHEELS") != "1",
    reason="the wheels are not installed; nox installs them and sets AGENTSTORE_TEST_WHEELS=1",
)

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "agentstore-sdk": ROOT / "agentstore",
    "agentstore-json": ROOT / "drivers/json/agentstore_json",
    "agentstore-sql": ROOT / "drivers/sql/agentstore_sql",
}


@pytest.fixture(params=PACKAGES)
def wheel(request: pytest.FixtureRequest) -> Distribution:
    return Distribution.from_name(request.param)


@pytest.fixture
def source(wheel: Distribution) -> Path:
    return PACKAGES[wheel.name]


@pytest.fixture
def shipped(wheel: Distribution) -> set[str]:
    return {path.as_posix() for path in wheel.files or ()}


def test_the_wheel_is_what_is_tested(source: Path) -> None:
    """An import finds the installed package and not its source."""
    package = importlib.import_module(source.name)

    assert package.__file__ == str(Path(sysconfig.get_path("purelib"), source.name, "__init__.py"))


def test_every_file_is_shipped(source: Path, shipped: set[str]) -> None:
    """The package in the wheel is whole: its modules, its data, its migrations."""
    files = {path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert {path.relative_to(source.parent).as_posix() for path in files} - shipped == set()


def test_nothing_else_is_shipped(source: Path, shipped: set[str]) -> None:
    """Beside the package and the metadata, site-packages gets nothing."""
    names = {path.partition("/")[0] for path in shipped}

    assert {name for name in names if not name.endswith(".dist-info")} - {".."} == {source.name}


def test_types_are_shipped(source: Path, shipped: set[str]) -> None:
    """A user's type checker sees the annotations."""
    assert f"{source.name}/py.typed" in shipped


def test_the_licence_is_shipped(wheel: Distribution) -> None:
    """Each wheel carries the licence of the project, word for word."""
    assert wheel.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
