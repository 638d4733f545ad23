"""A host in memory: cgroups, network, launcher and inits for the real operations of a Node.

Every call is a step that can be made to fail once. Inits and applications are processes that
sleep, so that pids, start times and pidfds are the kernel's.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fake_cgroups import Driver

from nativert.isolation import process
from nativert.isolation.cgroups.limits import Limits
from nativert.launcher.client import Channel, Created, ReportedError
from nativert.launcher.protocol import EXIT_FILE, Message
from nativert.runtime.context import Context
from nativert.runtime.local_os import LocalOs
from nativert.runtime.protocols import Attached, Counters, InterfaceRequest, PortRequest
from nativert.store import boot
from nativert.store.claims import Claims


class Sleeper:
    """A process that does nothing; *holds* is a directory that it keeps open."""

    def __init__(self, holds: Path | None = None) -> None:
        actions = [(os.POSIX_SPAWN_OPEN, 5, str(holds), os.O_RDONLY, 0)] if holds else []
        self.pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {}, file_actions=actions)
        self.start = process.start_time(self.pid)
        self._reaped = False

    @property
    def alive(self) -> bool:
        return not self._reaped and process.alive(self.pid, self.start)

    def kill(self) -> None:
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._reaped = True


class Init:
    """One instance's init, and its application if that runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = Sleeper(directory)
        self.application: Sleeper | None = None
        self.run = 0
        self.end: Message | None = None


class Host:
    """What the kernel has of one node."""

    def __init__(self) -> None:
        self.cgroups: dict[str, Limits] = {}
        self.frozen: set[str] = set()
        self.links: dict[str, str] = {}
        self.ports: dict[str, list[PortRequest]] = {}
        self.inits: dict[str, Init] = {}
        self.fails_in: int | None = None
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        """Carry one step out, or fail in its place."""
        self.notice()
        self.steps.append(name)
        if self.fails_in is None:
            return
        self.fails_in -= 1
        if self.fails_in < 0:
            self.fails_in = None
            raise OSError(errno.EIO, f"injected: {name}")

    def notice(self) -> None:
        """Let ends have their consequences: an application goes with init, init tells its end."""
        for uuid, init in list(self.inits.items()):
            if not init.process.alive:
                init.process.kill()
                if init.application is not None:
                    init.application.kill()
                del self.inits[uuid]
            elif init.application is not None and not init.application.alive:
                init.application.kill()
                init.end = {
                    "run": init.run,
                    "boot_id": boot.boot_id(),
                    "pid": init.application.pid,
                    "signal": int(signal.SIGKILL),
                    "cause": "signal",
                }
                init.application = None
                try:
                    (init.directory / EXIT_FILE).write_text(json.dumps(init.end))
                except FileNotFoundError:
                    pass

    def application(self, uuid: str) -> Sleeper | None:
        self.notice()
        init = self.inits.get(uuid)
        return None if init is None else init.application

    def close(self) -> None:
        for init in self.inits.values():
            init.process.kill()
        self.notice()


class _Socket:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def getsockopt(self, *_: int) -> bytes:
        return struct.pack("iII", self._pid, 0, 0)

    def settimeout(self, _: float) -> None:
        pass

    def shutdown(self, _: int) -> None:
        pass

    def close(self) -> None:
        pass


class InitChannel(Channel):
    """A connection to an `Init` of the host."""

    def __init__(self, host: Host, init: Init) -> None:
        self._host, self._init = host, init
        self.sock = _Socket(init.process.pid)  # type: ignore[assignment]
        self._follows = False
        self.follows = False  # No connection is kept here: `quiet` says so.

    def call(
        self,
        message: Message,
        fds: Sequence[int] = (),
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> tuple[Message, list[int]]:
        self._host.step(f"init {message['verb']}")
        answer = self._answer(message)
        if meanwhile is not None:
            # What it raises does not take back what was asked for.
            meanwhile()
        return answer

    def _answer(self, message: Message) -> tuple[Message, list[int]]:
        verb, init = message["verb"], self._init
        if verb == "status":
            return self._status(message)
        if verb == "run":
            if init.application is not None:
                raise ReportedError({"errno": errno.EBUSY, "text": "it runs", "step": "run"})
            (init.directory / EXIT_FILE).unlink(missing_ok=True)
            init.application, init.run = Sleeper(), message["run"]
            return self._status({"pidfd": True})
        if verb == "signal":
            if init.application is None and not message.get("all"):
                raise ReportedError({"errno": errno.ESRCH, "text": "not there", "step": "signal"})
            if init.application is not None:
                init.application.kill()
            self._host.notice()
        if verb == "release":
            init.process.kill()
            self._host.notice()
        return {"ok": True}, []

    def quiet(self) -> bool:
        return False

    def _status(self, message: Message) -> tuple[Message, list[int]]:
        application = self._init.application
        if application is None:
            return {"state": "idle", "end": self._init.end}, []
        told = {
            "state": "running",
            "run": self._init.run,
            "pid": application.pid,
            "start": application.start,
            "started_at": time.time(),
        }
        return told, [os.pidfd_open(application.pid)] if message.get("pidfd") else []

    def receive(self, timeout_s: float | None = -1.0) -> tuple[Message, list[int]]:
        # Whoever waits waits for an end: of the application, or of the script.
        return {"event": "end", "code": 0}, []


class Launcher:
    def __init__(self, host: Host) -> None:
        self._host = host

    def ready(self) -> None:
        self._host.step("launcher")

    def create(self, sandbox: Any, *, meanwhile: Callable[[], None] | None = None) -> Created:
        self._host.step("create")
        if meanwhile is not None:
            # What it raises drops the connection, and with it what was being created.
            meanwhile()
        init = Init(Path(sandbox.directory))
        self._host.inits[sandbox.instance] = init
        network = os.open("/dev/null", os.O_RDONLY) if sandbox.network else None
        limits = {"nproc": (4096, 4096), "nofile": (1024, 4096)}
        return Created(init.process.pid, os.pidfd_open(init.process.pid), network, 1, limits)

    def close(self) -> None:
        pass


class RecordingNetwork:
    """A NetworkManager that keeps what it was asked for."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def prepare(self) -> None:
        self._host.step("prepare network")

    def attach(self, netns: int, interfaces: Sequence[InterfaceRequest]) -> tuple[Attached, ...]:
        self._host.step("attach")
        for each in interfaces:
            if each.link in self._host.links:
                raise FileExistsError(errno.EEXIST, "there already", each.link)
        self._host.links |= {each.link: each.address for each in interfaces}
        return tuple(
            Attached(e.name, e.link, 7, "02:00:00:00:00:01", e.address) for e in interfaces
        )

    def detach(self, attached: Sequence[Attached]) -> None:
        self._host.step("detach")
        for each in attached:
            self._host.links.pop(each.link, None)

    def gone(self, attached: Sequence[Attached]) -> bool:
        return not any(each.link in self._host.links for each in attached)

    def publish(self, address: str, ports: Sequence[PortRequest]) -> None:
        self._host.step("publish")
        self._host.ports[address] = list(ports)

    def withdraw(self, address: str) -> None:
        self._host.step("withdraw")
        self._host.ports.pop(address, None)

    def counters(self, attached: Sequence[Attached]) -> Counters:
        return Counters(0, 0, 0, 0, 0, 0)

    def resolver(self) -> str:
        return "nameserver 192.0.2.1\n"

    def links(self) -> tuple[str, ...]:
        self._host.step("links")
        return tuple(self._host.links)

    def present(self) -> bool:
        return False

    def destroy(self) -> None:
        pass

    def close(self) -> None:
        pass


class UnprivilegedOs(LocalOs):
    """The files are real; whose they are is not asked, since only root could say."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def make_dir(
        self, path: Path, *, mode: int = 0o755, owner: tuple[int, int] | None = None
    ) -> None:
        self._host.step("make directory")
        super().make_dir(path, mode=mode)

    def remove_tree(self, path: Path) -> None:
        self._host.step("remove tree")
        super().remove_tree(path)

    def chown_tree(self, path: Path, owner: tuple[int, int]) -> None:
        pass


class FakeContext(Context):
    """A node on such a host; its files are beneath *root*."""

    def __init__(self, root: Path, host: Host) -> None:
        self.host = host
        super().__init__(
            root,
            here=True,
            os=UnprivilegedOs(host),
            network=lambda _: RecordingNetwork(host),
            claims=Claims(root / "host.json", root / "host.lock", subordinate_ids=()),
        )
        self.driver = Driver(host)  # type: ignore[assignment]
        self.launcher = Launcher(host)  # type: ignore[assignment]
        self.seccomp = root / "seccomp"

    def init(self, uuid: str, *, timeout_s: float = 1.0) -> Channel:
        self.host.step("connect")
        init = self.host.inits.get(uuid)
        if init is None or not init.directory.exists():
            raise FileNotFoundError(errno.ENOENT, "no such socket", uuid)
        return InitChannel(self.host, init)
