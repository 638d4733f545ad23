"""The set-up of one instance: from the launcher's fork to the exec of its init.

Called in new PID and mount namespaces. Builds the root file system, enters the other
namespaces, opens what init needs, and becomes init: a small static C program (`init/`),
which goes on by descriptors only and keeps nothing of this interpreter's memory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket

from nativert.isolation import credentials, namespaces, rootfs
from nativert.isolation.syscalls import close_range
from nativert.launcher import protocol
from nativert.launcher.plan import Sandbox
from nativert.launcher.protocol import Message

TYPE_CHECKING = False  # typing costs half a megabyte
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

# Where init looks for the first two of them.
CONTROL_FD: Final = 3
_CONFIG_FD: Final = 4
_PROGRAM_FD: Final = 5
_BACKLOG: Final = 512
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_program() -> int:
    """Return a descriptor of init's program; FileNotFoundError with what to do."""
    path = os.path.join(os.path.dirname(__file__), "init", "nativert-init")
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        text = "init is not built: run scripts/setup, or install nativert with pip"
        raise FileNotFoundError(errno.ENOENT, text, path) from None


def place(control: int, program: int) -> None:
    """Put both where `main` has them, and close everything else but 0, 1 and 2."""
    # Copies above the targets first, so that no dup2 overwrites what the next one needs.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (control, program)]
    os.dup2(high[0], CONTROL_FD, inheritable=False)
    os.dup2(high[1], _PROGRAM_FD, inheritable=False)
    # Kept for the configuration: nothing that is opened from here on gets the number.
    os.dup2(0, _CONFIG_FD)
    close_range(_PROGRAM_FD + 1, 0xFFFFFFFF)


class Handover:
    """What init is told, with the descriptors that it takes over."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def give(self, fd: int) -> int:
        """Hand *fd* over; return it as what init finds it by."""
        self._fds.append(fd)
        return fd

    def give_open(self, path: str | None, flags: int) -> int | None:
        """Open and hand over *path*, if there is one."""
        return self.give(os.open(path, flags)) if path else None

    def execute(self, name: str, config: Message) -> NoReturn:
        """Become init, called *name*, with *config* to read."""
        memfd = os.memfd_create("init")
        os.write(memfd, json.dumps(config).encode())
        os.dup2(memfd, _CONFIG_FD)
        os.set_inheritable(CONTROL_FD, True)
        for fd in self._fds:
            os.set_inheritable(fd, True)
        os.execve(_PROGRAM_FD, [name], {})  # noqa: S606 - that is the job


def _listen(directory: int) -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(protocol.address(directory, protocol.INIT_SOCKET))
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock.detach()


def main(plan: Message, control: socket.socket) -> NoReturn:
    """Become the init of *plan*; *control* is at CONTROL_FD."""
    step = "init"
    try:
        os.setsid()
        sandbox = Sandbox(**plan)
        handover = Handover()
        hello = protocol.hello()
        directory = os.open(sandbox.directory, _PLACE)
        log, cgroup = sandbox.log, sandbox.cgroup
        config: dict[str, Any] = {
            "version": hello["version"],
            "boot_id": hello["boot_id"],
            "id_base": sandbox.id_base,
            "last_capability": credentials.last_capability(),
            "directory": handover.give(directory),
            "log": dict(log, directory=handover.give_open(log["directory"], _PLACE)),
            "listener": handover.give(_listen(directory)),
            "evidence": {
                name: handover.give_open(cgroup.get(name), _READ)
                for name in ("oom", "peak", "cpu", "pids")
            },
        }
        step = "root file system"
        rootfs.make_private()
        new_root = f"{sandbox.directory}/root"
        root = rootfs.build(
            new_root, [rootfs.Step(*s) for s in sandbox.root], shm_bytes=sandbox.shm_bytes
        )
        step = "namespaces"
        message, fds = protocol.receive(control)
        held = dict(zip(message["namespaces"], fds, strict=True))
        namespaces.join(held)
        step = "hostname"
        socket.sethostname(sandbox.hostname)
        if sandbox.network:
            step = "network namespace"
            namespaces.loopback_up()
            namespaces.allow_unprivileged_network(sandbox.id_base, sandbox.id_count)
        step = "cgroup"
        config["user"] = handover.give(held["user"])
        config["seccomp"] = handover.give_open(sandbox.seccomp, _READ)
        config["tasks"] = [
            handover.give_open(path, os.O_WRONLY | os.O_CLOEXEC) for path in cgroup["tasks"]
        ]
        config["into"] = handover.give_open(cgroup.get("into"), _READ | os.O_DIRECTORY)
        step = "root file system"
        rootfs.finish(new_root, root, own_network=sandbox.network)
        step = "init"
        handover.execute(f"nativert-init {sandbox.instance[:8]}", config)
    except BaseException as e:  # noqa: BLE001 - the launcher is told, and this process ends
        try:
            protocol.send(control, protocol.error_message(step, e))
        except OSError:
            pass
    finally:
        os._exit(1)
