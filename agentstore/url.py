"""Database URLs, which show their secrets to nobody but the driver."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from .errors import ConfigurationError

__all__ = ["URL"]

_SHAPE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*):(?P<slashes>//)?(?P<rest>.*)", re.DOTALL)
_SECRET = re.compile(
    r"pass|pwd|secret|token|key|credential|auth(?!source|mechanism$)", re.IGNORECASE
)
_PAIR = re.compile(r"([?&])([^=&]*)=([^&]*)")
_MASK = "***"


@dataclass(frozen=True, slots=True, repr=False)
class URL:
    """A URL as it was written: `scheme://authority/path?query`.

    `str()` and `repr()` hide the password and every secret of the query; `secret` is the text
    itself, for the driver that connects with it.
    """

    secret: str
    scheme: str
    authority: str
    path: str
    query: str

    @classmethod
    def parse(cls, text: str) -> URL:
        """Take a URL apart; `ConfigurationError` where it is none."""
        found = _SHAPE.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None or found["slashes"] is None:
            # The text itself stays out of the message: it may be a password pasted alone.
            raise ConfigurationError(
                "database_url is not a URL: expected scheme://…, such as sqlite:///agents.db"
            )
        rest, _, query = found["rest"].partition("?")
        authority, slash, path = rest.partition("/")
        return cls(text.strip(), found["scheme"].lower(), authority, slash + path, query)

    @property
    def options(self) -> dict[str, str]:
        """The query, decoded; a key that comes twice is a `ConfigurationError`."""
        pairs = parse_qsl(self.query, keep_blank_values=True)
        options = dict(pairs)
        if len(options) != len(pairs):
            raise ConfigurationError(f"{self}: an option is given twice")
        return options

    @property
    def decoded_path(self) -> str:
        """The path with its percent escapes resolved."""
        return unquote(self.path)

    def __str__(self) -> str:
        scheme, _, rest = self.secret.partition("://")
        # From the first colon to the last "@": people don't escape what is in their passwords.
        userinfo, at, hosts = rest.rpartition("@")
        user, colon, _ = userinfo.partition(":")
        shown = f"{user}{colon and ':' + _MASK}{at}{hosts}"
        return f"{scheme}://{_PAIR.sub(_masked, shown)}"

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a URL holds a password and is not pickled; pickle where it comes from")


def _masked(pair: re.Match[str]) -> str:
    separator, key, value = pair.groups()
    return f"{separator}{key}={_MASK if _SECRET.search(unquote(key)) else value}"
