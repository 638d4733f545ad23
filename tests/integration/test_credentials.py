"""Who the application is after the last step before exec, as /proc tells it."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import prctl
import pytest
from forked import run_forked

from nativert.isolation import credentials, namespaces

pytestmark = pytest.mark.root

ID_BASE = 0x7100_0000


@pytest.fixture
def user_namespace() -> Iterator[int]:
    made = namespaces.create(ID_BASE, 65536, network=False)
    yield made["user"]
    for fd in made.values():
        os.close(fd)


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def become_application(user_namespace: int, uid: int = 1000, gid: int = 1000) -> None:
    last = credentials.last_capability()
    namespaces.enter_user(user_namespace)
    credentials.become(uid, gid, [])
    credentials.drop_capabilities(last)


@pytest.mark.parametrize("uid", [1000, 0, 65534])
def test_no_capability_is_left_and_none_can_come(user_namespace: int, uid: int) -> None:
    def body() -> dict[str, str]:
        become_application(user_namespace, uid, uid)
        return status()

    found = run_forked(body)
    assert {found[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    # /proc shows them as the reader's user namespace numbers them.
    assert found["Uid"].split() == found["Gid"].split() == [str(uid)] * 4
    assert found["Groups"] == ""


def test_the_securebits_that_count_are_locked(user_namespace: int) -> None:
    def body() -> int:
        become_application(user_namespace)
        return int(prctl.get_securebits())

    assert run_forked(body) == 0b1111


@pytest.mark.parametrize("uid", [1000, 0])
def test_other_ids_cannot_be_taken(user_namespace: int, uid: int) -> None:
    def body() -> None:
        become_application(user_namespace, uid, uid)
        for attempt in (
            lambda: os.setresuid(7, 7, 7),
            lambda: os.setresgid(7, 7, 7),
            lambda: os.setgroups([7]),
            lambda: os.setgroups([]),
        ):
            with pytest.raises(PermissionError):
                attempt()

    run_forked(body)


def test_root_of_the_instance_has_no_rights(user_namespace: int) -> None:
    """Uid 0 inside is an ordinary id: NOROOT, and no capability to use."""

    def body() -> None:
        become_application(user_namespace, 0, 0)
        with pytest.raises(PermissionError):
            socket.sethostname("mine")
        with pytest.raises(PermissionError):
            os.chown("/tmp", 0, 0)
        with pytest.raises(PermissionError):
            os.open("/etc/shadow", os.O_RDONLY)

    run_forked(body)


def test_limits_are_set_soft_and_hard() -> None:
    def body() -> None:
        credentials.set_rlimits({"nofile": (64, 128), "core": (0, 0), "stack": [1 << 20, -1]})
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 128)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_STACK) == (1 << 20, -1)
        assert credentials.current_rlimits()["nofile"] == (64, 128)

    run_forked(body)


@pytest.mark.parametrize("limits", [{"nofile": (128, 64)}, {"nofile": (1 << 40, 1 << 40)}])
def test_a_refused_limit_is_named(limits: dict[str, tuple[int, int]]) -> None:
    def body() -> None:
        with pytest.raises(OSError, match="setrlimit nofile"):
            credentials.set_rlimits(limits)

    run_forked(body)


def test_every_limit_of_the_kernel_has_one_name() -> None:
    numbers = list(credentials.RLIMITS.values())
    assert len(numbers) == len(set(numbers))
    # Python has no name for number 10, RLIMIT_LOCKS, which no kernel has heeded since 2.4.
    count = len(Path("/proc/self/limits").read_text().splitlines()) - 1
    assert set(numbers) == set(range(count)) - {10}
    assert {"nofile", "nproc", "core", "as", "memlock", "stack"} <= credentials.RLIMITS.keys()


def test_the_oom_score_is_what_was_asked_for() -> None:
    def body() -> None:
        credentials.set_oom_score_adj(321)
        assert Path("/proc/self/oom_score_adj").read_text() == "321\n"
        with pytest.raises(OSError, match="Invalid argument"):
            credentials.set_oom_score_adj(1001)

    run_forked(body)


def test_a_hidden_process_belongs_to_root_in_proc() -> None:
    def body() -> None:
        credentials.become(1000, 1000, [])
        # Changing the ids has hidden it already.
        prctl.set_dumpable(1)
        assert os.stat("/proc/self/environ").st_uid == 1000
        credentials.hide_from_instance()
        assert os.stat("/proc/self/environ").st_uid == 0
        hidden = os.getpid()

        def neighbour() -> None:
            with pytest.raises(PermissionError):
                os.readlink(f"/proc/{hidden}/exe")

        # Of the same uid, without capabilities.
        run_forked(neighbour)

    run_forked(body)


def test_a_process_is_named_in_comm_and_arguments() -> None:
    def body() -> None:
        credentials.name_process("nativert-init 0a1b2c3d")
        assert Path("/proc/self/comm").read_text() == "nativert-init 0\n"
        assert Path("/proc/self/cmdline").read_bytes().startswith(b"nativert-init 0a1b2c3d\0")

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
