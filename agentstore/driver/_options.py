"""Options of a URL and of `connect()`, refused where nobody knows them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ConfigurationError
from ..url import URL


def take_options(url: URL, given: Mapping[str, Any], *, known: Collection[str]) -> dict[str, Any]:
    """Join the options of a URL's query with those given in Python, which win.

    An unknown one is a `ConfigurationError` that names the nearest known one: a misspelt
    `sslmode` must not be skipped in silence.
    """
    options: dict[str, Any] = {**url.options, **given}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            listed = f"known are {', '.join(sorted(known))}" if known else "it has none"
            hint = f"did you mean {near[0]}?" if near else listed
            raise ConfigurationError(f"{url.scheme}:// has no option {name!r}; {hint}")
    return options
