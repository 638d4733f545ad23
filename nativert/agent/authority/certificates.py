"""Keys and certificates, made by the program openssl (3.0 or later).

Keys are of P-256, in files of mode 0600; nothing of the system's openssl.cnf counts.
"""

from __future__ import annotations

import ipaddress
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nativert.errors import Code, NativertError

AUTHORITY_DAYS: Final = 7300
_LONGEST_S: Final = 60.0
_AUTHORITY: Final = (
    "basicConstraints = critical, CA:TRUE, pathlen:0",
    "keyUsage = critical, keyCertSign, cRLSign",
    "subjectKeyIdentifier = hash",
)
_LEAF: Final = (
    "basicConstraints = critical, CA:FALSE",
    "keyUsage = critical, digitalSignature",
    "subjectKeyIdentifier = hash",
    "authorityKeyIdentifier = keyid",
)


def make_authority(certificate: Path, key: Path, name: str) -> None:
    """Make an authority; NativertError REQUIREMENTS without openssl, FAILED."""
    _request(certificate, key, name, _AUTHORITY, AUTHORITY_DAYS)


def issue(
    authority: tuple[Path, Path],
    certificate: Path,
    key: Path,
    common_name: str,
    *,
    days: int,
    serves: Sequence[str] = (),
) -> None:
    """Make a key, and a certificate of *authority* (certificate, key) for it.

    Who has it is a server under the names and addresses in *serves*, and a client of others.
    Without any it is a client only: nobody can pass for a node with it.
    """
    extensions = [*_LEAF, "extendedKeyUsage = clientAuth"]
    if serves:
        extensions[-1] += ", serverAuth"
        extensions.append("subjectAltName = " + ", ".join(_alternative(name) for name in serves))
    signed = ("-CA", str(authority[0]), "-CAkey", str(authority[1]))
    _request(certificate, key, common_name, extensions, days, signed)


def _alternative(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _request(
    certificate: Path,
    key: Path,
    common_name: str,
    extensions: Sequence[str],
    days: int,
    signed: Sequence[str] = (),
) -> None:
    lines = (
        "[req]",
        "distinguished_name = subject",
        "x509_extensions = extensions",
        "prompt = no",
        "string_mask = utf8only",
        "[subject]",
        f"CN = {common_name}",
        "[extensions]",
        *extensions,
    )
    with tempfile.NamedTemporaryFile("w", prefix="nativert-", suffix=".cnf") as config:
        config.write("\n".join(lines) + "\n")
        config.flush()
        _openssl(
            "req", "-x509", "-sha256", "-days", str(days),
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
            "-keyout", str(key), "-out", str(certificate), "-config", config.name, *signed,
        )  # fmt: skip


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=0o077,
            timeout=_LONGEST_S,
            check=False,
        )
    except FileNotFoundError:
        raise NativertError(
            "the program openssl is not installed",
            code=Code.REQUIREMENTS,
            hint="install the package openssl, or run this on another machine",
        ) from None
    except subprocess.TimeoutExpired:
        raise NativertError(f"openssl: no end within {_LONGEST_S:g} s", code=Code.TIMEOUT) from None
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if line.strip("-.+* ")]
        raise NativertError(
            f"openssl {arguments[0]}: {'; '.join(told[-2:]) or f'exit code {done.returncode}'}",
            hint="it must be version 3.0 or later",
        )
