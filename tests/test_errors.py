"""The error tree, and the page that shows it."""

from __future__ import annotations

import copy
import pickle
import re
import traceback
from pathlib import Path

import pytest

from agentstore import connect, errors
from agentstore.driver import translated
from agentstore.errors import (
    AgentStoreError,
    ConfigurationError,
    DataError,
    DeadlineError,
    StoreError,
)

TREE = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, AgentStoreError)
}
DOCS = Path(__file__).parent.parent / "docs" / "errors.md"


_ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| (?:`(\w+)`)? ?\| (\w*) ?\|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, str]]:
    """Read the table of the page: class → (built-in base, retryable)."""
    found = _ROW.findall(DOCS.read_text())
    return {name: (base, retryable) for name, base, retryable in found}


def test_page_has_every_class() -> None:
    """The table of docs/errors.md has each class that can be raised, and no other."""
    assert rows().keys() == TREE.keys() - {"AgentStoreError", "StoreError"}


@pytest.mark.parametrize("name", sorted(rows()))
def test_page_is_true(name: str) -> None:
    """What the table says of a class is so."""
    base, retryable = rows()[name]
    bases = {one.__name__ for one in TREE[name].__mro__} - TREE.keys()
    inherited = {"ValueError"} if issubclass(TREE[name], ConfigurationError) else set()
    assert not base or base in bases
    assert bases - inherited - {"Exception", "BaseException", "object", "OSError"} <= {
        base,
        "RuntimeError",
    }
    if issubclass(TREE[name], StoreError):
        assert TREE[name]("x").retryable is (retryable == "yes")
    else:
        assert retryable == ""


def test_docstring_draws_the_tree() -> None:
    """The module's docstring names every class, each below its parent."""
    depth_of: dict[str, int] = {}
    path: list[str] = []
    assert errors.__doc__
    for line in errors.__doc__.splitlines():
        drawn = re.search(r"[A-Z]\w+Error", line)
        if drawn and line.startswith("    "):
            depth_of[drawn[0]] = drawn.start()
            path = [name for name in path if depth_of[name] < drawn.start()]
            assert not path or path[-1] in {base.__name__ for base in TREE[drawn[0]].__bases__}
            path.append(drawn[0])
    assert depth_of.keys() == TREE.keys()


def test_survives_copies() -> None:
    """An error that crosses processes keeps what it knows."""
    error = DeadlineError(
        "no answer", backend="sqlite:///a.db", operation="append", outcome_unknown=True
    )
    pickled = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    for twin in (pickled, copy.copy(error)):
        assert str(twin) == "sqlite:///a.db append: no answer"
        assert (twin.retryable, twin.outcome_unknown) == (True, True)


@pytest.mark.asyncio
async def test_translation_leaves_nothing_behind() -> None:
    """A translated error has neither cause nor context: the original may quote a message."""

    async def work() -> None:
        raise KeyError("Failing row contains (secret words)")

    with pytest.raises(StoreError) as raised:
        await translated(
            work(), failures=(KeyError,), translate=lambda _: StoreError("it failed", code="23505")
        )
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    assert str(raised.value) == "it failed [23505]"


@pytest.mark.asyncio
async def test_translation_for_debugging() -> None:
    """Asked for, the original is the cause."""

    async def work() -> None:
        raise KeyError("original")

    with pytest.raises(StoreError) as raised:
        await translated(
            work(), failures=(KeyError,), translate=lambda _: StoreError("it failed"), debug=True
        )
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.asyncio
async def test_refused_text_is_not_kept() -> None:
    """An error about a text that can't be stored doesn't hold the text, however it is looked at."""
    async with connect("memory://") as database:
        with pytest.raises(DataError) as raised:
            await database.conversations.append(
                "s", [{"role": "user", "content": "secret words \ud800"}]
            )
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
