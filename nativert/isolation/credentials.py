"""Who the application is: ids, capabilities, securebits, limits, surroundings.

Only this module imports python-prctl. It runs in the application's child, between
fork and exec.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence

import prctl

from nativert.isolation.syscalls import capset, clear_ambient

TYPE_CHECKING = False  # typing costs half a megabyte in each init
if TYPE_CHECKING:
    from typing import Final

RLIMITS: Final = {
    name[7:].lower(): getattr(resource, name)
    for name in dir(resource)
    # RLIMIT_OFILE is another name of RLIMIT_NOFILE: set after it, it would undo it.
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}
# linux/securebits.h: uid 0 is an ordinary id (NOROOT), set*uid changes no capability
# (NO_SETUID_FIXUP); both locked. KEEP_CAPS means nothing beside the latter, and locking it
# would end programs that switch it on to be sure, such as Debian's ping. Nothing can be raised
# into the ambient set either, since the permitted set is empty.
_SECUREBITS: Final = 0b1111


def last_capability() -> int:
    """Return the highest capability number of the running kernel; see capabilities(7)."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Take these ids (as the current user namespace numbers them) for good."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_capabilities(last: int) -> None:
    """Give up every capability, and every way to get one; see capabilities(7)."""
    # Entering a user namespace fills the bounding set again, so it is emptied here and
    # not once in the launcher.
    for capability in range(last + 1):
        prctl.capbset_drop(capability)
    prctl.set_securebits(_SECUREBITS)
    clear_ambient()
    # set*uid left them: the id before was not the namespace's root (user_namespaces(7)).
    capset(0, 0, 0)
    prctl.set_no_new_privs(1)


def set_rlimits(limits: Mapping[str, Sequence[int]]) -> None:
    """Set {name: (soft, hard)}; -1 is unlimited. See setrlimit(2)."""
    for name, (soft, hard) in limits.items():
        try:
            resource.setrlimit(RLIMITS[name], (soft, hard))
        except (ValueError, OSError) as e:
            raise OSError(1, f"setrlimit {name} {soft}:{hard}: {e}") from e


def current_rlimits() -> dict[str, tuple[int, int]]:
    """Return this process's limits, so that they can be given to an application later."""
    return {name: resource.getrlimit(number) for name, number in RLIMITS.items()}


def set_oom_score_adj(value: int) -> None:
    """Set how eagerly the OOM killer takes this process; see proc(5)."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def hide_from_instance() -> None:
    """Make the calling process undumpable: its /proc entries stay root's, no ptrace."""
    prctl.set_dumpable(0)


def name_process(name: str) -> None:
    """Name the calling process, in comm and in what ps shows as its arguments."""
    prctl.set_name(name[:15])
    prctl.set_proctitle(name)


def become_subreaper() -> None:
    """Inherit orphaned descendants; see PR_SET_CHILD_SUBREAPER in prctl(2)."""
    prctl.set_child_subreaper(1)
