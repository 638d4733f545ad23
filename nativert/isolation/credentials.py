"""Who the launcher is, and with it every init: capabilities, limits, names.

Only this module imports python-prctl. What an application's child gives up between fork
and exec is in `launcher/init/child.c`.
"""

from __future__ import annotations

import functools
import os
import resource

import prctl

TYPE_CHECKING = False  # typing costs a millisecond of every start
if TYPE_CHECKING:
    from typing import Final

RLIMITS: Final = {
    name[7:].lower(): getattr(resource, name)
    for name in dir(resource)
    # RLIMIT_OFILE is another name of RLIMIT_NOFILE: set after it, it would undo it.
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}
# linux/capability.h: what neither launcher nor init ever uses, and who takes one over would.
# CAP_SYS_TIME is not here: CRIU, init's child, sets the clocks of a time namespace with it.
_UNUSED: Final = (
    prctl.CAP_AUDIT_CONTROL,
    prctl.CAP_AUDIT_WRITE,
    prctl.CAP_IPC_LOCK,
    prctl.CAP_IPC_OWNER,
    prctl.CAP_LEASE,
    prctl.CAP_LINUX_IMMUTABLE,
    prctl.CAP_MAC_ADMIN,
    prctl.CAP_MAC_OVERRIDE,
    prctl.CAP_SYSLOG,
    prctl.CAP_SYS_BOOT,
    prctl.CAP_SYS_MODULE,
    prctl.CAP_SYS_PACCT,
    prctl.CAP_SYS_RAWIO,
    prctl.CAP_SYS_TTY_CONFIG,
    prctl.CAP_WAKE_ALARM,
)


@functools.cache
def last_capability() -> int:
    """Return the highest capability number of the running kernel; see capabilities(7)."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def give_up_powers() -> None:
    """Forbid what no init needs to this process and all that it will start; see prctl(2)."""
    # Nothing that is executed from here on gains anything by it, so programs of instances do
    # not either. Securebits and the bounding set of those are their own: entering a user
    # namespace makes both anew.
    prctl.set_no_new_privs(1)
    for capability in _UNUSED:
        try:
            # From the next exec on: each init is without them.
            prctl.capbset_drop(capability)
        except PermissionError:
            return  # In a container without CAP_SETPCAP the bounding set is its owner's.


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


def name_process(name: str) -> None:
    """Name the calling process, in comm and in what ps shows as its arguments."""
    prctl.set_name(name[:15])
    prctl.set_proctitle(name)


def become_subreaper() -> None:
    """Inherit orphaned descendants; see PR_SET_CHILD_SUBREAPER in prctl(2)."""
    prctl.set_child_subreaper(1)
