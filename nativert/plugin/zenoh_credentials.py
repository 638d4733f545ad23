"""What a session shows to be let in: a certificate, or a user and a password; a file has them.

The file is TOML; paths in it are relative to its directory, as `nativert zenoh init` makes it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from nativert.errors import Code, DescriptorError, NativertError
from nativert.fdu.decoding import Part, build

# The common names, or users, by which a node knows who may do what.
NODE: Final = "nativert-node"
PLUGIN: Final = "nativert-plugin"
CLIENT: Final = "nativert-client"

_MAX_BYTES: Final = 1 << 16
_TLS: Final = "transport/link/tls"
_LOGIN: Final = "transport/auth/usrpwd"
_FILES: Final = ("ca", "certificate", "key")


class Credentials(Part, frozen=True, kw_only=True):
    """`ca` is who has signed the nodes' certificates; the paths are PEM files."""

    ca: str
    certificate: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        """Refuse half of a pair, and nothing to show."""
        for one, other in (("certificate", "key"), ("user", "password")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise DescriptorError(one, f"goes together with {other}: both, or none")
        if not self.certificate and not self.user:
            raise DescriptorError(
                "certificate", "is missing: certificate and key, or user and password are needed"
            )

    def options(self) -> dict[str, Any]:
        """Return the keys of Zenoh's own configuration for who connects."""
        values: dict[str, Any] = {f"{_TLS}/root_ca_certificate": self.ca}
        if self.certificate:
            values |= {
                f"{_TLS}/enable_mtls": True,
                f"{_TLS}/connect_certificate": self.certificate,
                f"{_TLS}/connect_private_key": self.key,
            }
        if self.user:
            values |= {f"{_LOGIN}/user": self.user, f"{_LOGIN}/password": self.password}
        return values


def listening(certificate: str, key: str, users: str | None) -> dict[str, Any]:
    """Return the keys of Zenoh's own configuration for who is connected to, too."""
    values: dict[str, Any] = {
        f"{_TLS}/enable_mtls": users is None,
        f"{_TLS}/listen_certificate": certificate,
        f"{_TLS}/listen_private_key": key,
    }
    return values if users is None else {**values, f"{_LOGIN}/dictionary_file": users}


def read(path: Path) -> Credentials:
    """Return what a file has; NativertError USAGE where it or a file that it names is no good."""
    private(path)
    try:
        tree = tomllib.loads(path.read_bytes()[:_MAX_BYTES].decode())
        found = build(tree, Credentials)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise NativertError(f"{path}: {e}", code=Code.USAGE) from None
    except DescriptorError as e:
        raise NativertError(f"{path}: {e.message}", code=Code.USAGE, hint=e.hint) from None
    placed = {
        name: str(path.parent.absolute() / value)
        for name in _FILES
        if (value := getattr(found, name))
    }
    if "key" in placed:
        private(Path(placed["key"]))
    for one in placed.values():
        _open(Path(one)).close()
    return msgspec.structs.replace(found, **placed)


def private(path: Path) -> None:
    """Refuse a file that cannot be read, and a secret that others can read too."""
    with _open(path) as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise NativertError(
                f"{path}: others than its owner may read it",
                code=Code.PERMISSION,
                hint=f"chmod 600 {path}",
            )


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as e:
        raise NativertError(f"{path}: {e.strerror}", code=Code.USAGE) from None
