"""Why an endpoint lets nobody in: Zenoh itself says only that it took too long.

The same TLS handshake is tried once by itself, which tells more.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final, NamedTuple

from nativert.plugin.zenoh_credentials import Credentials

_TRY_S: Final = 3.0
# A server tells that it refuses a certificate after the client has taken the handshake for done.
_ALERT_S: Final = 3.0
_PORT: Final = 7447


class Look(NamedTuple):
    """Whether a connection came about as far as it can be tried, and what was seen."""

    open: bool
    seen: str


def refusal(endpoint: str, credentials: Credentials | None) -> str:
    """Return what is wrong with ``tls/HOST:PORT`` or ``tcp/HOST:PORT``, as far as it shows."""
    return look(endpoint, credentials).seen


def look(endpoint: str, credentials: Credentials | None) -> Look:
    """Try an endpoint; it takes some seconds at most."""
    protocol, _, address = endpoint.partition("/")
    if protocol not in ("tls", "tcp"):
        return Look(True, f"{endpoint} does not let this one in")
    host, _, port = address.partition("#")[0].partition("?")[0].rpartition(":")
    host = host.strip("[]") or address
    number = int(port) if port.isdigit() else _PORT
    try:
        with socket.create_connection((host, number), timeout=_TRY_S) as plain:
            if protocol == "tls":
                return _handshake(plain, host, credentials)
    except OSError as e:
        return Look(False, f"{host}:{number}: {e.strerror or e}: look whether a node listens there")
    text = f"{host}:{number} takes connections, but may want TLS and credentials, or is no node"
    return Look(True, text)


def _handshake(plain: socket.socket, host: str, credentials: Credentials | None) -> Look:
    try:
        context = ssl.create_default_context(cafile=credentials.ca if credentials else None)
        if credentials and credentials.certificate:
            context.load_cert_chain(credentials.certificate, credentials.key)
    except OSError as e:
        return Look(False, f"the own certificate, key or authority cannot be used: {e}")
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(_ALERT_S)
            secure.recv(1)
    except ssl.SSLCertVerificationError as e:
        return Look(False, f"the certificate of {host} is not accepted here: {e.verify_message}")
    except TimeoutError:
        if credentials and credentials.user:
            return Look(True, f"{host} does not accept user {credentials.user} with this password")
        return Look(True, f"{host} accepts the certificate, but may want a user and a password")
    except ssl.SSLError as e:
        text = f"{host} does not accept the certificate shown, or none was: {e.reason}"
        return Look(False, text)
    except OSError as e:
        return Look(False, f"{host} ends the connection: {e.strerror or e}")
    return Look(False, f"{host} ends the connection after the handshake")
