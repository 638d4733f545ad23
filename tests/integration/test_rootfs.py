"""The root of an instance, built and entered for real, seen from inside."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import native_rootfs as rootfs
import pytest
import scale
from forked import run_forked

from nativert.isolation.syscalls import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID
from nativert.launcher.plan import Step

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, scope="module")
def native() -> None:
    rootfs.load()


T = TypeVar("T")

READ_ONLY = ("ro", "nosuid", "nodev")
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
# OCI runtime-spec's default masked paths, and those of ours.
MASKED = (
    *("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats"),
    *("sched_debug", "scsi", "interrupts", "kallsyms", "kpagecgroup", "kpagecount", "kpageflags"),
    *("slabinfo", "vmallocinfo"),
)
MASKED_SYS = ("block", "class/block", "firmware", "kernel/debug", "kernel/tracing")
PROTECTED = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def host_steps() -> list[Step]:
    """Return the smallest root in which Python can go on."""
    steps = []
    for name in ("usr", "bin", "lib", "lib64", "etc"):
        if os.path.islink(f"/{name}"):
            steps.append(Step("symlink", os.readlink(f"/{name}"), f"/{name}"))
        elif os.path.exists(f"/{name}"):
            steps.append(Step("bind", f"/{name}", f"/{name}", READ_ONLY))
    return steps


def inside(
    directory: Path,
    steps: Sequence[Step],
    body: Callable[[], T],
    *,
    kernel: tuple[int, int] = (9, 9),
    own_network: bool = True,
) -> T:
    """Return what *body* returns in a root made of *steps*, as PID 1 of its namespace."""
    new_root = directory / "new-root"
    new_root.mkdir(exist_ok=True)

    def build() -> T:
        rootfs.set_kernel(kernel)
        root = rootfs.build(str(new_root), steps, shm_bytes=1 << 20)
        rootfs.finish(str(new_root), root, own_network=own_network)
        return body()

    return run_forked(build, flags=CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)


def mount_table() -> dict[str, tuple[set[str], str]]:
    """Return {mount point: (options, type)} of the caller."""
    table = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        table[fields.split()[4]] = set(fields.split()[5].split(",")), rest.split()[0]
    return table


@pytest.mark.parametrize("kernel", [(9, 9), (5, 10)], ids=str)
def test_what_is_not_given_is_not_there(tmp_path: Path, kernel: tuple[int, int]) -> None:
    def body() -> tuple[set[str], set[str], dict[str, tuple[set[str], str]]]:
        return set(os.listdir("/")), set(os.listdir("/dev")), mount_table()

    steps = [Step("bind", "/etc", "/etc", READ_ONLY), Step("tmpfs", "", "/tmp", ("nosuid",), "")]
    top, dev, table = inside(tmp_path, steps, body, kernel=kernel)
    assert top == {"etc", "tmp", "proc", "sys", "dev", ".empty", ".none"}
    assert dev == {
        "null", "zero", "full", "random", "urandom", "tty",
        "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr",
    }  # fmt: skip
    # Nothing of the host's mount table is left: no path of it, and no old root below.
    assert not any(str(tmp_path) in point for point in table)
    assert {"ro", "nosuid", "nodev"} <= table["/"][0]
    assert {"ro", "nosuid", "nodev", "noexec"} <= table["/sys"][0]
    assert {"nosuid", "nodev", "noexec"} <= table["/proc"][0]
    assert {"ro", "nosuid", "noexec"} <= table["/dev"][0]
    assert {"nosuid", "nodev", "noexec"} <= table["/dev/shm"][0]
    assert table["/dev/pts"][1] == "devpts"
    assert "ro" in table["/proc/sys"][0]


def test_the_top_and_dev_take_no_new_files(tmp_path: Path) -> None:
    def body() -> None:
        for path in ("/new", "/dev/new", "/etc/new", "/proc/sys/kernel/hostname", "/.empty"):
            with pytest.raises(OSError) as refused:
                Path(path).write_text("x")
            assert refused.value.errno == 30, path
        with pytest.raises(OSError, match="Read-only"):
            os.mknod("/dev/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))
        Path("/dev/null").write_text("swallowed")
        Path("/dev/shm/file").write_text("x")

    inside(tmp_path, [Step("bind", "/etc", "/etc", READ_ONLY)], body)


def test_devices_are_the_kernels(tmp_path: Path) -> None:
    def body() -> None:
        for name, (major, minor) in DEVICES.items():
            status = os.stat(f"/dev/{name}")
            assert stat.S_IMODE(status.st_mode) == 0o666
            assert status.st_rdev == os.makedev(major, minor)
        assert Path("/dev/zero").open("rb").read(3) == b"\0\0\0"
        assert stat.S_IMODE(os.stat("/dev/shm").st_mode) == 0o1777
        with pytest.raises(OSError, match="No space"):
            Path("/dev/shm/large").write_bytes(b"x" * (2 << 20))
        master, slave = os.openpty()
        assert os.ttyname(slave) == "/dev/pts/0"
        os.close(master)
        os.close(slave)

    inside(tmp_path, [], body)


def test_proc_is_of_the_new_pid_namespace_and_masked(tmp_path: Path) -> None:
    def body() -> None:
        assert os.getpid() == 1
        assert [name for name in os.listdir("/proc") if name.isdigit()] == ["1"]
        for path in (
            *(f"/proc/{name}" for name in MASKED),
            *(f"/sys/{name}" for name in MASKED_SYS),
        ):
            if not os.path.lexists(path):
                continue
            if os.path.isdir(path):
                assert os.listdir(path) == [], path
            else:
                assert Path(path).read_bytes() == b"", path
        for path in PROTECTED:
            if os.path.exists(path):
                assert "ro" in mount_table()[path][0], path
        with pytest.raises(OSError, match="Read-only"):
            Path("/proc/sys/vm/drop_caches").write_text("1")

    inside(tmp_path, [], body)


@pytest.mark.parametrize("own_network", [True, False])
def test_sys_shows_the_networks_of_the_instance(tmp_path: Path, own_network: bool) -> None:
    def body() -> tuple[list[str], bool]:
        return os.listdir("/sys/class/net"), os.path.ismount("/sys/fs/cgroup")

    networks, has_cgroups = inside(tmp_path, [], body, own_network=own_network)
    if own_network:
        assert networks == ["lo"]
    assert not has_cgroups


def test_mounts_of_the_host_do_not_appear_and_ours_do_not_leak(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    inside(tmp_path, host_steps(), lambda: None)
    assert Path("/proc/self/mountinfo").read_text() == before
    (tmp_path / "new-root").rmdir()


def test_a_writable_bind_keeps_its_mount_flags(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()

    def body() -> set[str]:
        Path("/data/file").write_text("kept")
        return mount_table()["/data"][0]

    step = Step("bind", str(tmp_path / "data"), "/data", ("nosuid", "nodev"))
    options = inside(tmp_path, [step], body)
    assert {"rw", "nosuid", "nodev"} <= options
    assert (tmp_path / "data/file").read_text() == "kept"


def make_files(directory: Path, **files: str) -> Path:
    """Write files into a new directory; return it."""
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def etc_of(*layers: Path) -> Step:
    return Step("overlay", "", "/etc", READ_ONLY, [str(layer) for layer in layers])


@pytest.mark.parametrize("link", ["../run/systemd/resolve/stub-resolv.conf", "/absent", "chain"])
def test_a_file_of_ours_takes_the_place_of_a_link(tmp_path: Path, link: str) -> None:
    host = make_files(tmp_path / "host", other="the host's")
    (host / "chain").symlink_to("resolv.conf")
    (host / "resolv.conf").symlink_to(link)
    ours = make_files(tmp_path / "ours", **{"resolv.conf": "ours"})

    def body() -> None:
        assert Path("/etc/resolv.conf").read_text() == "ours"
        assert Path("/etc/other").read_text() == "the host's"
        for path in ("/etc/resolv.conf", "/etc/other", "/etc/new"):
            with pytest.raises(OSError, match="Read-only"):
                Path(path).write_text("x")
        assert {"ro", "nosuid", "nodev"} <= mount_table()["/etc"][0]

    inside(tmp_path, [etc_of(ours, host)], body)
    assert sorted(os.listdir(host)) == ["chain", "other", "resolv.conf"]


def test_what_the_host_renames_over_its_files_does_not_show_ours_up(tmp_path: Path) -> None:
    """The kernel detaches what is mounted on a file when another is renamed over it."""
    host = make_files(tmp_path / "host", hosts="the host's", shadow="hash", passwd="root")
    hidden = make_files(tmp_path / "hidden")
    os.mknod(hidden / "shadow", stat.S_IFCHR, 0)
    ours = make_files(tmp_path / "ours", hosts="ours", passwd="app")
    replace, replaced = os.pipe(), os.pipe()

    def body() -> None:
        for _ in range(2):
            assert Path("/etc/hosts").read_text() == "ours"
            assert Path("/etc/passwd").read_text() == "app"
            assert sorted(os.listdir("/etc")) == ["hosts", "passwd"]
            with pytest.raises(FileNotFoundError):
                os.stat("/etc/shadow")
            os.write(replace[1], b"x")
            os.read(replaced[0], 1)

    def as_host() -> None:
        os.read(replace[0], 1)
        for name in ("hosts", "shadow", "passwd", "shadow-"):
            (tmp_path / "new").write_text("the host's new")
            os.rename(tmp_path / "new", host / name)
        os.write(replaced[1], b"xx")

    thread = threading.Thread(target=as_host, daemon=True)
    thread.start()
    os.mknod(hidden / "shadow-", stat.S_IFCHR, 0)
    inside(tmp_path, [etc_of(ours, hidden, host)], body)
    thread.join(scale.LONG_S)
    assert (host / "hosts").read_text() == "the host's new"
    for fd in (*replace, *replaced):
        os.close(fd)


def test_a_whiteout_hides_below_a_directory_that_stays(tmp_path: Path) -> None:
    host = make_files(tmp_path / "host/ssl", conf="shown")
    make_files(host / "private", key="secret")
    hidden = make_files(tmp_path / "hidden/ssl")
    os.mknod(hidden / "private", stat.S_IFCHR, 0)
    ours = make_files(tmp_path / "ours")

    def body() -> None:
        assert os.listdir("/etc/ssl") == ["conf"]
        with pytest.raises(FileNotFoundError):
            os.stat("/etc/ssl/private/key")

    inside(tmp_path, [etc_of(ours, tmp_path / "hidden", tmp_path / "host")], body)


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", "a\\:b,lowerdir=:c", "long"])
def test_the_paths_of_layers_may_have_any_characters(tmp_path: Path, name: str) -> None:
    where = tmp_path / name
    if name == "long":
        where = tmp_path.joinpath(*["d" * 200] * 12)
    layers = [make_files(where / part, **{part: "x"}) for part in ("one", "two", "three")]

    def body() -> list[str]:
        assert name not in Path("/proc/self/mountinfo").read_text()
        return sorted(os.listdir("/etc"))

    assert inside(tmp_path, [etc_of(*layers)], body) == ["one", "three", "two"]


def test_a_layer_that_is_a_link_or_absent_is_refused(tmp_path: Path) -> None:
    ours = make_files(tmp_path / "ours")
    (tmp_path / "link").symlink_to("/etc")
    for layer in (tmp_path / "link", tmp_path / "absent"):
        with pytest.raises(OSError, match="overlay /etc"):
            inside(tmp_path, [etc_of(ours, layer)], lambda: None)


def test_a_step_that_fails_is_named_with_its_target(tmp_path: Path) -> None:
    for step, number in (
        (Step("bind", str(tmp_path / "absent"), "/srv"), 2),
        (Step("tmpfs", "", "/t", (), "size=nonsense"), 22),
    ):
        with pytest.raises(OSError, match=re.escape(f"{step.kind} {step.target}")) as refused:
            inside(tmp_path, [step], lambda: None)
        assert refused.value.errno == number
    with pytest.raises(ValueError, match="unknown root step"):
        inside(tmp_path, [Step("union", "", "/x")], lambda: None)
    with pytest.raises(ValueError, match="flag"):
        inside(tmp_path, [Step("bind", "/usr", "/x", ("exec",))], lambda: None)


def test_an_image_whose_directory_is_a_link_leads_no_mount_out(tmp_path: Path) -> None:
    """CVE-2021-30465's way: the target's parent becomes a link to the host."""
    image, victim = tmp_path / "image", tmp_path / "victim"
    image.mkdir()
    victim.mkdir()
    (image / "mnt").symlink_to(victim)
    (image / "up").symlink_to("../../../../.." + str(victim))
    for target in ("/img/mnt/x", "/img/up/x"):
        steps = [
            Step("bind", str(image), "/img", ("nosuid",)),
            Step("tmpfs", "", target, (), ""),
        ]
        with pytest.raises(OSError, match="symbolic links"):
            inside(tmp_path, steps, lambda: None)
    assert os.listdir(victim) == []


def test_real_programs_run_in_it(tmp_path: Path) -> None:
    import subprocess

    def body() -> str:
        out = subprocess.run(["/bin/sh", "-c", "echo $$; ls /"], capture_output=True, check=True)
        return out.stdout.decode()

    lines = inside(tmp_path, host_steps(), body).split()
    assert lines[0] == "2"
    assert {"usr", "proc", "dev"} <= set(lines)
