"""`ssl_mode` and its certificates, as MySQL's own client names them."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentstore.errors import ConfigurationError

TLS_OPTIONS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_mode")

_MODES = ("DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")


def tls_mode(options: Mapping[str, Any], host: str | None) -> str:
    """Say what is asked for: off this machine a verified connection, unless told otherwise.

    `host` is `None` for a socket of the file system.
    """
    plain = is_here(host) and not any(options.get(name) for name in TLS_OPTIONS)
    default = "DISABLED" if plain else "VERIFY_IDENTITY"
    mode = str(options.get("ssl_mode", default)).upper().replace("-", "_")
    if mode == "PREFERRED":
        raise ConfigurationError(
            "ssl_mode=PREFERRED goes on in plaintext when it is told to: ask for VERIFY_IDENTITY, "
            "or for REQUIRED (encrypted, not verified) or DISABLED (plaintext)"
        )
    if mode not in _MODES:
        raise ConfigurationError(f"ssl_mode is {mode!r}: one of {', '.join(_MODES)}")
    if host is None and mode != "DISABLED":
        raise ConfigurationError("TLS doesn't go over a unix_socket: leave the ssl options away")
    return mode


def tls_context(mode: str, options: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Make the context of a mode; reads the certificates."""
    if mode == "DISABLED":
        return None
    authority = _file(options, "ssl_ca")
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate := _file(options, "ssl_cert"):
            # The password of a key is not asked for on a terminal that nobody looks at.
            context.load_cert_chain(certificate, _file(options, "ssl_key"), password="")
    except ssl.SSLError:
        raise ConfigurationError(
            "ssl_ca, ssl_cert or ssl_key is no certificate or key, or they don't match"
        ) from None
    if mode != "VERIFY_IDENTITY":
        context.check_hostname = False
    # An authority that is given is asked, whatever the mode.
    if mode == "REQUIRED" and authority is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def is_here(host: str | None) -> bool:
    """Tell whether nothing that is sent there leaves this machine."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(options: Mapping[str, Any], name: str) -> str | None:
    path = options.get(name)
    if path is None:
        return None
    if not Path(path).is_file():
        raise ConfigurationError(f"{name} is {str(path)!r}: there is no such file")
    return str(path)
