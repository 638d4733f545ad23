"""The census must see what it is there to see, or every other root test proves less."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import census
import kernel
import pytest
from forked import run_forked

from nativert.isolation.syscalls import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, mount, unshare

pytestmark = [pytest.mark.root, pytest.mark.netns]

TAG = f"{os.getpid() % 0x1000000:06x}"


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def new_kinds(before: frozenset[str]) -> set[str]:
    return {line.split()[0] for line in census.take() - before if TAG in line}


def test_a_link_is_seen(undo: ExitStack) -> None:
    before = census.take()
    subprocess.run(["ip", "link", "add", f"nrt-{TAG}", "type", "bridge"], check=True)
    undo.callback(subprocess.run, ["ip", "link", "del", f"nrt-{TAG}"], check=True)
    assert new_kinds(before) == {"link"}
    undo.close()
    assert not new_kinds(before)


def test_a_table_is_seen(undo: ExitStack) -> None:
    before = census.take()
    subprocess.run(["nft", "add", "table", "ip", f"nativert_{TAG}"], check=True)
    undo.callback(subprocess.run, ["nft", "delete", "table", "ip", f"nativert_{TAG}"], check=True)
    assert new_kinds(before) == {"nftables"}


def test_a_cgroup_and_its_process_are_seen(undo: ExitStack) -> None:
    mount_point = "/sys/fs/cgroup/pids" if kernel.hierarchy() != "v2" else "/sys/fs/cgroup"
    before = census.take()
    cgroup = Path(mount_point, f"nativert-{TAG}")
    cgroup.mkdir()
    undo.callback(cgroup.rmdir)
    assert new_kinds(before) == {"cgroup"}
    process = undo.enter_context(subprocess.Popen(["sleep", "60"]))
    undo.callback(process.kill)
    (cgroup / "cgroup.procs").write_text(str(process.pid))
    assert any(line.startswith(f"process {process.pid} ") for line in census.take() - before)


def test_a_file_and_a_mount_are_seen(undo: ExitStack) -> None:
    before = census.take()
    directory = undo.enter_context(tempfile.TemporaryDirectory(prefix=f"nativert{TAG}", dir="/run"))
    Path(directory, "claims.json").touch()
    Path(directory, "host.lock").touch()
    subprocess.run(["mount", "-t", "tmpfs", "trial", directory], check=True)
    undo.callback(subprocess.run, ["umount", directory], check=True)
    assert new_kinds(before) == {"mount"}


def test_a_network_namespace_in_use_is_seen(undo: ExitStack) -> None:
    before = census.take()
    process = undo.enter_context(
        subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
        )
    )
    undo.callback(process.kill)
    assert process.stdout
    process.stdout.readline()
    inode = os.readlink(f"/proc/{process.pid}/ns/net")
    assert f"network namespace {inode}" in census.take() - before
    undo.close()
    assert not census.leftovers(before, f"network namespace {inode}")


def test_an_unreaped_child_is_seen(undo: ExitStack) -> None:
    before = census.take()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    undo.callback(os.waitpid, pid, 0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert any(line.startswith(f"zombie {pid} ") for line in census.take() - before)


def test_what_a_forked_body_does_to_its_namespaces_is_not_left(tmp_path: Path) -> None:
    before = census.take()

    def body() -> int:
        mount("none", str(tmp_path), "tmpfs")
        assert tmp_path.is_mount()
        unshare(CLONE_NEWNET)
        return os.getpid()

    assert run_forked(body, flags=CLONE_NEWNS | CLONE_NEWPID) == 1
    assert not tmp_path.is_mount()
    assert not census.leftovers(before, str(tmp_path))
