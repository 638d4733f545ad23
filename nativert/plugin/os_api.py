"""The OS plugin's functions of fog05, served by the host's own `Os`.

Where the reference plugin is broken (remove_dir, local_mgmt_address, checksums of nothing) this
does what its name says. Results have the reference's types.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from nativert.errors import Code, NativertError
from nativert.plugin import interfaces
from nativert.plugin.string_api import Call, methods, serve
from nativert.runtime.download import LIMITS
from nativert.runtime.protocols import Os

FUNCTIONS: Final = (
    "dir_exists",
    "create_dir",
    "remove_dir",
    "create_file",
    "remove_file",
    "file_exists",
    "store_file",
    "read_file",
    "download_file",
    "execute_command",
    "check_if_pid_exists",
    "send_sig_int",
    "send_sig_kill",
    "checksum",
    "get_intf_type",
    "set_interface_unaviable",
    "set_interface_available",
    "get_network_informations",
    "local_mgmt_address",
)
MAX_FILE_BYTES: Final = 64 << 20
_COMMAND_TIMEOUT_S: Final = 600.0
_CHUNK: Final = 1 << 20


class LocalOsApi:
    """What `FUNCTIONS` names, on this host; refusals are OSError and NativertError."""

    def __init__(self, host: Os) -> None:
        self._host = host
        self._unavailable: set[str] = set()

    @property
    def call(self) -> Call:
        """The functions, called by name."""
        return serve(methods(self, FUNCTIONS))

    # -- files -------------------------------------------------------------------------

    def dir_exists(self, dir_path: str) -> bool:
        """Return whether there is such a directory."""
        return _absolute(dir_path).is_dir()

    def create_dir(self, dir_path: str) -> bool:
        """Make a directory and those above it; False if it was there."""
        path = _absolute(dir_path)
        if path.is_dir():
            return False
        self._host.make_dir(path)
        return True

    def remove_dir(self, dir_path: str) -> bool:
        """Remove a directory with all that is in it; False if there was none."""
        path = _absolute(dir_path)
        if path == Path("/"):
            raise OSError(errno.EBUSY, "the root of the host", dir_path)
        if not self._host.exists(path):
            return False
        if not path.is_dir() or path.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", dir_path)
        self._host.remove_tree(path)
        return True

    def create_file(self, file_path: str) -> bool:
        """Make an empty file; one that is there stays as it is."""
        path = _absolute(file_path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        return True

    def remove_file(self, file_path: str) -> bool:
        """Remove a file or a link; False if there was none."""
        try:
            _absolute(file_path).unlink()
        except FileNotFoundError:
            return False
        return True

    def file_exists(self, file_path: str) -> bool:
        """Return whether something that is no directory has this name."""
        path = _absolute(file_path)
        return self._host.exists(path) and (path.is_symlink() or not path.is_dir())

    def store_file(self, content: str, file_path: str, filename: str) -> bool:
        """Put a file in place; *content* is hexadecimal of base64 of its bytes."""
        if "/" in filename or filename in ("", ".", ".."):
            raise OSError(errno.EINVAL, "not a file name", filename)
        try:
            data = base64.b64decode(binascii.unhexlify(content), validate=True)
        except (binascii.Error, ValueError) as e:
            raise OSError(errno.EINVAL, f"not hexadecimal of base64: {e}", filename) from None
        self._host.write_file(_absolute(file_path) / filename, data)
        return True

    def read_file(self, file_path: str, root: bool = False) -> str:  # noqa: ARG002
        """Return a text file; *root* asks for what this has anyway."""
        data = self._host.read_file(_absolute(file_path), limit=MAX_FILE_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EILSEQ, "not UTF-8 text", file_path) from None

    def download_file(self, url: str, file_path: str) -> bool:
        """Fetch a file of http:, https: or file:, whole or not at all."""
        self._host.download(url, _absolute(file_path), limits=LIMITS, progress=None)
        return True

    def checksum(self, file_path: str) -> str:
        """Return a file's SHA-256 in hexadecimal."""
        digest = hashlib.sha256()
        fd = os.open(_absolute(file_path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
        return digest.hexdigest()

    # -- processes ---------------------------------------------------------------------

    def execute_command(self, command: str, blocking: bool = False, external: bool = False) -> str:
        """Run a line of sh(1); return its standard output where *blocking* and not *external*."""
        argv = ["/bin/sh", "-c", command]
        null = subprocess.DEVNULL
        if not blocking or external:
            child = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, process_group=0)
            if blocking:
                _wait(child)
            else:
                threading.Thread(target=child.wait, name="command", daemon=True).start()
            return ""
        child = subprocess.Popen(
            argv, stdin=null, stdout=subprocess.PIPE, stderr=null, process_group=0
        )
        return _wait(child).decode(errors="replace")

    def check_if_pid_exists(self, pid: int) -> bool:
        """Return whether a process has this number."""
        try:
            os.kill(_pid(pid), 0)
        except ProcessLookupError:
            return False
        return True

    def send_sig_int(self, pid: int) -> bool:
        """Send SIGINT to a process."""
        os.kill(_pid(pid), signal.SIGINT)
        return True

    def send_sig_kill(self, pid: int) -> bool:
        """Send SIGKILL to a process."""
        os.kill(_pid(pid), signal.SIGKILL)
        return True

    # -- network interfaces ------------------------------------------------------------

    def get_intf_type(self, name: str) -> str:
        """Return the kind of a link; `unknown` where nothing tells."""
        return interfaces.kind(name)

    def set_interface_unaviable(self, intf_name: str) -> bool:
        """Note that nobody is to take a link; spelled as fog05 does."""
        interfaces.check(intf_name)
        self._unavailable.add(intf_name)
        return True

    def set_interface_available(self, intf_name: str) -> bool:
        """Note that a link may be taken."""
        interfaces.check(intf_name)
        self._unavailable.discard(intf_name)
        return True

    def get_network_informations(self) -> list[dict[str, Any]]:
        """Return every link of the host with its addresses."""
        return interfaces.all_of_host(self._unavailable)

    def local_mgmt_address(self) -> dict[str, str]:
        """Return the addresses of the link of the default route, as {v4, v6}."""
        return interfaces.management_address()


def _absolute(text: str) -> Path:
    if not text.startswith("/"):
        raise OSError(errno.EINVAL, "not an absolute path", text)
    # POSIX lets two slashes at the front mean something else, and normpath leaves them.
    return Path("/" + os.path.normpath(text).lstrip("/"))


def _pid(pid: int) -> int:
    if pid < 2:
        # 0 is this process's group, 1 the host's own init.
        raise OSError(errno.EINVAL, "not the pid of a program", str(pid))
    return pid


def _wait(child: subprocess.Popen[bytes]) -> bytes:
    try:
        output, _ = child.communicate(timeout=_COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise NativertError(
            f"the command still ran after {_COMMAND_TIMEOUT_S:.0f} s and was killed",
            code=Code.TIMEOUT,
        ) from None
    return output or b""
