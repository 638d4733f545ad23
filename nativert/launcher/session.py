"""Sessions inside an instance: programs started beside the application, and who asked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nativert.launcher import protocol
from nativert.launcher.protocol import Message

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

# asm-generic/ioctls.h; the termios module has no name for these.
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441


class Session:
    """One program started by exec or script; its end is told to its connection."""

    def __init__(self, connection: Connection, pid: int, pidfd: int, report: int) -> None:
        self.connection = connection
        self.pid = pid
        self.pidfd = pidfd
        self.report = report
        self.started = False
        self.failed = False

    def hang_up(self) -> None:
        """End it as a terminal that goes away would, and for good."""
        try:
            os.killpg(self.pid, signal.SIGHUP)
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # Just forked, it does not lead its group yet.
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Connection:
    """One client: its socket, whether it follows the application, its session."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.follows = False
        self.session: Session | None = None


def read_report(fd: int) -> Message | None:
    """Read a child's report: None if there is none yet, {} if exec happened."""
    try:
        data = os.read(fd, 1 << 20)
    except BlockingIOError:
        return None
    try:
        return dict(json.loads(data)) if data else {}
    except ValueError as e:
        # Killed in the middle of it. Whatever it was, the program was not started.
        return protocol.error_message("report", e)


@contextmanager
def standard_streams(
    message: Message, fds: Sequence[int]
) -> Iterator[tuple[Sequence[int], int | None]]:
    """Give what a session's program has as stdin, stdout, stderr, and a terminal's master.

    Raises OSError for a directory: whoever holds one walks the host from there
    (CVE-2024-21626).
    """
    if not message.get("terminal"):
        if len(fds) != 3:
            raise ValueError("three descriptors are needed")
        if any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in fds):
            raise IsADirectoryError(errno.EISDIR, "a directory cannot be stdin, stdout or stderr")
        yield fds, None
        return
    # The instance's own devpts, so that ttyname(3) works inside.
    master, slave = _open_terminal(message.get("rows", 24), message.get("columns", 80))
    try:
        yield (slave, slave, slave), master
    finally:
        os.close(slave)
        os.close(master)


def _open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Return (master, slave) of a new pseudo-terminal of the current root's /dev/pts."""
    window = struct.pack("HHHH", rows, columns, 0, 0)
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # By ioctl, not by name: a name in /dev/pts could be another's (ioctl_tty(2)).
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, termios.TIOCSWINSZ, window)
    except BaseException:
        os.close(master)
        raise
    return master, slave
