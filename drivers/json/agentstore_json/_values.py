"""The files of state: one for each value, in a directory for each scope."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from msgspec import Raw, Struct
from msgspec.json import Decoder, encode
from msgspec.json import format as indented

from agentstore.driver import key_hash, load
from agentstore.errors import DataError
from agentstore.types import Scope, Versioned

from . import _files as files
from ._records import decode, is_past
from ._store import Store


class Value(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the file of a value holds."""

    tenant: str
    scope: str
    owner: str
    key: str
    version: int
    expires_at: datetime | None = None
    operation: str
    value: Raw

    def shown(self) -> Versioned:
        """Give what a caller sees of it."""
        return Versioned(key=self.key, value=load(bytes(self.value)), version=self.version)


_VALUE = Decoder(Value)


class Values:
    """The values of one scope, under its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> Value | None:
        """Read a value, unless it is absent or has expired."""
        value = _load(self._path(key))
        return None if value is None or is_past(value.expires_at) else value

    def write(self, value: Value) -> None:
        """Write a value, durably."""
        for folder in (self._folder.parent, self._folder):
            files.make_directory(folder)
        text = indented(encode(value), indent=2)
        files.replace(self._path(value.key), text + b"\n")

    def settle(self) -> None:
        """Make durable what was written: whoever did it may have failed there."""
        files.sync_directory(self._folder)

    def remove(self, key: str) -> None:
        """Remove a value, and the directory with the last one."""
        files.remove(self._path(key))
        with suppress(OSError):  # others are left
            self._folder.rmdir()

    def keys(self) -> list[str]:
        """List the keys, in no order, of expired values too."""
        return [_key(path) for path in self._paths()]

    def expired(self, tenant: str) -> Iterator[Value]:
        """List the values of a tenant that have expired."""
        for path in self._paths():
            value = _read(path)
            if value.tenant == tenant and is_past(value.expires_at):
                yield value

    def _path(self, key: str) -> Path:
        return self._folder / f"{key_hash(key).hex()}.json"

    def _paths(self) -> list[Path]:
        try:
            paths = list(self._folder.iterdir())
        except FileNotFoundError:
            return []
        for path in paths:
            if path.suffix != ".json":  # a process was killed while it wrote
                path.unlink()
        return [path for path in paths if path.suffix == ".json"]


@contextmanager
def values_of(store: Store, tenant: str, scope: Scope) -> Iterator[Values]:
    """Lock the values of a scope for the block."""
    name = key_hash(tenant, scope.kind, scope.owner).hex()
    with store.locks.hold(name[:2]):
        yield Values(store.base / "state" / name[:2] / name)


def purge_values(store: Store, tenant: str, limit: int) -> int:
    """Remove up to `limit` expired values, and tell how many they were.

    There is no index of them: this looks into every value of the store.
    """
    done = 0
    for folder in store.base.glob("state/*/*"):
        with store.locks.hold(folder.name[:2]):
            values = Values(folder)
            for value in values.expired(tenant):
                if done == limit:
                    return done
                values.remove(value.key)
                done += 1
    return done


def _load(path: Path) -> Value | None:
    try:
        return _read(path)
    except FileNotFoundError:
        return None


def _read(path: Path) -> Value:
    value = decode(files.read_whole(path), _VALUE, str(path))
    scope = key_hash(value.tenant, value.scope, value.owner).hex()
    if (path.parent.name, path.stem) != (scope, key_hash(value.key).hex()):
        raise DataError(f"{path} holds another value: was it moved?")
    return value


@lru_cache(1 << 14)
def _key(path: Path) -> str:
    """Read a key from its file, once: a name never stands for another."""
    return _read(path).key
