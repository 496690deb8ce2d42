"""The edge between an engine's exceptions and ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import AgentStoreError

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


async def translated(
    work: Awaitable[T],
    *,
    failures: tuple[type[E], ...],
    translate: Callable[[E], AgentStoreError],
    debug: bool = False,
) -> T:
    """Await `work`, and raise what `translate` makes of the engine's `failures`.

    Engines put messages and keys into their exceptions ("Failing row contains …").
    So ours is raised outside of the handler: without cause or context, it drags none of that into
    a traceback or an error tracker.
    `debug` keeps the original as its cause.
    """
    try:
        return await work
    except failures as exc:
        original = exc
        error = translate(exc)
    raise error from (original if debug else None)
