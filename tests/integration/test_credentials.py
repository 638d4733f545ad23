"""Who application, init and launcher are, as /proc tells it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prctl
import pytest
from forked import run_forked
from sandboxes import Instance, Launcher, program, real_launcher, until

from nativert.isolation import credentials
from nativert.launcher.client import ReportedError

pytestmark = pytest.mark.root

EVERY_STEP_BEFORE = ("Inh", "Prm", "Eff", "Bnd", "Amb")


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with real_launcher(tmp_path) as one:
        yield one


@pytest.fixture
def instance(launcher: Launcher) -> Instance:
    return launcher.create()


def fields(text: str) -> dict[str, str]:
    """Return the lines "name: value" of a status file."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def output(instance: Instance, plan: dict[str, Any]) -> str:
    return instance.printed(plan).decode()


def python(text: str, **changes: Any) -> dict[str, Any]:
    return program(os.path.realpath("/usr/bin/python3"), "-c", text, **changes)


@pytest.mark.parametrize("uid", [1000, 0, 65534])
def test_no_capability_is_left_and_none_can_come(instance: Instance, uid: int) -> None:
    found = fields(output(instance, program("cat", "/proc/self/status", uid=uid, gid=uid)))
    assert {found[f"Cap{name}"] for name in EVERY_STEP_BEFORE} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    # /proc shows them as the reader's user namespace numbers them.
    assert found["Uid"].split() == found["Gid"].split() == [str(uid)] * 4
    assert found["Groups"] == ""


def test_groups_and_umask_are_those_of_the_program(instance: Instance) -> None:
    plan = program("cat", "/proc/self/status", groups=[5, 7], umask=0o027)
    found = fields(output(instance, plan))
    assert (found["Groups"], found["Umask"]) == ("5 7", "0027")


def test_no_signal_is_blocked_or_ignored(instance: Instance) -> None:
    found = fields(output(instance, program("cat", "/proc/self/status")))
    assert {found[name] for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd")} == {"0" * 16}


def test_the_securebits_that_count_are_locked(instance: Instance) -> None:
    text = "import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))"  # PR_GET_SECUREBITS
    assert output(instance, python(text)) == f"{0b1111}\n"


@pytest.mark.parametrize("uid", [1000, 0])
def test_other_ids_cannot_be_taken(instance: Instance, uid: int) -> None:
    text = """
import os
for name, call in {
    "uid": lambda: os.setresuid(7, 7, 7), "gid": lambda: os.setresgid(7, 7, 7),
    "groups": lambda: os.setgroups([7]), "none": lambda: os.setgroups([]),
}.items():
    try:
        call()
    except PermissionError:
        print(name, end=" ")
"""
    assert output(instance, python(text, uid=uid, gid=uid)) == "uid gid groups none "


def test_root_of_the_instance_has_no_rights(instance: Instance) -> None:
    """Uid 0 inside is an ordinary id: NOROOT, and no capability to use."""
    text = """
import os, socket
for name, call in {
    "name": lambda: socket.sethostname("mine"), "owner": lambda: os.chown("/tmp", 0, 0),
    "read": lambda: os.open("/etc/shadow", os.O_RDONLY),
}.items():
    try:
        call()
    except PermissionError:
        print(name, end=" ")
"""
    assert output(instance, python(text, uid=0, gid=0)) == "name owner read "


def test_limits_are_set_soft_and_hard(instance: Instance) -> None:
    limits = {"nofile": [64, 128], "core": [0, 0], "stack": [1 << 20, -1]}
    text = output(instance, program("cat", "/proc/self/limits", rlimits=limits))
    found = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert found["Max open files"] == ["64", "128"]
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max stack size"] == [str(1 << 20), "unlimited"]


@pytest.mark.parametrize("limits", [{"nofile": [128, 64]}, {"nofile": [1 << 40, 1 << 40]}])
def test_a_refused_limit_is_named(instance: Instance, limits: dict[str, list[int]]) -> None:
    with pytest.raises(ReportedError) as refused:
        instance.exec(program("true", rlimits=limits))
    assert (refused.value.step, refused.value.errno) == ("limits", errno.EPERM)
    assert refused.value.filename == "nofile"


def test_every_limit_of_the_kernel_has_one_name_and_init_knows_it(instance: Instance) -> None:
    numbers = list(credentials.RLIMITS.values())
    assert len(numbers) == len(set(numbers))
    # Python has no name for number 10, RLIMIT_LOCKS, which no kernel has heeded since 2.4.
    count = len(Path("/proc/self/limits").read_text().splitlines()) - 1
    assert set(numbers) == set(range(count)) - {10}
    assert {"nofile", "nproc", "core", "as", "memlock", "stack"} <= credentials.RLIMITS.keys()
    now = {name: resource.getrlimit(number) for name, number in credentials.RLIMITS.items()}
    assert instance.exec(program("true", rlimits=now)) == 0


def test_the_oom_score_is_what_was_asked_for(instance: Instance) -> None:
    plan = program("cat", "/proc/self/oom_score_adj", oom_score_adj=321)
    assert output(instance, plan) == "321\n"
    with pytest.raises(ReportedError, match="Invalid argument"):
        instance.exec(program("true", oom_score_adj=1001))


def test_init_is_hidden_named_and_knows_no_path(instance: Instance) -> None:
    entry = Path(f"/proc/{instance.created.pid}")
    name = f"nativert-init {instance.directory.name[1:]:0>8}"
    assert (entry / "comm").read_text() == name[:15] + "\n"
    assert (entry / "cmdline").read_bytes() == name.encode() + b"\0"
    assert (entry / "environ").read_bytes() == b""
    text = "stat -c %u /proc/1/environ; readlink /proc/1/exe || echo hidden"
    # The host's root has no number inside: it is shown as nobody.
    assert instance.output(text).split() == ["65534", "hidden"]


def test_init_and_launcher_have_given_up_what_they_never_need(
    launcher: Launcher, instance: Instance
) -> None:
    for pid in (launcher.pid(), instance.created.pid):
        found = fields(Path(f"/proc/{pid}/status").read_text())
        assert found["NoNewPrivs"] == "1"
        for capability in (prctl.CAP_SYS_MODULE, prctl.CAP_SYS_RAWIO, prctl.CAP_SYSLOG):
            assert not int(found["CapBnd"], 16) >> capability & 1
    # Init is executed, so that it does not even have them.
    assert not int(found["CapPrm"], 16) >> prctl.CAP_SYS_MODULE & 1
    assert found["SigBlk"] == "fffffffe7ffbfeff"


def test_init_has_what_it_needs_and_nothing_of_its_starters(instance: Instance) -> None:
    directory = Path(f"/proc/{instance.created.pid}/fd")
    errors = str(instance.directory.parent / "launcher.log")
    files = ["/dev/null", "/dev/null", errors, str(instance.log), str(instance.directory)]
    expected = sorted([*files, "anon_inode", "socket", "user"])

    def found() -> list[str]:
        links = [os.readlink(entry) for entry in directory.iterdir()]
        return sorted(link.partition(":")[0] for link in links)

    # It answers the launcher first and closes that socket then.
    until(lambda: found() == expected)


def test_a_process_is_named_in_comm_and_arguments() -> None:
    def body() -> None:
        credentials.name_process("nativert-launcher")
        assert Path("/proc/self/comm").read_text() == "nativert-launch\n"
        assert Path("/proc/self/cmdline").read_bytes().startswith(b"nativert-launcher\0")

    run_forked(body)


def test_orphans_come_to_a_subreaper() -> None:
    def body() -> None:
        credentials.become_subreaper()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os.close(writer)
                os._exit(7)
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        os.waitpid(child, 0)
        orphan = int(os.read(reader, 20))
        assert os.waitpid(orphan, 0) == (orphan, 7 << 8)

    run_forked(body)
