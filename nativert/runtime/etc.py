"""The layers of an instance's /etc: what hides the host's secrets, and places for mounts.

They are laid over the host's or the image's /etc by overlayfs (see filesystems/overlayfs in
the kernel's documentation): nothing can be added to a directory that is shown read-only.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The application's ids are not the host's, so that modes refuse these already; they are not
# shown even by name.
SECRET: Final = (
    "shadow", "shadow-", "gshadow", "gshadow-", "ssh", "ssl/private", "sudoers", "sudoers.d",
    "security/opasswd", "krb5.keytab", "wireguard", "wpa_supplicant", "letsencrypt", "nativert",
    "NetworkManager/system-connections", "ipsec.secrets", "ipsec.d/private", "pki/tls/private",
)  # fmt: skip
_WHITEOUT: Final = os.makedev(0, 0)


def hidden(directory: Path, lower: Path) -> Path:
    """Return a layer of whiteouts beneath *directory* for the secrets in *lower*.

    It serves every instance and is made by the first that needs it. Raises OSError.
    """
    above = _above(lower)
    key = hashlib.sha256(repr((SECRET, above)).encode()).hexdigest()[:16]
    made = directory / key
    if made.is_dir():
        return made
    import shutil
    import tempfile

    directory.mkdir(mode=0o700, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=directory))
    try:
        for name, mode in above:
            (new / name).mkdir()
            (new / name).chmod(mode)
        for name in SECRET:
            if (new / name).parent.is_dir():
                os.mknod(new / name, stat.S_IFCHR, _WHITEOUT)
        new.chmod(0o755)
        os.rename(new, made)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        # Another command was faster.
        if not made.is_dir():
            raise
    return made


def _above(lower: Path) -> list[tuple[str, int]]:
    # A directory of ours covers the mode of the one that it is merged with, and is seen where
    # there is none, or a link.
    found: dict[str, int] = {}
    for name in SECRET:
        parts = name.split("/")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            mode = _mode(lower / above)
            if mode is None or not stat.S_ISDIR(mode):
                break
            found[above] = stat.S_IMODE(mode)
    return list(found.items())


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def place_mounts(etc: Path, lower: Path | None, mounts: Sequence[tuple[str, bool]]) -> None:
    """Make what (target, whether a directory) in *mounts* is mounted on, in the layer *etc*.

    Also for what *lower* lacks, or is hidden of it. Raises OSError.
    """
    for target, directory in mounts:
        if target.startswith("/etc/"):
            _place(etc, lower, target.removeprefix("/etc/").split("/"), directory=directory)


def _place(etc: Path, lower: Path | None, parts: Sequence[str], *, directory: bool) -> None:
    for count in range(1, len(parts)):
        above = "/".join(parts[:count])
        mode = None if lower is None else _mode(lower / above)
        if mode is not None and not stat.S_ISDIR(mode):
            return  # The mount is refused: on its way no link is followed.
        if not (etc / above).is_dir():
            (etc / above).mkdir()
            (etc / above).chmod(0o755 if mode is None else stat.S_IMODE(mode))
    point = etc.joinpath(*parts)
    if directory:
        point.mkdir(exist_ok=True)
    else:
        point.touch(exist_ok=True)
