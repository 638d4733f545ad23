"""The launcher for real: started by whoever comes first, serving all, waiting for nobody."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale
from forked import run_forked
from sandboxes import DEADLINE_S, ID_BASE, Launcher, Step, real_launcher, shell, until

from nativert.isolation import process
from nativert.isolation.syscalls import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, mount
from nativert.launcher import protocol
from nativert.launcher.client import Channel, ReportedError
from nativert.launcher.protocol import LAUNCHER_SOCKET

pytestmark = pytest.mark.root


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with real_launcher(tmp_path) as one:
        yield one


def wait_gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert process.wait_end(pidfd, DEADLINE_S)
    os.close(pidfd)


def test_many_starters_at_once_get_one_launcher(launcher: Launcher) -> None:
    pids: list[int] = []

    def body() -> None:
        client = launcher.new_client()
        channel = client._take()
        pids.append(channel.peer()["pid"])
        channel.close()

    threads = [threading.Thread(target=body) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == [launcher.pid()] * 6


def test_threads_of_one_client_get_their_own_inits(launcher: Launcher) -> None:
    plans = [launcher.sandbox() for _ in range(8)]
    made: dict[str, int] = {}

    def body(plan: object) -> None:
        created = launcher.client.create(plan)
        launcher._pidfds.append(created.pidfd)
        if created.network is not None:
            os.close(created.network)
        made[plan.directory] = created.pid  # type: ignore[attr-defined]

    threads = [threading.Thread(target=body, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launcher.pid()
    for plan in plans:
        name = Path(f"/proc/{made[plan.directory]}/cmdline").read_bytes()
        assert name.startswith(f"nativert-init {plan.instance[:8]}".encode())


def test_the_launcher_leaves_its_starters_surroundings(launcher: Launcher) -> None:
    pid = launcher.pid()
    assert os.getsid(pid) != os.getsid(0)
    # Not the leader of its session: no terminal can ever become its own.
    assert os.getsid(pid) != pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Umask:\t0022" in status
    assert Path(f"/proc/{pid}/comm").read_text() == "nativert-launch\n"
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"HOME=" not in environment
    assert os.stat(launcher.run / LAUNCHER_SOCKET).st_mode & 0o777 == 0o600


def test_an_idle_launcher_leaves_and_the_next_one_comes(tmp_path: Path) -> None:
    with real_launcher(tmp_path, idle_s=0.1) as launcher:
        first = launcher.pid()
        launcher.client.close()
        wait_gone(first)
        assert not (launcher.run / LAUNCHER_SOCKET).exists()
        instance = launcher.create()
        second = launcher.pid()
        assert second != first
        launcher.client.close()
        # With an instance it stays.
        pidfd = os.pidfd_open(second)
        assert not process.wait_end(pidfd, 0.5)
        instance.call("release")
        assert process.wait_end(pidfd, DEADLINE_S)
        os.close(pidfd)


def test_leave_is_refused_while_there_are_instances(launcher: Launcher) -> None:
    instance = launcher.create()
    pid = launcher.pid()
    assert not launcher.client.leave()
    instance.call("release")
    until(lambda: not launcher.children())
    assert launcher.client.leave()
    wait_gone(pid)
    assert launcher.client.leave()


def test_a_launcher_of_another_protocol_is_refused(launcher: Launcher) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(launcher.run / LAUNCHER_SOCKET))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                protocol.send(sock, protocol.hello() | {"proto": 2})
                sock.recv(1 << 16)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(OSError, match="protocol 2") as refused:
            launcher.client.create(launcher.sandbox())
        assert refused.value.errno == errno.EPROTO
        thread.join()


def test_another_network_namespace_is_refused_without_here(launcher: Launcher) -> None:
    def foreign() -> None:
        client = launcher.new_client()
        client._config["here"] = False
        with pytest.raises(OSError, match="net namespace") as refused:
            client.create(launcher.sandbox())
        assert refused.value.errno == errno.EXDEV

    def body() -> None:
        # A PID 1 that lets itself be looked at: this process.
        mount("proc", "/proc", "proc")
        run_forked(foreign, flags=CLONE_NEWNET)

    run_forked(body, flags=CLONE_NEWPID | CLONE_NEWNS)
    assert not (launcher.run / LAUNCHER_SOCKET).exists()


FAILURES = {
    "mount source": (
        {"root": [Step("bind", "/no/such/source", "/x")]},
        ("root file system", errno.ENOENT, "/no/such/source"),
    ),
    "id range": ({"id_count": 0}, ("namespaces", errno.EINVAL, None)),
    "cgroup": (
        {"cgroup": {"tasks": ["/no/cgroup/tasks"]}},
        ("cgroup", errno.ENOENT, "/no/cgroup/tasks"),
    ),
    "evidence": (
        {"cgroup": {"tasks": [], "oom": "/no/evidence"}},
        ("init", errno.ENOENT, "/no/evidence"),
    ),
    "seccomp": ({"seccomp": "/no/filter"}, ("cgroup", errno.ENOENT, "/no/filter")),
    "log": ({"log": {"directory": "/no/log"}}, ("init", errno.ENOENT, "/no/log")),
    "hostname": ({"hostname": "x" * 65}, ("hostname", errno.EINVAL, None)),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_creation_tells_where_and_leaves_nothing(launcher: Launcher, case: str) -> None:
    changes, (step, number, path) = FAILURES[case]
    pid = launcher.pid()
    launcher.create().call("release")
    until(lambda: not launcher.children())
    before = sorted(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(5):
        with pytest.raises(ReportedError) as failed:
            launcher.client.create(launcher.sandbox(**changes))
        assert (failed.value.step, failed.value.errno) == (step, number)
        assert failed.value.filename == path
    until(lambda: not launcher.children())
    until(lambda: sorted(os.listdir(f"/proc/{pid}/fd")) == before)
    # It goes on for others.
    assert launcher.create().output("echo on") == "on\n"


def test_a_plan_that_is_none_is_refused(launcher: Launcher) -> None:
    channel = launcher.client._take()
    launcher.pid()
    for sandbox in ({}, {"id_base": "x"}, None, {"id_base": ID_BASE, "id_count": 10}, []):
        with pytest.raises(ReportedError):
            channel.call({"verb": "create", "sandbox": sandbox})
    channel.close()
    until(lambda: not launcher.children())
    assert launcher.create().alive()


def test_a_client_that_goes_away_takes_its_creation_with_it(launcher: Launcher) -> None:
    pid = launcher.pid()
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(20):
        channel = launcher.channel()
        plan = launcher.sandbox()
        protocol.send(channel.sock, {"verb": "create", "sandbox": plan._asdict()})
        channel.close()
    until(lambda: not launcher.children(), "all are gone")
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before, "no descriptor is left")


@pytest.mark.parametrize("verb", ["run", "", None, 7, ["create"], {"a": 1}, "x" * 1000])
def test_an_unknown_verb_is_refused(launcher: Launcher, verb: object) -> None:
    channel = launcher.client._take()
    with pytest.raises(ReportedError, match="unknown verb"):
        channel.call({"verb": verb})
    launcher.client._idle.append(channel)
    assert launcher.create().alive()


GARBAGE = (b"\x00", b"{", b"[]", b'{"large":true}', b"[" * 50000, b"\xff" * 60000)


def test_garbage_ends_only_its_own_connection(launcher: Launcher) -> None:
    pid = launcher.pid()
    before = len(os.listdir(f"/proc/{pid}/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    for data in GARBAGE:
        channel = launcher.channel()
        channel.peer()
        socket.send_fds(channel.sock, [data], [null, null])
        with pytest.raises((EOFError, ConnectionError)):
            channel.receive(DEADLINE_S)
        channel.close()
    os.close(null)
    assert launcher.pid() == pid
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before)


def test_a_client_that_does_not_read_holds_nobody(launcher: Launcher) -> None:
    launcher.pid()
    deaf = launcher.channel()
    deaf.sock.setblocking(False)
    try:
        for _ in range(20000):
            protocol.send(deaf.sock, {"verb": "hello"})
    except OSError:
        pass  # Its own buffer is full, or it was dropped.

    def created_s() -> float:
        begun = time.monotonic()
        assert launcher.create().alive()
        return time.monotonic() - begun

    assert scale.quickest(created_s, below_s=scale.seconds(2)) < scale.seconds(2)
    deaf.close()


def test_inits_outlive_their_launcher_and_a_new_one_serves(launcher: Launcher) -> None:
    first = launcher.create()
    first.run(shell("sleep 60"))
    old = launcher.pid()
    os.kill(old, signal.SIGKILL)
    wait_gone(old)
    assert first.call("status")["state"] == "running"
    assert first.output("echo here") == "here\n"
    # The connection that the client keeps is dead; it starts another launcher by itself.
    second = launcher.create()
    assert launcher.pid() != old
    assert second.output("echo there") == "there\n"
    first.call("release")
    assert process.wait_end(first.created.pidfd, DEADLINE_S)


def test_many_clients_at_once_are_all_served(launcher: Launcher) -> None:
    launcher.pid()
    channels: list[Channel] = [launcher.channel() for _ in range(100)]
    assert len({channel.peer()["pid"] for channel in channels}) == 1
    for channel in channels:
        channel.close()


def test_hundreds_of_instances_cost_the_launcher_nothing(launcher: Launcher) -> None:
    pid = launcher.pid()
    launcher.create().call("release")

    def resident_kib() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    until(lambda: not launcher.children())
    before = sorted(os.listdir(f"/proc/{pid}/fd")), resident_kib()
    for _ in range(200):
        launcher.create().call("release")
    until(lambda: not launcher.children())
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == before[0]
    assert resident_kib() - before[1] < 512
    assert (launcher.run / "launcher.log").read_text() == ""
