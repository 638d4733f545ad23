"""What an application finds inside: environment, ids, limits, files, network."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import scale
from nodes import log_text, start

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


def told(node: Node, **fields: object) -> list[str]:
    """Run an application to its end; return the lines of its log."""
    app = start(node, **fields)
    row = node.wait(app, timeout_s=scale.LONG_S)
    text = log_text(node, app)
    assert row.end is not None
    assert row.end.exit_code == 0, text
    return text.splitlines()


# -- environment, ids, limits ----------------------------------------------------------------


def test_the_environment_is_only_what_was_asked_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAK", "of the starter")
    lines = told(
        node,
        binary="/usr/bin/env",
        native={"env": {"MODE": "edge", "PATH": "/usr/bin:/bin", "EMPTY": ""}},
    )
    assert sorted(lines) == [
        "EMPTY=",
        "HOME=/data",
        "LANG=C.UTF-8",
        "MODE=edge",
        "PATH=/usr/bin:/bin",
        next(line for line in lines if line.startswith("USER=")),
    ]


@pytest.mark.parametrize(("user", "ids"), [("nobody", "65534"), (4321, "4321"), (0, "0")])
def test_user_by_name_and_by_number(node: Node, user: str | int, ids: str) -> None:
    lines = told(
        node,
        shell="id -u; stat -c %u /data; touch mine; stat -c %u mine; grep Cap /proc/self/status",
        native={"user": user},
    )
    assert lines[:3] == [ids, ids, ids]
    # Not even uid 0 inside has a capability, and none can be had.
    assert [line.split()[1] for line in lines[3:]] == ["0000000000000000"] * 5


def test_the_host_sees_ids_of_the_instances_range(node: Node) -> None:
    app = start(node, shell=SLEEP, native={"user": 0})
    row = node.get(app)
    assert row.pid is not None
    native = node.inspect(app)["native"]
    assert isinstance(native, dict)
    base, count = native["id_range"]
    assert base >= 0x2000_0000
    assert count == 65536
    assert os.stat(f"/proc/{row.pid}").st_uid == base


def test_workdir_umask_hostname_and_rlimits(node: Node) -> None:
    lines = told(
        node,
        shell="pwd; umask; hostname; cat /etc/hostname; ulimit -Sn; ulimit -Hn; ulimit -c",
        native={
            "workdir": "/tmp",
            "umask": "0027",
            "hostname": "edge-7",
            "rlimits": {"nofile": {"soft": 100, "hard": 200}},
        },
    )
    assert lines == ["/tmp", "0027", "edge-7", "edge-7", "100", "200", "0"]


def test_limits_of_the_starter_are_not_inherited_by_accident(node: Node) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    lines = told(
        node, shell="ulimit -Hn; ls /proc/self/fd | wc -l; nice; cat /proc/1/oom_score_adj"
    )
    assert int(lines[0]) == hard
    # 0, 1, 2 and the one that ls reads the directory with.
    assert lines[1:3] == ["4", "0"]


def test_processes_of_others_are_not_seen(node: Node) -> None:
    lines = told(
        node,
        shell="ls /proc | grep '^[0-9]' | wc -l; cat /proc/1/comm; kill -9 1 2>/dev/null; echo $?",
    )
    assert int(lines[0]) <= 5
    assert lines[1].startswith("nativert-init")
    assert lines[-1] == "1"  # EPERM: init is of another user namespace


def test_no_descriptor_and_no_terminal_comes_along(node: Node) -> None:
    lines = told(
        node,
        python=(
            "import os\n"
            "print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:3])\n"
            "print(os.readlink('/proc/self/fd/0'), os.getpgid(0) == os.getpid() == os.getsid(0))\n"
            "print(os.path.exists('/dev/tty') and not os.access('/dev/console', 0))\n"
        ),
    )
    assert lines == ["[0, 1, 2]", "/dev/null True", "True"]


# -- files -----------------------------------------------------------------------------------


def test_what_of_the_host_is_shown_and_that_it_is_read_only(node: Node) -> None:
    script = (
        "for f in /usr/x /etc/x /bin/x /x /opt/x; do touch $f 2>/dev/null && echo wrote $f; done; "
        "ls -d /home /root /var/log /mnt /srv /boot 2>/dev/null; cat /etc/shadow 2>/dev/null; "
        "touch /tmp/a /run/a /dev/shm/a /data/a /var/tmp/a && echo writable; "
        "awk '$2==\"/usr\"{print $4}' /proc/mounts"
    )
    lines = told(node, shell=script, native={"user": 0})
    assert lines[0] == "writable"
    assert {"ro", "nosuid", "nodev"} <= set(lines[1].split(","))
    assert len(lines) == 2


def test_tmpfs_with_its_size(node: Node) -> None:
    script = (
        "df -k --output=target,size /var/lib/app /scratch | tail -n +2; "
        "echo x > /var/lib/app/f && echo written; "
        "head -c 3M /dev/zero > /var/lib/app/g 2>/dev/null || echo full"
    )
    native = {"tmpfs": [{"target": "/var/lib/app", "size": "2M"}, "/scratch"]}
    lines = told(node, shell=script, native=native)
    assert lines[0].split() == ["/var/lib/app", "2048"]
    assert lines[1].split()[0] == "/scratch"
    assert lines[2:] == ["written", "full"]


def test_mounts_read_only_and_writable(node: Node, tmp_path: Path) -> None:
    shown, shared, file = tmp_path / "shown", tmp_path / "shared", tmp_path / "file"
    shown.mkdir()
    (shown / "a").write_text("of the host\n")
    shared.mkdir()
    shared.chmod(0o777)
    file.write_text("one file\n")
    native = {
        "mounts": [
            {"source": str(shown), "target": "/shown"},
            {"source": str(shared), "target": "/srv/deep/shared", "read_only": False},
            {"source": str(file), "target": "/opt-file"},
        ]
    }
    script = (
        "cat /shown/a; touch /shown/b 2>/dev/null || echo refused; "
        "echo from inside > /srv/deep/shared/c; cat /opt-file"
    )
    lines = told(node, shell=script, native=native)
    assert lines == ["of the host", "refused", "one file"]
    assert (shared / "c").read_text() == "from inside\n"
    assert (shared / "c").stat().st_uid >= 0x2000_0000
    assert not (shown / "b").exists()


def test_an_instance_leaves_no_mount_on_the_host(node: Node, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    start(node, shell=SLEEP, native={"tmpfs": ["/scratch"]})
    assert [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(tmp_path) in line and line not in before
    ] == []


# -- network ---------------------------------------------------------------------------------


def test_network_modes(node: Node) -> None:
    links = "ls /sys/class/net | sort | tr '\\n' ' '"
    private = told(node, name="private", shell=f"{links}; cat /sys/class/net/lo/flags", veth=True)
    assert private[0].startswith("eth0 lo")
    none = told(
        node, name="none", shell=f"{links}; ip -4 route", native={"network": {"mode": "none"}}
    )
    assert none == ["lo "]
    inside = told(
        node, name="host", shell="readlink /proc/self/ns/net", native={"network": {"mode": "host"}}
    )
    assert inside == [os.readlink("/proc/self/ns/net")]
    lonely = told(node, name="lonely", shell=links)
    assert lonely == ["lo "]


def test_hosts_and_resolver_inside(node: Node) -> None:
    lines = told(
        node,
        name="web_1",
        shell="getent hosts web-1; grep -c . /etc/resolv.conf; hostname",
        veth=True,
    )
    assert lines[0].split()[1] == "web-1"
    assert lines[0].startswith("10.")
    assert int(lines[1]) >= 1
    assert lines[2] == "web-1"


def test_several_interfaces_with_their_macs(node: Node) -> None:
    interfaces = [{"name": "eth0"}, {"name": "edge1", "mac_address": "02:00:00:aa:bb:cc"}]
    lines = told(
        node,
        shell="cat /sys/class/net/edge1/address; ls /sys/class/net | wc -l",
        interfaces=interfaces,
    )
    assert lines == ["02:00:00:aa:bb:cc", "3"]
