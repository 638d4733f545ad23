"""What an application finds inside: environment, ids, files, limits, network, image, script."""

from __future__ import annotations

import hashlib
import os
import pty
import resource
import select
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import (
    CLI,
    log_text,
    make_descriptor,
    run_inside,
    start,
)

from nativert.errors import Code, NativertError, TransitionError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def told(node: Node, **fields: object) -> list[str]:
    """Run an application to its end; return the lines of its log."""
    app = start(node, **fields)
    row = node.wait(app, timeout_s=10)
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


# -- exec ------------------------------------------------------------------------------------


def test_exec_codes(node: Node, cli: Cli) -> None:
    app = start(node, shell=SLEEP, native={"env": {"WHO": "app"}, "user": "nobody"})
    assert run_inside(node, app, "sh", "-c", "exit 7") == (7, "")
    assert run_inside(node, app, "sh", "-c", "kill -TERM $$") == (143, "")
    code, text = run_inside(node, app, "sh", "-c", "id -u; pwd; echo $WHO $NEW", env={"NEW": "x"})
    assert (code, text) == (0, "65534\n/data\napp x\n")
    for argv, word in (
        (["no-such-program"], Code.COMMAND_NOT_FOUND),
        (["/etc/passwd"], Code.NOT_EXECUTABLE),
    ):
        with pytest.raises(NativertError) as refused:
            run_inside(node, app, *argv)
        assert refused.value.code is word
    assert node.get(app).state == "RUNNING"

    done = cli("exec", "app", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert cli("exec", "app", "no-such-program").returncode == 127
    assert cli("exec", "app", "/etc/passwd").returncode == 126
    done = cli("exec", "-i", "app", "--", "cat", input="through stdin\n")
    assert (done.returncode, done.stdout) == (0, "through stdin\n")


def test_exec_is_in_the_cgroup_and_dies_with_the_application(node: Node) -> None:
    app = start(node, shell=SLEEP)
    null = os.open("/dev/null", os.O_RDWR)
    session = node.exec(app, ["sleep", "1000"], stdio=(null, null, null))
    os.close(null)
    assert node.get(app).pids == 2
    node.stop(app)
    assert session.wait() == 137
    session.close()


def test_exec_is_refused_where_nothing_runs_or_all_is_frozen(node: Node) -> None:
    app = node.define(make_descriptor(shell=SLEEP)).instance
    with pytest.raises(TransitionError):
        run_inside(node, app, "true")
    node.configure(app)
    assert run_inside(node, app, "cat", "/proc/1/comm")[0] == 0
    node.run(app)
    node.pause(app)
    with pytest.raises(TransitionError):
        run_inside(node, app, "true")


def test_exec_on_a_terminal_through_the_cli(node: Node, root: Path) -> None:
    start(node, shell=SLEEP)
    pid, master = pty.fork()
    if pid == 0:
        os.environ["NATIVERT_ROOT"] = str(root)
        os.execv(
            CLI[0],
            [*CLI, "exec", "-it", "app", "--", "sh", "-c", "tty; read x; echo got $x; exit 5"],
        )
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], 10)[0], seen
            try:
                seen += os.read(master, 4096)
            except OSError as e:
                raise AssertionError(seen) from e

    try:
        see(b"/dev/pts/")
        os.write(master, b"typed\r")
        see(b"got typed")
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 5


# -- script and image ------------------------------------------------------------------------


def test_the_script_runs_inside_before_the_application(node: Node) -> None:
    configuration = {
        "conf_type": "SCRIPT",
        "script": "id -u > /data/made\nhostname >> /data/made\n",
    }
    app = node.define(
        make_descriptor(name="scripted", shell="cat made", configuration=configuration)
    ).instance
    assert node.configure(app).state == "CONFIGURED"
    node.run(app)
    node.wait(app, timeout_s=10)
    assert log_text(node, app) == "1000\nscripted\n"


def test_a_failing_script_fails_configure_with_its_output(node: Node, root: Path) -> None:
    script = "echo to stdout; echo to stderr >&2; (setsid sleep 1000 &); exit 9"
    app = node.define(
        make_descriptor(shell=SLEEP, veth=True, configuration={"script": script})
    ).instance
    with pytest.raises(NativertError) as failed:
        node.configure(app)
    assert failed.value.code is Code.CONFIGURE
    assert "code 9" in failed.value.message
    assert "to stdout" in failed.value.message
    assert "to stderr" in failed.value.message
    assert node.get(app).state == "DEFINED"
    assert list((root / "run/nativert/i").iterdir()) == []
    assert {found.name for found in node.gc(dry_run=True) if app in found.name} == set()


@pytest.fixture(scope="module")
def static_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs nothing around it: it says where it is and what it was given."""
    directory = tmp_path_factory.mktemp("static")
    source = directory / "hello.c"
    source.write_text(
        "#include <stdio.h>\n#include <dirent.h>\n#include <unistd.h>\n"
        "int main(int n, char **v) {\n"
        '  DIR *d = opendir("/"); struct dirent *e;\n'
        '  printf("%s %d\\n", v[0], getuid());\n'
        "  while ((e = readdir(d))) if (e->d_name[0] != '.') printf(\"%s \", e->d_name);\n"
        '  printf("\\n"); return n - 1; }\n'
    )
    subprocess.run(["gcc", "-static", "-O1", "-o", directory / "hello", source], check=True)
    return directory / "hello"


@pytest.mark.apps
def test_an_image_as_the_whole_root(node: Node, static_program: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(static_program, "bin/hello")
        passwd = tmp_path / "passwd"
        passwd.write_text("root:x:0:0::/:/bin/sh\nsvc:x:77:77::/:/bin/sh\n")
        tar.add(passwd, "etc/passwd")
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    image = {"name": "i", "uri": f"file://{archive}", "checksum": checksum, "format": "tar.gz"}
    app = start(
        node,
        binary="hello",
        args=["a", "b"],
        image=image,
        native={"rootfs": "image", "workdir": "/", "user": "svc"},
    )
    row = node.wait(app, timeout_s=10)
    assert row.end is not None
    assert row.end.exit_code == 2
    first, second = log_text(node, app).splitlines()
    assert first == "/bin/hello 77"
    assert set(second.split()) == {"bin", "etc", "data", "dev", "proc", "run", "sys", "tmp", "var"}
    node.clean(app)
    # What configure unpacked is not left; data and log are.
    left = {path.name for path in node._context.paths.instance_lib(app).iterdir()}
    assert left == {"data", "log"}


@pytest.mark.apps
def test_an_image_at_app_and_its_bin_in_the_path(
    node: Node, static_program: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "tree"
    (directory / "bin").mkdir(parents=True)
    program = directory / "bin" / "hello"
    program.write_bytes(static_program.read_bytes())
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    image = {"name": "i", "uri": f"file://{directory}", "checksum": "", "format": "directory"}
    app = start(node, binary="hello", image=image, native={"workdir": "/app"})
    node.wait(app, timeout_s=10)
    assert log_text(node, app).startswith("/app/bin/hello 1000\n")
    script = "which hello; touch /app/x || echo read-only"
    code, text = run_inside(node, app, "sh", "-c", script)
    assert code == 0
    assert text.splitlines()[0] == "/app/bin/hello"
    assert text.splitlines()[-1] == "read-only"


def test_a_single_binary_as_image(node: Node, tmp_path: Path) -> None:
    binary = tmp_path / "true"
    binary.write_bytes(Path("/bin/true").read_bytes())
    image = {"name": "i", "uri": f"file://{binary}", "checksum": "", "format": "binary"}
    app = start(node, image=image, binary="true")
    row = node.wait(app, timeout_s=10)
    assert row.end is not None
    assert row.end.exit_code == 0
