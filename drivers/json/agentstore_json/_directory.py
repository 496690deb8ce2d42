"""Opening a store's directory, and making it where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agentstore.errors import ConfigurationError

from . import _files as files
from ._locks import Locks

FORMAT = 1

_FOLDERS = ("conversations", "locks", "state")
_FORMAT_FILE = "format.json"


class _Format(msgspec.Struct):
    format: int


_FORMAT = msgspec.json.Decoder(_Format)


def open_directory(path: Path, timeout: float) -> tuple[Path, Locks]:
    """Give the real path of a store, ready for use, and its locks.

    Only the last part of the path is made; `ConfigurationError` where it is no store of ours.
    """
    if not path.parent.is_dir():
        raise ConfigurationError(f"the directory {path.parent} of the store is missing")
    base = path.resolve()
    if base.exists() and not base.is_dir():
        raise ConfigurationError(f"{base} is a file, and a store of JSON files is a directory")
    files.make_directory(base)
    if not os.access(base, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(f"{base} can't be opened for writing: is it read-only?")
    marker = base / _FORMAT_FILE
    # In this order: of a store that another process makes meanwhile, the marker comes first.
    strangers = _strangers(base)
    if marker.exists():
        _check_format(marker)
    elif strangers:
        raise ConfigurationError(
            f"{base} is no store, and not empty ({strangers[0]!r}): give a directory of its own"
        )
    for folder in _FOLDERS:
        files.make_directory(base / folder)
    locks = Locks(base / "locks", timeout)
    with locks.hold("format"):
        if not marker.exists():
            files.replace(marker, msgspec.json.encode(_Format(FORMAT)) + b"\n")
    return base, locks


def _strangers(base: Path) -> list[str]:
    """List what a process that was killed while it opened the store can't have left there."""
    ours = {*_FOLDERS, f"{_FORMAT_FILE}.new"}
    return sorted(entry.name for entry in base.iterdir() if entry.name not in ours)


def _check_format(marker: Path) -> None:
    try:
        found = _FORMAT.decode(marker.read_bytes()).format
    except msgspec.DecodeError:
        raise ConfigurationError(f"{marker} is damaged, or not a store's") from None
    if found > FORMAT:
        raise ConfigurationError(
            f"{marker.parent} has format {found}, and this version of agentstore-json reads "
            f"up to {FORMAT}: upgrade it"
        )
