"""`sslmode` and its certificates, as asyncpg takes them."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentstore.errors import ConfigurationError

TLS_OPTIONS = ("sslcert", "sslkey", "sslmode", "sslrootcert")

_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")


def tls_mode(options: Mapping[str, Any], hosts: Sequence[str]) -> str:
    """Say what is asked for: off loopback a verified connection, unless told otherwise."""
    here = all(map(_is_here, hosts))
    plain = here and not any(options.get(name) for name in TLS_OPTIONS)
    mode = str(options.get("sslmode", "disable" if plain else "verify-full"))
    if mode not in _MODES:
        raise ConfigurationError(f"sslmode is {mode!r}: one of {', '.join(_MODES)}")
    if mode == "prefer" and not here:
        raise ConfigurationError(
            "sslmode=prefer goes on in plaintext when it is told to: ask for verify-full, or for "
            "require (encrypted, not verified) or disable (plaintext)"
        )
    return mode


def tls_context(mode: str, options: Mapping[str, Any]) -> ssl.SSLContext | Literal[False, "prefer"]:
    """Make the context of a mode; reads the certificates."""
    if mode == "disable":
        return False
    if mode == "prefer":
        return "prefer"
    root = _file(options, "sslrootcert")
    try:
        context = ssl.create_default_context(cafile=root)
        if certificate := _file(options, "sslcert"):
            # The password of a key is not asked for on a terminal that nobody looks at.
            context.load_cert_chain(certificate, _file(options, "sslkey"), password="")
    except ssl.SSLError:
        raise ConfigurationError(
            "sslrootcert, sslcert or sslkey is no certificate or key, or they don't match"
        ) from None
    if mode != "verify-full":
        context.check_hostname = False
    # As with libpq, a root certificate that is given is used.
    if mode == "require" and root is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def _file(options: Mapping[str, Any], name: str) -> str | None:
    path = options.get(name)
    # "system" is libpq's word for the machine's own certificates.
    if path is None or (name == "sslrootcert" and path == "system"):
        return None
    if not Path(path).is_file():
        raise ConfigurationError(f"{name} is {str(path)!r}: there is no such file")
    return str(path)


def _is_here(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
