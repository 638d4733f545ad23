"""The escape audit tells open doors from closed ones, and changes nothing where they are open."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
import scale

from nativert.isolation import seccomp

pytestmark = pytest.mark.root

AUDIT = Path(__file__).with_name("escape_audit.py")

# Doors that are open to root in namespaces of its own, on any kernel we run on.
OPEN_TO_ROOT = {
    "mount_new_filesystem", "mount_bind", "mount_move", "umount", "pivot_root", "chroot",
    "mount_new_api_fsopen", "mount_new_api_open_tree", "mount_new_api_move_mount",
    "mount_new_api_fspick", "mount_new_api_setattr", "ptrace_child", "process_vm_readv_self",
    "process_vm_writev_self", "pidfd_getfd_self", "bpf", "open_by_handle_at",
    "personality_no_randomize", "personality_read_implies_exec", "reboot", "sethostname",
    "setdomainname", "swapon", "swapoff", "clock_settime", "adjust_clock",
    "unshare_user_namespace", "unshare_mount_namespace", "unshare_net_namespace",
    "clone_user_namespace", "clone3_user_namespace", "host_user_namespace",
    "uid_mapped_to_host_root", "capabilities_eff", "capabilities_prm", "capabilities_bnd",
    "no_new_privs_missing", "seccomp_missing", "become_root", "set_groups",
    "mknod_character_device", "mknod_block_device", "kmsg_write", "dmesg",
    "write_core_pattern", "write_etc_passwd", "overwrite_own_program", "writable_in_proc",
    "packet_socket", "raw_socket", "netlink_change_links", "read_etc_shadow",
    "create_in_usr", "create_in_etc",
}  # fmt: skip

# What the filter alone must close, also to root; x32 is absent from many kernels anyway.
CLOSED_BY_THE_FILTER = {
    "mount_new_filesystem", "mount_bind", "mount_move", "umount", "pivot_root", "chroot",
    "mount_new_api_fsopen", "mount_new_api_open_tree", "mount_new_api_move_mount",
    "mount_new_api_fspick", "mount_new_api_setattr", "ptrace_child", "process_vm_readv_self",
    "process_vm_writev_self", "process_vm_readv_init", "kcmp", "pidfd_getfd_self",
    "pidfd_getfd_init", "move_pages_init", "keyctl", "add_key", "request_key", "io_uring",
    "bpf", "perf_event_open", "userfaultfd", "userfaultfd_user_mode", "fanotify",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
    "open_by_handle_at", "personality_no_randomize", "personality_read_implies_exec",
    "modify_ldt", "iopl", "ioperm", "reboot", "sethostname", "setdomainname", "swapon",
    "swapoff", "acct", "dmesg", "clock_settime", "unshare_user_namespace",
    "unshare_mount_namespace", "unshare_pid_namespace", "unshare_net_namespace",
    "unshare_uts_namespace", "unshare_ipc_namespace", "unshare_cgroup_namespace",
    "unshare_time_namespace", "clone_user_namespace", "clone3_user_namespace",
    "join_user_namespace_of_init", "join_mnt_namespace_of_init", "join_net_namespace_of_init",
    "mount_cgroup_v1", "mount_cgroup_v2", "mount_cgroup_v1_by_user_namespace",
    "mount_cgroup_v2_by_user_namespace", "mknod_character_device", "mknod_block_device",
    "tiocsti", "tiocsti_high_bits", "tioclinux", "tioclinux_high_bits", "vsock_socket",
    "alg_socket", "packet_socket", "rare_socket_families", "x32_abi", "i386_abi",
    "seccomp_missing",
}  # fmt: skip

LOADER = str(Path(__file__).with_name("load_filter.py"))


def audit(*prefix: str, arguments: tuple[str, ...] = (), **environment: str) -> dict[str, bool]:
    """Run the audit behind *prefix*; return what each probe found, checking the form."""
    with tempfile.NamedTemporaryFile(suffix=".py") as script:
        # A copy that every user may read, wherever the project is.
        script.write(AUDIT.read_bytes())
        script.flush()
        os.chmod(script.name, 0o644)
        return judge([*prefix, script.name, "--json", *arguments], environment)


def judge(command: list[str], environment: dict[str, str]) -> dict[str, bool]:
    done = subprocess.run(
        # In a mount and PID namespace, as an instance is: the host is out of reach at least
        # of what the probes mount and of the signals they might send.
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", *command],
        capture_output=True, text=True, timeout=scale.seconds(100), check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows, done.stderr
    assert all(set(row) == {"probe", "allowed", "detail"} for row in rows)
    assert all(row["allowed"] in (True, False, None) for row in rows)
    assert done.returncode == min(125, sum(row["allowed"] is True for row in rows)), done.stderr
    return {row["probe"]: row["allowed"] for row in rows}


@pytest.fixture(scope="module")
def of_root() -> dict[str, bool]:
    """Return the verdicts on root without any protection."""
    return audit(sys.executable)


def test_there_are_enough_probes(of_root: dict[str, bool]) -> None:
    assert len(of_root) >= 106


def test_root_finds_the_doors_open(of_root: dict[str, bool]) -> None:
    assert {p for p in OPEN_TO_ROOT if of_root[p] is not True} == set()


def test_the_filter_closes_them(tmp_path: Path) -> None:
    program = seccomp.cached(tmp_path)
    verdicts = audit(sys.executable, LOADER, str(program), sys.executable)
    # None is for another machine's ABI.
    assert {p for p in CLOSED_BY_THE_FILTER if verdicts[p] is True} == set()


def test_an_ordinary_user_is_refused_by_the_kernel() -> None:
    """Without the filter: what needs a capability is refused, the rest is still open."""
    setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # The shell stays PID 1, so that init belongs to somebody else; within one session
    # everybody may send SIGCONT to everybody.
    shell = ("sh", "-c", '"$@"; exit $?', "sh", "setsid", "--wait")
    verdicts = audit(*shell, *setpriv, "/usr/bin/python3")
    needs_rights = {
        "mount_bind", "chroot", "reboot", "sethostname", "swapon", "clock_settime",
        "adjust_clock", "become_root", "set_groups", "capabilities_eff", "read_etc_shadow",
        "create_in_usr", "write_core_pattern", "signal_init", "raise_nice", "raw_socket",
        "uid_mapped_to_host_root", "mknod_block_device", "open_by_handle_at",
    }  # fmt: skip
    assert {p for p in needs_rights if verdicts[p] is not False} == set()
    assert verdicts["seccomp_missing"] is True
    assert verdicts["ptrace_child"] is True


CANARY_PROBES = (
    "host_abstract_sockets", "host_environment", "host_processes_visible", "canary_files",
    "host_mounts_visible",
)  # fmt: skip


def test_the_canary_is_found_where_it_was_put(tmp_path: Path) -> None:
    word = f"canary{uuid.uuid4().hex[:8]}"
    left = Path("/tmp") / word
    # A process beside the audit and a mount, both of which end with the namespaces.
    script = """
        sh -c "sleep 100; :" "$1" &
        mkdir "$0/$1" && mount -t tmpfs none "$0/$1" && shift && exec "$@"
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{word}")
        listener.listen()
        left.touch()
        try:
            found = audit(
                "sh", "-c", script, str(tmp_path), word, sys.executable,
                arguments=("--canary", word, *CANARY_PROBES), CANARY=word,
            )  # fmt: skip
        finally:
            left.unlink()
    assert found == dict.fromkeys(CANARY_PROBES, True)
    absent = audit(sys.executable, arguments=("--canary", word, *CANARY_PROBES))
    assert absent == dict.fromkeys(CANARY_PROBES, False)


def test_nothing_is_left_behind(of_root: dict[str, bool]) -> None:
    places = [*map(Path, ("/", "/usr", "/etc", "/tmp", "/dev")), *Path("/sys/fs/cgroup").glob("*")]
    assert [p for place in places for p in place.glob("*nativert-audit*")] == []
