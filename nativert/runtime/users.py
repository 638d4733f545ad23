"""Who the application is inside: uid and gid from a name or a number."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final, NamedTuple

from nativert.errors import Code, NativertError
from nativert.runtime import beneath

ID_COUNT: Final = 65536


class User(NamedTuple):
    """The application's ids as its user namespace numbers them, and its name there."""

    uid: int
    gid: int
    name: str
    known: bool
    """Whether the instance's passwd(5) has this uid."""


def _passwd(root: Path) -> bytes | None:
    # An image may have a link there, to a file of the host that only we may read.
    return beneath.read_in_root(root, "etc/passwd")


def _entries(root: Path) -> list[list[str]]:
    if root != Path("/"):
        return _parsed(_passwd(root) or b"")
    try:
        about = os.stat("/etc/passwd")
    except FileNotFoundError:
        return []
    # passwd(1) and its like rename another file over it.
    return _of_host(about.st_ino, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)
def _of_host(*_version: int) -> list[list[str]]:
    return _parsed(_passwd(Path("/")) or b"")


def _parsed(passwd: bytes) -> list[list[str]]:
    text = passwd.decode(errors="replace")
    lines = (line.split(":") for line in text.splitlines() if not line.startswith("#"))
    return [line for line in lines if len(line) >= 4 and _is_id(line[2])]


def _is_id(text: str) -> bool:
    # int() refuses thousands of digits, and an image may have them.
    return text.isdecimal() and len(text) <= 10


def find(user: str | int, root: Path) -> User:
    """Return the user in the passwd(5) beneath *root*; NativertError if a name is not there."""
    for name, _, uid, gid, *_rest in _entries(root):
        if user in (name, int(uid)):
            if int(uid) >= ID_COUNT or not _is_id(gid) or int(gid) >= ID_COUNT:
                raise NativertError(
                    f"user {user}: its ids {uid}:{gid} are outside of 0..{ID_COUNT - 1}",
                    code=Code.CONFIGURE,
                    hint="an instance has 65,536 ids; choose another user or a number",
                )
            # A number is a number: the group of whoever has it on this host is not asked for.
            group = int(gid) if isinstance(user, str) else int(uid)
            return User(int(uid), group, name, known=True)
    if isinstance(user, str):
        raise NativertError(
            f"user {user}: no such user in the instance's /etc/passwd",
            code=Code.CONFIGURE,
            hint="give a name that is there, or a uid",
        )
    return User(user, user, "app", known=False)


def passwd_with(user: User, root: Path) -> bytes:
    """Return the text of the passwd(5) beneath *root* with the user in it too."""
    text = _passwd(root)
    if text is None:
        text = b"root:x:0:0:root:/root:/bin/sh\n"
    line = f"{user.name}:x:{user.uid}:{user.gid}::/data:/bin/sh\n"
    return text.rstrip(b"\n") + b"\n" + line.encode()
