"""A real launcher and its inits, below the runtime: no store, no network, no cgroups."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import scale

from nativert.isolation import process, seccomp
from nativert.launcher.client import Channel, Created, LauncherClient
from nativert.launcher.plan import Program, Sandbox, Step
from nativert.launcher.protocol import INIT_SOCKET, LAUNCHER_SOCKET, Message

# Above what nodes claim.
ID_BASE = 0x7100_0000
ID_COUNT = 65536
DEADLINE_S = scale.LONG_S
# init, a shell, ls and grep, and the subshell of the pipe.
MAX_IDLE = 5
READ_ONLY = ("ro", "nosuid", "nodev")
NO_CGROUP = {"tasks": [], "into": None, "oom": None, "peak": None, "cpu": None}


def host_steps() -> list[Step]:
    """Return a root with the host's programs and a /tmp."""
    steps = []
    for name in ("usr", "bin", "lib", "lib64", "etc"):
        if os.path.islink(f"/{name}"):
            steps.append(Step("symlink", os.readlink(f"/{name}"), f"/{name}"))
        elif os.path.exists(f"/{name}"):
            steps.append(Step("bind", f"/{name}", f"/{name}", READ_ONLY))
    return [*steps, Step("tmpfs", "", "/tmp", ("nosuid", "nodev"), "mode=1777,size=16m")]


def program(*argv: str, **changes: Any) -> Message:
    """Return a plan.Program as it travels."""
    plan = Program(
        argv=list(argv),
        env={"PATH": "/usr/bin:/bin"},
        cwd="/tmp",
        uid=1000,
        gid=1000,
        groups=[],
        umask=0o022,
        rlimits={},
        oom_score_adj=0,
    )
    return dict(plan._replace(**changes)._asdict())


def shell(text: str, **changes: Any) -> Message:
    """Return a program that is a line of shell."""
    return program("/bin/sh", "-c", text, **changes)


class Instance(NamedTuple):
    """One init: where its files are, and what create answered."""

    directory: Path
    log: Path
    created: Created

    def channel(self, timeout_s: float = DEADLINE_S) -> Channel:
        return Channel(self.directory, INIT_SOCKET, timeout_s=timeout_s)

    def call(self, verb: str, **fields: Any) -> Message:
        with self.channel() as channel:
            answer, fds = channel.call({"verb": verb} | fields)
        for fd in fds:
            os.close(fd)
        return answer

    def run(self, plan: Message, number: int = 1) -> Message:
        """Start *plan* and return what init says of it."""
        return self.call("run", run=number, program=plan)

    def run_to_end(self, plan: Message, number: int = 1) -> Message:
        """Start *plan*, wait for its end, and return what is told of it."""
        with self.channel() as channel:
            _, fds = channel.call({"verb": "run", "run": number, "program": plan, "follow": True})
            os.close(fds[0])
            event, _ = channel.receive(DEADLINE_S)
        assert event["event"] == "end"
        return dict(event["end"])

    def exec(self, plan: Message, *, stdio: Sequence[int] | None = None) -> int:
        """Start a session and return its exit code, negative for a signal."""
        null = os.open("/dev/null", os.O_RDWR)
        try:
            with self.channel() as channel:
                channel.call({"verb": "exec", "program": plan}, stdio or (null, null, null))
                event, _ = channel.receive(DEADLINE_S)
        finally:
            os.close(null)
        return int(event["code"])

    def printed(self, plan: Message) -> bytes:
        """Return what a program prints inside."""
        reader, writer = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        try:
            self.exec(plan, stdio=(null, writer, writer))
            os.close(writer)
            return os.read(reader, 65536)
        finally:
            os.close(reader)
            os.close(null)

    def output(self, text: str) -> str:
        """Return what a line of shell prints inside."""
        return self.printed(shell(text)).decode()

    def processes(self) -> int:
        """Count the processes inside, those that count among them."""
        return int(self.output("ls /proc | grep -c '^[0-9]'"))

    def exit_facts(self) -> Message:
        return dict(json.loads((self.directory / "exit.json").read_bytes()))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.created.pid}/fd"))

    def alive(self) -> bool:
        return not process.ended(self.created.pidfd)


class Launcher:
    """One launcher below *directory*, started when the first init is asked for."""

    def __init__(self, directory: Path, *, idle_s: float = 60.0) -> None:
        self.run = directory / "run"
        self.run.mkdir()
        self._seccomp = seccomp.cached(self.run)
        self._idle_s = idle_s
        self._pidfds: list[int] = []
        self._count = 0
        self.client = self.new_client()

    def new_client(self) -> LauncherClient:
        client = LauncherClient(self.run, tasks=(), init_cgroup=None, init_tasks=(), here=True)
        client._config["idle_s"] = self._idle_s
        return client

    def channel(self, timeout_s: float = DEADLINE_S) -> Channel:
        return Channel(self.run, LAUNCHER_SOCKET, timeout_s=timeout_s)

    def pid(self) -> int:
        """Return the launcher's pid, and see to it that it is ended with the test."""
        channel = self.client._take()
        pid = int(channel.peer()["pid"])
        self.client._idle.append(channel)
        try:
            self._pidfds.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass
        return pid

    def children(self) -> list[int]:
        pid = self.pid()
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def sandbox(self, **changes: Any) -> Sandbox:
        """Return the plan of a new instance, whose directories are made."""
        self._count += 1
        directory = self.run / f"i{self._count}"
        for path in (directory, directory / "root", directory / "log"):
            path.mkdir()
        plan = Sandbox(
            instance=f"{self._count:08d}-test",
            directory=str(directory),
            log={"directory": str(directory / "log"), "max_bytes": 1 << 20, "files": 3},
            hostname=f"inside{self._count}",
            id_base=ID_BASE,
            id_count=ID_COUNT,
            network=True,
            root=host_steps(),
            shm_bytes=1 << 20,
            cgroup=dict(NO_CGROUP),
            seccomp=str(self._seccomp),
        )
        return plan._replace(**changes)

    def create(self, **changes: Any) -> Instance:
        """Create an init and return it; it is killed with the test."""
        plan = self.sandbox(**changes)
        created = self.client.create(plan)
        self._pidfds.append(created.pidfd)
        if created.network is not None:
            os.close(created.network)
        self.pid()
        return Instance(Path(plan.directory), Path(plan.log["directory"]), created)

    def end(self) -> None:
        self.client.close()
        for pidfd in self._pidfds:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for pidfd in self._pidfds:
            assert process.wait_end(pidfd, DEADLINE_S)
            os.close(pidfd)


@contextmanager
def real_launcher(directory: Path, **options: Any) -> Iterator[Launcher]:
    """Give a launcher, and end everything that it started."""
    launcher = Launcher(directory, **options)
    try:
        yield launcher
    finally:
        launcher.end()


def until(ask: Callable[[], object], what: str = "") -> None:
    """Wait for what raises no event that a test could wait for."""
    end = time.monotonic() + DEADLINE_S
    while not ask():
        assert time.monotonic() < end, f"not so within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)
