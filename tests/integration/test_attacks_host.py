"""Attacks on what instances share: processes, memory, terminals, the network, the operator."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scale
from nodes import (
    PYTHON,
    address,
    make_descriptor,
    run_inside,
    start,
    until,
    until_logged,
)

from nativert.errors import NativertError
from nativert.runtime.node import Node
from nativert.store import boot
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]

KILL_AT_ONCE = {"stop": {"signal": "SIGKILL", "grace": 0}}
IDLE = "exec sleep 1000"


def init_pid(root: Path, instance: str) -> int:
    """Return the host's pid of an instance's init."""
    facts = boot.read_facts(Paths(root), instance)
    assert facts is not None
    assert facts.init_pid is not None
    return facts.init_pid


def stopped(node: Node, app: str) -> bool:
    """Stop it; a slow machine may need more time to kill so many than a stop waits."""
    try:
        return node.stop(app).state == "CONFIGURED"
    except NativertError:
        return node.get(app).state == "CONFIGURED"


def test_a_fork_bomb_without_a_limit_stays_below_4096(node: Node) -> None:
    bomb = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
except OSError as e:
    print(e.errno, flush=True)
time.sleep(1000)
"""
    app = start(node, python=bomb, native={"stop": {"grace": "100ms"}})
    until_logged(node, app, f"{errno.EAGAIN}", deadline_s=scale.LONG_S)
    assert 4000 < (node.get(app).pids or 0) <= 4096
    other = start(node, name="other", shell=IDLE, native=KILL_AT_ONCE)
    assert run_inside(node, other, "echo", "here") == (0, "here\n")
    until(lambda: stopped(node, app), what="the end of 4096 processes")


def test_memory_file_systems_are_charged_to_the_instance(node: Node) -> None:
    native = {"memory": {"max": "48M", "swap": 0}} | KILL_AT_ONCE
    app = start(node, shell=IDLE, native=native)
    fill = "for d in /tmp /run /dev/shm; do dd if=/dev/zero of=$d/x bs=1M count=100; done"
    run_inside(node, app, "sh", "-c", fill)
    figures = node.stats([app])[0]
    assert (figures.memory_bytes or 0) <= 48 << 20
    # Where the kernel can end a cgroup as a whole, the application has gone with the writer.
    if (end := node.get(app).end) is None:
        assert (figures.oom_kills or 0) > 0
    else:
        assert (end.reason, end.oom) == ("oom", True)


def test_inodes_and_terminals_are_bounded(node: Node) -> None:
    count = """
import os
for directory in ("/tmp", "/run", "/dev/shm"):
    print(os.statvfs(directory).f_files <= 65536)
held = []
try:
    while True:
        held.append(os.open("/dev/ptmx", os.O_RDWR))
except OSError:
    print(len(held) <= 256)
"""
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    assert run_inside(node, app, PYTHON, "-S", "-c", count) == (0, "True\n" * 4)
    # A sibling has terminals of its own meanwhile and afterwards.
    session = node.exec(app, ["true"], stdio=(0, 1, 2), tty=True)
    assert session.wait() == 0
    session.close()


# SIGKILL waits for the thaw in its freezer only.
@pytest.mark.cgroup_v1
def test_stop_is_bounded_when_a_process_does_not_die(
    node: Node, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in the kernel (FUSE, NFS), which only a frozen one looks like here."""
    freezer = Path("/sys/fs/cgroup/freezer")
    monkeypatch.setattr("nativert.runtime.run._KILL_TIMEOUT_S", 0.5)
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    pid = node.get(app).pid
    hung = freezer / f"nativert-test-{os.getpid()}"
    hung.mkdir()
    try:
        (hung / "tasks").write_text(str(pid))
        (hung / "freezer.state").write_text("FROZEN")
        begun = time.monotonic()
        with pytest.raises(NativertError, match="SIGKILL"):
            node.stop(app)
        assert time.monotonic() - begun < scale.seconds(5)
        # Its siblings and its own questions are not held up.
        start(node, name="other", shell=IDLE, native=KILL_AT_ONCE)
        node.get(app)
    finally:
        (hung / "freezer.state").write_text("THAWED")
        until(lambda: not (hung / "tasks").read_text())
        hung.rmdir()
    until(lambda: node.get(app).state == "CONFIGURED")


def test_siblings_share_neither_ids_nor_processes_nor_data(node: Node, root: Path) -> None:
    one = start(node, name="one", shell=f"echo CANARY > mine; {IDLE}", native=KILL_AT_ONCE)
    two = start(node, name="two", shell=IDLE, native={"user": "root"} | KILL_AT_ONCE)
    data = [root / "var/lib/nativert/i" / app / "data" for app in (one, two)]
    owners = [directory.stat().st_uid for directory in data]
    assert abs(owners[0] - 1000 - owners[1]) >= 65536
    assert all(owner >= 65536 for owner in owners)
    pid = node.get(one).pid
    code, text = run_inside(
        node, two, "sh", "-c", f"ls /proc | grep -c '^[0-9]'; kill -0 {pid}; cat {data[0]}/mine"
    )
    assert code != 0
    assert "CANARY" not in text
    # init, the application, sh, ls, grep
    assert int(text.split()[0]) <= 5


NETWORK = """
import socket, struct, sys
gateway, sibling = sys.argv[1:3]

def attempt(name, body):
    try:
        body(); print(name, "done")
    except OSError as e:
        print(name, "refused")

def from_address(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(0, 15, 1)  # IP_FREEBIND
    s.bind((address, 0)); s.sendto(b"x", (gateway, 9))

def from_ipv6():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(41, 78, 1)  # IPV6_FREEBIND
    index = socket.if_nametoindex("eth0")
    s.bind(("fe80::1", 0, 0, index)); s.sendto(b"x", ("ff02::1", 9, 0, index))

def connect(address, port):
    with socket.create_connection((address, port), 2): pass

attempt("spoof sibling", lambda: from_address(sibling))
attempt("spoof gateway", lambda: from_address(gateway))
attempt("spoof ipv6", from_ipv6)
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW, 3))
attempt("raw", lambda: socket.socket(2, socket.SOCK_RAW, 1))
attempt("transparent", lambda: socket.socket().setsockopt(0, 19, 1))
attempt("mark", lambda: socket.socket().setsockopt(1, 36, 1))
attempt("host loopback", lambda: connect("127.0.0.1", int(sys.argv[3])))
attempt("host loopback by the gateway", lambda: connect(gateway, int(sys.argv[3])))
attempt("host service", lambda: connect(gateway, int(sys.argv[4])))
"""


@contextmanager
def listening(*addresses: str) -> Iterator[list[int]]:
    """Listen on a port of each address of the host; nothing is said there."""
    servers = [socket.create_server((a, 23000 + n)) for n, a in enumerate(addresses)]
    try:
        yield [server.getsockname()[1] for server in servers]
    finally:
        for server in servers:
            server.close()


def test_a_veth_gives_no_foreign_address(node: Node) -> None:
    one = start(node, name="one", veth=True, shell=IDLE, native=KILL_AT_ONCE)
    two = start(node, name="two", veth=True, shell=IDLE, native=KILL_AT_ONCE)
    _, route = run_inside(node, one, "cat", "/proc/net/route")
    gateway = next(row.split()[2] for row in route.splitlines()[1:] if row.split()[1] == "0" * 8)
    gateway = socket.inet_ntoa(bytes.fromhex(gateway)[::-1])
    with listening("127.0.0.1", "0.0.0.0") as ports:
        _, text = run_inside(
            node, one, PYTHON, "-S", "-c", NETWORK, gateway, address(node, two), *map(str, ports)
        )
    found = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines()}
    # Documented: what listens on every address of the host answers its instances too.
    assert found.pop("host service") == "done"
    assert len(found) == 9, text
    assert set(found.values()) == {"refused"}, text


def test_secrets_are_in_no_argument_and_no_other_environment(node: Node, root: Path) -> None:
    canary = "CANARY-of-the-environment"
    app = start(node, shell=IDLE, native={"env": {"SECRET": canary}} | KILL_AT_ONCE)
    init = init_pid(root, app)
    parent = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (init, parent):
        for file in ("cmdline", "environ"):
            assert canary.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    for place in (root / "var/lib/nativert", root / "run/nativert/i"):
        assert place.stat().st_mode & 0o777 == 0o700
    assert canary not in run_inside(node, app, "sh", "-c", "cat /proc/[0-9]*/cmdline")[1]


def test_escapes_of_a_script_do_not_reach_the_terminal(
    node: Node, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    script = "printf '\\033]0;title\\007\\033[2J' >&2; exit 3\n"
    descriptor = make_descriptor(
        binary="/bin/true", configuration={"conf_type": "SCRIPT", "script": script}
    )
    app = node.define(descriptor).instance
    done = cli("configure", app)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr + done.stdout
    assert "\\x1b" in done.stderr
