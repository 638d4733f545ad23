"""`runtime.protocols.Os` made of an OS plugin that speaks fog05's functions.

They have no owner, mode or free space: these go through execute_command, whose result is
checked by asking again. The reference splits a command at blanks and others give it to a shell,
so paths are refused that the two would read differently.
"""

from __future__ import annotations

import base64
import errno
import shlex
from pathlib import Path
from typing import Any

from nativert.plugin.string_api import Call, arguments, result_of
from nativert.runtime.protocols import DownloadLimits, Progress


class ForeignOs:
    """Files of a host behind its OS plugin; refusals are OSError and NativertError."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def _ask(self, function: str, **parameters: object) -> Any:
        path = parameters.get("file_path") or parameters.get("dir_path") or ""
        what = f"{function} {path}".strip()
        return result_of(self._call(function, arguments(**parameters)), what)

    def _command(self, *words: str) -> str:
        for word in words:
            # What both a shell and a split at blanks take for one word.
            if shlex.quote(word) != word and word != "!":
                raise OSError(errno.EINVAL, "cannot be passed to an OS plugin", word)
        command = " ".join(words)
        return str(self._ask("execute_command", command=command, blocking=True, external=False))

    def make_dir(
        self, path: Path, *, mode: int = 0o755, owner: tuple[int, int] | None = None
    ) -> None:
        """Make a directory, and those above it where they are missing."""
        if not self._ask("dir_exists", dir_path=path):
            self._ask("create_dir", dir_path=path)
        self._own(path, mode, owner)

    def _own(self, path: Path, mode: int, owner: tuple[int, int] | None) -> None:
        if owner is not None:
            self._command("chown", f"{owner[0]}:{owner[1]}", str(path))
        self._command("chmod", f"{mode:o}", str(path))
        told = self._command("stat", "--format=%a:%u:%g", str(path)).strip()
        found_mode, _, found_owner = told.partition(":")
        if found_mode != f"{mode:o}" or (
            owner is not None and found_owner != f"{owner[0]}:{owner[1]}"
        ):
            reason = f"mode and owner are {told or 'unknown'} after the change"
            raise OSError(errno.EPERM, reason, str(path))

    def remove_tree(self, path: Path) -> None:
        """Remove a tree; safe when absent."""
        if self._ask("dir_exists", dir_path=path):
            self._ask("remove_dir", dir_path=path)
        elif self._ask("file_exists", file_path=path):
            self._ask("remove_file", file_path=path)
        if self.exists(path):
            # The reference's remove_dir removes nothing and says that all is well.
            raise OSError(errno.EBUSY, "the OS plugin did not remove it", str(path))

    def write_file(
        self, path: Path, data: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
    ) -> None:
        """Put a file in place; whether at once is the plugin's affair."""
        content = base64.b64encode(data).hex()
        self._ask("store_file", content=content, file_path=path.parent, filename=path.name)
        self._own(path, mode, owner)

    def read_file(self, path: Path, *, limit: int = 1 << 20) -> bytes:
        """Return a whole text file of at most `limit` bytes."""
        data = str(self._ask("read_file", file_path=path, root=False)).encode()
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"longer than {limit} bytes", str(path))
        return data

    def exists(self, path: Path) -> bool:
        """Return whether there is such a directory or file."""
        return bool(
            self._ask("dir_exists", dir_path=path) or self._ask("file_exists", file_path=path)
        )

    def chown_tree(self, path: Path, owner: tuple[int, int]) -> None:
        """Give a tree to (uid, gid); follows no link."""
        uid, gid = owner
        self._command("chown", "--no-dereference", "--recursive", f"{uid}:{gid}", str(path))
        told = self._command("stat", "--format=%u:%g", str(path)).strip()
        for option, wanted in (("-uid", uid), ("-gid", gid)):
            left = self._command("find", str(path), "!", option, str(wanted), "-print", "-quit")
            if left.strip() or told != f"{uid}:{gid}":
                raise OSError(errno.EPERM, "not all of it changed its owner", str(path))

    def download(
        self,
        uri: str,
        target: Path,
        *,
        limits: DownloadLimits,
        progress: Progress | None,
    ) -> None:
        """Fetch a file; the length is checked afterwards, progress is told at the end."""
        self._ask("download_file", url=uri, file_path=target)
        told = self._command("stat", "--format=%s", str(target)).strip()
        if not told.isdigit():
            raise OSError(errno.ENOENT, "the OS plugin did not fetch it", str(target))
        if int(told) > limits.max_bytes:
            self._ask("remove_file", file_path=target)
            raise OSError(errno.EFBIG, f"longer than {limits.max_bytes} bytes", uri)
        if progress is not None:
            progress(int(told), int(told))

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that an unprivileged user may still write there."""
        told = self._command("stat", "--file-system", "--format=%a:%S", str(path)).strip()
        blocks, _, size = told.partition(":")
        if not (blocks.isdigit() and size.isdigit()):
            raise OSError(errno.EIO, f"the OS plugin answers {told[:80]!r}", str(path))
        return int(blocks) * int(size)
