"""Scripted deaths, each with its verdict, told by processes that saw nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from nodes import MakeNode, ended, start, until, until_logged
from telling import Cli, told

from nativert.fdu.states import Operation
from nativert.isolation import process
from nativert.isolation.cgroups import files
from nativert.runtime import run as runs
from nativert.runtime.node import Node
from nativert.store import boot

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
GROW = "data = bytearray(200 << 20); print('never')"
CHILD_GROWS = "python3 -S -c 'bytearray(200 << 20)'; exit 4"


# -- by itself, by a signal, out of memory -------------------------------------------------


def test_an_exit_code(node: Node, cli: Cli, make_node: MakeNode) -> None:
    end = told(cli, make_node, start(node, shell="exit 7"))
    assert (end.reason, end.message, end.exit_code) == ("exited", "exited with code 7", 7)


def test_a_signal_whose_sender_nothing_tells(node: Node, cli: Cli, make_node: MakeNode) -> None:
    end = told(cli, make_node, start(node, shell="kill -SEGV $$"))
    assert (end.reason, end.message, end.sender) == ("signal", "ended by SIGSEGV", None)


def test_its_own_memory_limit(node: Node, cli: Cli, make_node: MakeNode) -> None:
    memory = {"memory": {"max": "32M", "swap": 0}}
    end = told(cli, make_node, start(node, python=GROW, native=memory))
    assert (end.reason, end.signal, end.oom_by, end.memory_max) == (
        "oom",
        "SIGKILL",
        "limit",
        32 << 20,
    )
    assert end.message.startswith("killed by the OOM killer at its memory limit of 32.0 MiB, peak")


@pytest.mark.cgroup_v1
def test_a_child_at_its_memory_limit(node: Node, cli: Cli, make_node: MakeNode) -> None:
    memory = {"memory": {"max": "32M", "swap": 0}}
    end = told(cli, make_node, start(node, shell=CHILD_GROWS, native=memory))
    assert (end.reason, end.exit_code, end.oom, end.oom_by) == ("exited", 4, True, "limit")
    assert end.oom_kills == 1
    assert "after 1 of its processes had been killed by the OOM killer at its" in end.message


def test_a_memory_limit_above_it(node: Node, cli: Cli, make_node: MakeNode) -> None:
    # What happens where the host gives a node a limit of its own.
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
    app = start(node, python=wait + GROW)
    entry = node._context.driver.open(f"i-{app}").entry()
    assert entry.oom is not None
    above = Path(entry.oom).parents[1]
    v2 = (above / "memory.max").exists()
    limit = above / ("memory.max" if v2 else "memory.limit_in_bytes")
    files.write(str(limit), str(120 << 20))
    (node._context.paths.instance_lib(app) / "data/go").touch()
    try:
        end = told(cli, make_node, app)
    finally:
        files.write(str(limit), "max" if v2 else "-1")
    assert (end.reason, end.oom_by, end.memory_max) == ("oom", "above", None)
    assert node._context.driver.parent in end.message


# It gives itself up: whoever else the kernel might choose is none of the test's.
OUTGROW = """
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
held = []
while True:
    held.append(b"x" * (16 << 20))
"""


@pytest.mark.vm
def test_a_host_without_memory(node: Node, cli: Cli, make_node: MakeNode) -> None:
    end = told(cli, make_node, start(node, python=OUTGROW))
    assert (end.reason, end.signal, end.oom_by, end.memory_max) == ("oom", "SIGKILL", "host", None)
    assert "the OOM killer, which the host's memory and not its own limit called" in end.message


# -- seccomp -------------------------------------------------------------------------------

# A filter of the program's own, that kills for getppid(2): a few instructions by prctl(2).
OWN_FILTER = """
import ctypes, os, platform, struct
number = {"x86_64": 110, "aarch64": 173}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(text)))
assert ctypes.CDLL(None, use_errno=True).prctl(22, 2, program) == 0
os.getppid()
"""


def test_a_system_call_that_seccomp_kills_for(node: Node, cli: Cli, make_node: MakeNode) -> None:
    end = told(cli, make_node, start(node, python=OWN_FILTER))
    assert (end.reason, end.signal, end.system_call) == ("seccomp", "SIGSYS", "getppid")
    assert end.message == "killed by seccomp (SIGSYS) for the system call getppid"


def test_its_signal_alone_proves_no_system_call(node: Node, cli: Cli, make_node: MakeNode) -> None:
    end = told(cli, make_node, start(node, shell="kill -SYS $$"))
    assert (end.reason, end.signal, end.system_call) == ("signal", "SIGSYS", None)


# -- stopped -------------------------------------------------------------------------------


def test_a_stop_that_it_does_not_hear(node: Node, cli: Cli, make_node: MakeNode) -> None:
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    app = start(node, shell=deaf, native={"stop": {"grace": "300ms"}})
    until_logged(node, app, "ready")
    node.stop(app)
    end = told(cli, make_node, app)
    assert (end.reason, end.timed_out, end.sender) == ("stop-timeout", True, "stop")
    assert end.message == "stopped: did not end within 0.3 s of SIGTERM, and was killed"


def test_a_stop_whose_stopper_died(
    node: Node, cli: Cli, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = start(node, shell=SLEEP)

    def dies(point: str) -> None:
        if point == "stop.ended":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "failpoint", dies)
        with pytest.raises(KeyboardInterrupt):
            node.stop(app)
    end = told(cli, make_node, app)
    assert (end.reason, end.message) == ("stopped", "stopped: ended by SIGTERM")


@pytest.mark.parametrize(
    ("why", "note", "reason", "message"),
    [
        (
            "health",
            "3 of 3 probes failed",
            "unhealthy",
            "stopped because its health check failed (3 of 3 probes failed): ended by SIGTERM",
        ),
        (
            "dependency",
            "db ended",
            "dependency",
            "stopped because what it depends on failed (db ended): ended by SIGTERM",
        ),
        (
            "shutdown",
            "",
            "node-shutdown",
            "stopped because the node was shut down: ended by SIGTERM",
        ),
    ],
)
def test_stopped_for_a_reason(
    node: Node,
    cli: Cli,
    make_node: MakeNode,
    why: Literal["health", "dependency", "shutdown"],
    note: str,
    reason: str,
    message: str,
) -> None:
    app = start(node, shell=SLEEP)
    context = node._context
    node.operate(app, Operation.STOP, lambda seen: runs.stop(context, seen, why=why, note=note))
    end = told(cli, make_node, app)
    assert (end.reason, end.message, end.sender) == (reason, message, why)
    # The next run knows nothing of it.
    node.run(app)
    assert ended(node.stop(app)).reason == "stopped"


# -- init, node ----------------------------------------------------------------------------


def test_a_killed_init(node: Node, cli: Cli, make_node: MakeNode) -> None:
    app = start(node, shell=SLEEP)
    facts = boot.read_facts(node._context.paths, app)
    assert facts is not None
    assert facts.init_pid is not None
    os.kill(facts.init_pid, signal.SIGKILL)
    until(lambda: not process.alive(facts.init_pid, facts.init_start))
    end = told(cli, make_node, app)
    assert (end.reason, end.exit_code, end.signal) == ("init-lost", None, None)
    assert end.message == "its init ended, and with it everything in its namespaces"


IN_ANOTHER_BOOT = """
import sys
from pathlib import Path
from nativert.isolation.syscalls import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, mount, unshare
unshare(CLONE_NEWNS)
mount("none", "/", flags=MS_REC | MS_PRIVATE)
mount(sys.argv[2], "/proc/sys/kernel/random/boot_id", flags=MS_BIND)
from nativert.runtime.diagnosis_root import Ids, Root
from nativert.runtime.node import Node
with Node(Path(sys.argv[1]), here=True) as node:
    (row,) = node.list()
    print(row.end.reason, row.end.message, sep=": ")
"""


def test_a_reboot(node: Node, root: Path, tmp_path: Path) -> None:
    start(node, shell=SLEEP)
    other = tmp_path / "boot_id"
    other.write_text("11111111-2222-3333-4444-555555555555\n")
    command = [sys.executable, "-c", IN_ANOTHER_BOOT, str(root), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "node-rebooted: the node was rebooted\n"
