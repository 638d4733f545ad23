"""Who a process is: start time, pidfd, liveness. A bare pid is never trusted.

A pid is reused; (pid, start time) is not, within one boot. A zombie keeps both,
so "alive" also asks the pidfd, which becomes readable when the process ends.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import Final

# Of /proc/pid/stat without the pid and the name; see proc_pid_stat(5).
_STATE, _FLAGS, _START = 0, 6, 19
_PF_EXITING: Final = 0x4


def start_time(pid: int) -> int | None:
    """Return the start time in clock ticks since boot, or None if there is no such process."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_START])


def _stat(pid: int) -> list[bytes] | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None  # ESRCH: it went while its directory was looked up.
    try:
        stat = os.read(fd, 1024)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The second field is the name in parentheses and may itself hold blanks and ")".
    return stat[stat.rindex(b")") + 2 :].split()


def ended(pidfd: int) -> bool:
    """Tell whether the process behind *pidfd* has ended, also when nobody reaped it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def open_pidfd(pid: int, start: int) -> int | None:
    """Return a pidfd of the process that started at *start*, or None if it is gone."""
    held = _hold(pid, start)
    return None if held is None else held[0]


def _hold(pid: int, start: int) -> tuple[int, list[bytes]] | None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as e:
        # The number may by now be a thread's: EINVAL or, on later kernels, ENOENT.
        if e.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise
    # Read after the pidfd is held: from here on the pid cannot change its meaning.
    fields = _stat(pid)
    if fields is not None and int(fields[_START]) == start and not ended(pidfd):
        return pidfd, fields
    os.close(pidfd)
    return None


def alive(pid: int | None, start: int | None) -> bool:
    """Tell whether the process that had *pid* since *start* still runs."""
    if pid is None or start is None:
        return False
    held = _hold(pid, start)
    if held is None:
        return False
    pidfd, fields = held
    os.close(pidfd)
    # A killed PID 1 ends after all others of its namespace: never, while the v1 freezer holds
    # one of them. A zombie is a first thread whose others live on.
    return fields[_STATE] == b"Z" or not int(fields[_FLAGS]) & _PF_EXITING


def open_files(pid: int) -> list[str]:
    """Return what the descriptors of *pid* lead to; none if it is gone. See proc_pid_fd(5)."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            except FileNotFoundError:
                continue  # Closed meanwhile.
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found


def wait_end(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process behind *pidfd* has ended; False after *timeout_s*."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout_s * 1000))))


def kill(pid: int, start: int) -> None:
    """Send SIGKILL to the process that started at *start*; nothing if it is gone."""
    pidfd = open_pidfd(pid, start)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # It ended between the look and the signal: what was wanted.
    finally:
        os.close(pidfd)


def host_pid(pidfd: int) -> int:
    """Return the pid behind *pidfd* as this process's PID namespace numbers it; -1 if gone.

    The ``Pid:`` line of /proc/self/fdinfo; see pidfd_open(2).
    """
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 1024)
    finally:
        os.close(fd)
    _, _, rest = text.partition(b"\nPid:")
    return int(rest.split(b"\n", 1)[0]) if rest else -1
