"""Scripted deaths, each with its verdict, told by processes that saw nothing of it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import scale
from nodes import MakeNode, ended, make_descriptor, start, until, until_logged
from refusal import configure_refused

from nativert.errors import Code, NativertError
from nativert.fdu.states import Operation
from nativert.isolation import process
from nativert.isolation.cgroups import files
from nativert.isolation.syscalls import MNT_DETACH, MS_NOEXEC, mount, umount2
from nativert.runtime import run as runs
from nativert.runtime.diagnosis_root import Ids, Root
from nativert.runtime.node import Node
from nativert.runtime.views import End
from nativert.store import boot

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., Any]
SLEEP = "exec sleep 1000"
GROW = "data = bytearray(200 << 20); print('never')"
CHILD_GROWS = "python3 -S -c 'bytearray(200 << 20)'; exit 4"


def told(cli: Cli, make_node: MakeNode, ref: str) -> End:
    """Return the verdict as other processes tell it, the second without looking again."""

    def look() -> Any:
        native = json.loads(cli("inspect", ref, "-o", "json").stdout)["native"]
        return native["state"] not in ("RUNNING", "PAUSED") and native

    first = until(look, deadline_s=scale.seconds(20))["end"]
    (row,) = json.loads(cli("ps", "-a", "-o", "json").stdout)
    assert row["end"] == first
    with make_node() as later:
        noted = [e.data["end"] for e in later.events() if e.data.get("end")]
    assert noted[-1] == first
    return msgspec.convert(first, End)


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
    app = start(node, python=f"import time; time.sleep(1); {GROW}")
    entry = node._context.driver.open(f"i-{app}").entry()
    assert entry.oom is not None
    above = Path(entry.oom).parents[1]
    v2 = (above / "memory.max").exists()
    limit = above / ("memory.max" if v2 else "memory.limit_in_bytes")
    files.write(str(limit), str(120 << 20))
    try:
        end = told(cli, make_node, app)
    finally:
        files.write(str(limit), "max" if v2 else "-1")
    assert (end.reason, end.oom_by, end.memory_max) == ("oom", "above", None)
    assert node._context.driver.parent in end.message


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

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "observe", dies)
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


# -- what could not be executed ------------------------------------------------------------


@pytest.fixture
def opt() -> Iterator[Path]:
    """A directory of the host that instances see."""
    path = Path("/opt", f"nativert-test-{os.getpid()}")
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink() if not file.is_dir() else file.rmdir()
    path.rmdir()


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refused(node: Node, prepare: Callable[[], object], code: Code, **fields: Any) -> str:
    """Configure what is well, spoil it by *prepare*, run it; return the instance."""
    ref = node.define(make_descriptor(**fields)).instance
    node.configure(ref)
    prepare()
    with pytest.raises(NativertError) as caught:
        node.run(ref)
    assert caught.value.code is code, caught.value
    return ref


SPARC = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHI", 2, 43, 1) + bytes(40)


def spoilers(opt: Path) -> dict[str, tuple[Callable[[], object], str, Code, str]]:
    """Return {case: (what spoils opt/app, fault, code, a part of the sentence)}."""
    app, bad = opt / "app", Code.NOT_EXECUTABLE

    def link() -> None:
        app.unlink()
        app.symlink_to("gone")

    def gone() -> None:
        app.unlink()

    return {
        "gone": (gone, "not-found", Code.COMMAND_NOT_FOUND, "no such program: not there"),
        "link": (link, "not-found", Code.COMMAND_NOT_FOUND, "is a link to gone, which is not"),
        "mode": (lambda: app.chmod(0o644), "not-executable", bad, "its mode is 0644: no x for any"),
        "owner": (lambda: app.chmod(0o700), "not-executable", bad, "0700: no x for the appl"),
        "way": (lambda: opt.chmod(0o700), "not-executable", bad, "(0700) may not be entered"),
        "machine": (
            lambda: app.write_bytes(SPARC),
            "wrong-architecture",
            bad,
            f"built for another architecture, SPARC V9 (64 bit); this node is {os.uname().machine}",
        ),
        "text": (lambda: app.write_text("hello\n"), "damaged", bad, "nor a script with a #! line"),
        "empty": (lambda: app.write_text(""), "damaged", bad, "app: it is empty"),
        "cut": (
            lambda: app.write_bytes(Path(sys.executable).resolve().read_bytes()[:80]),
            "damaged",
            bad,
            "a damaged ELF file",
        ),
        "interpreter": (
            lambda: app.write_text("#!/usr/bin/nonesuch -x\n"),
            "missing-interpreter",
            bad,
            "its interpreter /usr/bin/nonesuch is not there",
        ),
        "carriage return": (
            lambda: app.write_bytes(b"#!/bin/sh\r\n"),
            "missing-interpreter",
            bad,
            r"its interpreter '/bin/sh\r' is not there",
        ),
        "interpreter's machine": (
            lambda: (opt / "tool").write_bytes(SPARC) and app.write_text(f"#!{opt}/tool\n"),
            "wrong-architecture",
            bad,
            "tool: built for another architecture",
        ),
    }


@pytest.mark.parametrize("case", [*spoilers(Path())])
def test_a_program_that_cannot_be_executed(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path, case: str
) -> None:
    script(opt / "tool")
    spoil, fault, code, words = spoilers(opt)[case]
    ref = refused(node, spoil, code, binary=script(opt / "app"))
    # What is found later is not what was there.
    opt.chmod(0o755)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault, end.code) == ("exec-failed", fault, code.exit_code)
    assert words in end.message


def test_a_program_that_is_nowhere_in_path(node: Node, cli: Cli, make_node: MakeNode) -> None:
    ref = refused(node, lambda: None, Code.COMMAND_NOT_FOUND, binary="nonesuch")
    end = told(cli, make_node, ref)
    assert end.message.startswith("nonesuch: no such program in /usr/local/sbin:")
    assert end.fault == "not-found"


def test_a_program_that_is_being_written(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path
) -> None:
    with (opt / "other").open("w") as other:
        app = script(opt / "app")
        (opt / "app").unlink()
        (opt / "app").symlink_to("/bin/true")
        ref = node.define(make_descriptor(binary=app)).instance
        node.configure(ref)
        (opt / "app").unlink()
        Path(other.name).rename(app)
        other.write("#!/bin/sh\n")
        other.flush()
        Path(app).chmod(0o755)
        with pytest.raises(NativertError, match="open for writing"):
            node.run(ref)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "busy")


def test_a_mount_that_nothing_may_be_executed_from(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "noexec"
    source.mkdir()
    mount("tmpfs", str(source), "tmpfs", MS_NOEXEC, "size=1m,mode=0755")
    try:
        script(source / "app")
        native = {"mounts": [{"source": str(source), "target": "/opt"}]}
        configure_refused(node, Code.NOT_EXECUTABLE, "noexec", binary="/opt/app", native=native)
        # A script may put it there only later: then the same is seen from inside.
        why = Root(source).forbidden("/app", Ids(1, 1))
    finally:
        umount2(str(source), MNT_DETACH)
    assert why == "its file system is mounted noexec"


def test_a_failed_start_that_its_starter_did_not_live_to_note(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = script(opt / "app")
    ref = node.define(make_descriptor(binary=app)).instance
    node.configure(ref)
    (opt / "app").unlink()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "_withdraw", dies)
        with pytest.raises(KeyboardInterrupt):
            node.run(ref)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "not-found")


@pytest.mark.cgroup_v2
def test_no_room_for_a_process_below_its_pids_limit(
    node: Node, cli: Cli, make_node: MakeNode
) -> None:
    ref = node.define(make_descriptor(shell=SLEEP, native={"pids": {"max": 1}})).instance
    node.configure(ref)
    null = os.open("/dev/null", os.O_RDWR)
    session = node.exec(ref, ["sleep", "1000"], stdio=(null, null, null))
    try:
        with pytest.raises(NativertError, match="1 of at most 1"):
            node.run(ref)
    finally:
        session.close()
        os.close(null)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "pids-limit")
