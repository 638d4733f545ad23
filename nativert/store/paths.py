"""Where a node keeps its things: one place decides every path."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from nativert.errors import Code, DescriptorError, NativertError

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")

_KEPT = 8192


def check_uuid(uuid: str) -> str:
    """Return *uuid* if it is one in canonical lower case; it becomes part of paths.

    Raises DescriptorError.
    """
    if not _UUID.match(uuid):
        raise DescriptorError(
            "uuid", f"{uuid[:64]!r} is not a UUID in lower case, 8-4-4-4-12 hexadecimal digits"
        )
    return uuid


def no_node(paths: Paths) -> NativertError:
    """Return the error for a directory that no node keeps its state in."""
    return NativertError(
        f"no node keeps its state in {paths.lib}",
        code=Code.NOT_FOUND,
        hint="see --root and NATIVERT_ROOT; define and run make one",
    )


class Paths:
    """The directories of one node: the host's own, or all of them under *root*.

    Without an argument NATIVERT_ROOT decides. Nothing is created before `create`.
    """

    def __init__(self, root: Path | None = None) -> None:
        if root is None and (variable := os.environ.get("NATIVERT_ROOT")):
            root = Path(variable)
        # Absolute now: the agent and the launcher change directory.
        self.root = Path(os.path.abspath(root)) if root is not None else None
        base = self.root or Path("/")
        self.lib = base / "var/lib/nativert"
        self.run = base / "run/nativert"
        self.etc = base / "etc/nativert"
        self.node = self.lib / "node.json"
        self.database = self.lib / "nativert.db"
        self.locks = self.run / "locks"
        self.config = self.etc / "config.toml"
        self.api_socket = self.run / "api.sock"
        # Names the network namespace of a node that has one of its own.
        self.netns = self.run / "netns"
        # Joining paths takes longer than the system calls that use them.
        self._of_instance: dict[tuple[str, str], Path] = {}

    def __repr__(self) -> str:
        return f"Paths({str(self.root)!r})"

    def instance_run(self, uuid: str) -> Path:
        """Return the directory for what is true of *uuid* in this boot only."""
        return self._instance("run", self.run, uuid)

    def instance_lib(self, uuid: str) -> Path:
        """Return the directory that holds data/, log/ and etc/ of *uuid*."""
        return self._instance("lib", self.lib, uuid)

    def instance_lock(self, uuid: str) -> Path:
        """Return the file whose flock serialises the operations on *uuid*."""
        return self.locks / check_uuid(uuid)

    def _instance(self, kind: str, base: Path, uuid: str) -> Path:
        path = self._of_instance.get((kind, uuid))
        if path is None:
            if len(self._of_instance) >= _KEPT:
                self._of_instance.clear()
            path = self._of_instance[kind, uuid] = base / "i" / check_uuid(uuid)
        return path

    def create(self) -> None:
        """Make the directories and set their modes; safe to call again.

        lib is 0700: an instance sees its own files through mounts that init made, never by
        walking this path, and a set-uid file in its data stays out of users' reach. run is
        0755, so that the socket's own mode decides who may connect; what is in it is 0700.
        The configuration directory is the operator's. Raises NativertError(PERMISSION).
        """
        try:
            for directory, mode in (
                (self.lib, 0o700),
                (self.lib / "i", 0o700),
                (self.run, 0o755),
                (self.run / "i", 0o700),
                (self.locks, 0o700),
            ):
                _make_directory(directory, mode)
        except PermissionError as e:
            raise NativertError(
                f"cannot create {e.filename}: {e.strerror}",
                code=Code.PERMISSION,
                hint="run as root, or give a directory of your own with --root",
            ) from e

    def instances_run(self) -> list[str]:
        """Return the UUIDs that have a directory in run, known to the store or not."""
        return _uuids(self.run / "i")

    def instances_locked(self) -> list[str]:
        """Return the UUIDs that have a lock, held or not, known to the store or not."""
        return _uuids(self.locks)

    def instances_lib(self) -> list[str]:
        """Return the UUIDs that have a directory in lib, known to the store or not."""
        return _uuids(self.lib / "i")


def _uuids(directory: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if _UUID.match(name))
    except FileNotFoundError:
        return []


def _make_directory(path: Path, mode: int) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        os.makedirs(path.parent, mode=0o755, exist_ok=True)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            pass  # another command made it, or it is a dangling link: stat tells
        status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NativertError(f"{path} is not a directory", code=Code.STORE, hint=f"move {path} away")
    if status.st_uid != os.geteuid():
        # Its owner could swap what is in it for links while root works there.
        raise NativertError(
            f"{path} belongs to uid {status.st_uid}, not to uid {os.geteuid()}",
            code=Code.PERMISSION,
            hint=f"chown it, or choose a directory of your own with --root: {path}",
        )
    if stat.S_IMODE(status.st_mode) != mode:
        os.chmod(path, mode)
