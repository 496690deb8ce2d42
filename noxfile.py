"""The checks of every distribution here: `nox -s ci` is what has to pass.

What follows `--` goes to pytest: `nox -s ci -- -k window`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True
nox.options.sessions = ["ci"]
# `tests` takes the Pythons that are here; by default nox fetches the others, or demands them.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
PROJECTS = [
    path.parent
    for parent in ("drivers", "examples")
    for path in sorted(Path(parent).glob("*/pyproject.toml"))
]
SUITES = ["tests", *(str(path) for project in PROJECTS for path in project.glob("tests"))]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the import contracts."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    _lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the packages, of a file of uses, and of the tools."""
    _install(session, "types")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suites on each Python that is installed."""
    _install(session)
    for suite in SUITES:
        _pytest(session, suite)


@nox.session
def nightly(session: nox.Session) -> None:
    """Run the suites, and the tests in them that take minutes."""
    _install(session)
    for suite in SUITES:
        _pytest(session, suite, "-m", "")


@nox.session
def ci(session: nox.Session) -> None:
    """Run every group, those behind a failed one too, and say how long each took."""
    groups: dict[str, Callable[[], object]] = {
        "lint": partial(_lint, session),
        "types": partial(session.run, "mypy"),
        **{suite: partial(_pytest, session, suite) for suite in SUITES},
    }
    started = time.monotonic()
    _install(session, "lint", "types")
    table = [("install", time.monotonic() - started, "")]
    for name, run in groups.items():
        began = time.monotonic()
        try:
            run()
        except CommandFailed:
            outcome = "failed"
        else:
            outcome = ""
        table.append((name, time.monotonic() - began, outcome))
    table.append(("total", time.monotonic() - started, ""))
    for name, seconds, outcome in table:
        print(f"{name:<24} {seconds:7.1f} s  {outcome}".rstrip(), flush=True)
    if failed := [name for name, _, outcome in table if outcome]:
        session.error(f"failed: {', '.join(failed)}")


def _install(session: nox.Session, *groups: str) -> None:
    """Build each distribution and install the wheels, so that what users get is tested."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "tests", *groups))
    with tempfile.TemporaryDirectory() as wheels:
        for project in [Path(), *PROJECTS]:
            session.run("uv", "build", "--quiet", "--out-dir", wheels, str(project))
        session.install(
            *map(str, Path(wheels).glob("*.whl")),
            "agentstore-sdk[cli,openai,testing]",
            "agentstore-sql[asyncmy,mysql,postgresql]",
        )


def _lint(session: nox.Session) -> None:
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", env={"PYTHONPATH": os.pathsep.join(map(str, PROJECTS))})


def _pytest(session: nox.Session, suite: str, *options: str) -> None:
    session.run(
        "pytest",
        suite,
        *options,
        *session.posargs,
        env={"AGENTSTORE_TEST_WHEELS": "1", "PYTHONSAFEPATH": "1"},
        # What was asked for may lie in another suite: pytest exits with 5 where it ran nothing.
        success_codes=[0, 5] if session.posargs else [0],
    )
