"""What hostile images, applications and callers plant or hand in; every attack is harmless here."""

from __future__ import annotations

import hashlib
import os
import pty
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scale
from nodes import (
    CLI,
    PYTHON,
    log_text,
    make_descriptor,
    run_inside,
    start,
    until,
)

from nativert.errors import NativertError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

KILL_AT_ONCE = {"stop": {"signal": "SIGKILL", "grace": 0}}
IDLE = "exec sleep 1000"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory of the host that nobody may enter; what is in it is readable by mode."""
    directory = tmp_path / "secret"
    directory.mkdir(mode=0o700)
    (directory / "word").write_text("CANARY\n")
    (directory / "passwd").write_text("CANARY:x:1:1::/:/bin/sh\n")
    return directory


def image_with(tmp_path: Path, build: Callable[[Path], object], *, packed: bool) -> str:
    """Return the URI of an image for rootfs: image, to which *build* adds the attack."""
    image = tmp_path / "image"
    image.mkdir()
    for name in ("bin", "lib", "lib64"):
        (image / name).symlink_to(f"usr/{name}")
    (image / "usr").mkdir()
    build(image)
    if not packed:
        return f"file://{image}"
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(image, arcname=".")
    return f"file://{tmp_path}/image.tar"


def show(node: Node, uri: str, script: str) -> str:
    """Run *script* in an instance whose root is the image; return its output and error."""
    native: dict[str, Any] = {"rootfs": "image", "mounts": [{"source": "/usr", "target": "/usr"}]}
    try:
        app = start(node, shell=script, native=native | KILL_AT_ONCE, image={"uri": uri})
    except NativertError as e:
        return f"refused: {e}"
    node.wait(app, timeout_s=scale.LONG_S)
    return log_text(node, app)


@pytest.mark.parametrize("packed", [False, True], ids=["directory", "tar"])
@pytest.mark.parametrize("etc", ["link", "passwd", "hosts"])
def test_links_in_the_etc_of_an_image(
    node: Node, tmp_path: Path, secret: Path, etc: str, packed: bool
) -> None:
    """Neither copied from nor mounted: root reads what the application may not."""

    def build(image: Path) -> None:
        if etc == "link":
            (image / "etc").symlink_to(secret)
        else:
            (image / "etc").mkdir()
            (image / "etc" / etc).symlink_to(secret / "passwd")

    text = show(node, image_with(tmp_path, build, packed=packed), "cat /etc/*; ls /etc")
    assert text
    assert "CANARY" not in text


@pytest.mark.parametrize("kind", ["link", "file"])
@pytest.mark.parametrize("name", ["proc", "sys", "dev", "tmp", "run", "data", "etc", "var"])
def test_an_image_with_something_else_where_the_runtime_mounts(
    node: Node, tmp_path: Path, secret: Path, name: str, kind: str
) -> None:
    """CVE-2025-31133, CVE-2019-19921: its own is made, or configure is refused."""

    def build(image: Path) -> None:
        if kind == "link":
            (image / name).symlink_to(secret)
        else:
            (image / name).write_text("CANARY\n")

    before = sorted(os.listdir(secret))
    text = show(node, image_with(tmp_path, build, packed=False), f"ls /{name}; stat -f /{name}")
    assert "CANARY" not in text
    assert "word" not in text.split()
    assert sorted(os.listdir(secret)) == before


def test_what_is_planted_in_data_misleads_nobody(
    node: Node, root: Path, tmp_path: Path, secret: Path
) -> None:
    """Fifos and links where the host's side looks for a program; a tree that is too deep."""
    plant = f"""
import os
os.mkfifo("fifo"); os.chmod("fifo", 0o755)
os.symlink("{secret}/word", "out")
os.symlink("/dev/zero", "zero")
os.symlink("/proc/self/exe", "self")
os.mkdir("many")
for number in range(500):
    open(f"many/{{number}}", "w").close()
os.mkdir("-rf"); os.mkdir("new\\nline")
for _ in range(3000):
    os.mkdir("d" * 30); os.chdir("d" * 30)
os.chmod("/data/many", 0); os.chmod("/data", 0)
"""
    app = start(node, python=plant)
    ended = node.wait(app, timeout_s=scale.LONG_S)
    assert ended.end is not None
    assert ended.end.exit_code == 0, log_text(node, app)
    node.clean(app)
    for name in ("fifo", "zero", "out", "self"):
        begun = time.monotonic()
        second = node.define(make_descriptor(name=name, binary=f"/data/{name}")).instance
        data = root / "var/lib/nativert/i" / second / "data"
        data.parent.mkdir(mode=0o700)
        os.rename(root / "var/lib/nativert/i" / app / "data" / name, data.parent / "planted")
        data.mkdir()
        os.rename(data.parent / "planted", data / name)
        try:
            node.configure(second)
            node.run(second)
        except NativertError:
            assert name != "self"
        else:
            # The launcher's interpreter, without any right to it but to execute it.
            assert name == "self"
            node.wait(second, timeout_s=scale.LONG_S)
        # Not as long as who opens the pipe and waits for its other end, which is for ever.
        assert time.monotonic() - begun < scale.LONG_S / 2
    node.undefine(app)
    assert not (root / "var/lib/nativert/i" / app).exists()
    assert sorted(os.listdir(secret)) == ["passwd", "word"]


def test_the_instances_own_directory_swapped_for_a_link(
    node: Node, root: Path, secret: Path
) -> None:
    """Whoever can do this is root already; undefine still removes the link, not its target."""
    app = node.define(make_descriptor(shell="exit 0")).instance
    node.configure(app)
    node.clean(app)
    data = root / "var/lib/nativert/i" / app / "data"
    data.rmdir()
    data.symlink_to(secret)
    with pytest.raises(NativertError):
        node.configure(app)
    node.undefine(app)
    assert sorted(os.listdir(secret)) == ["passwd", "word"]
    assert secret.stat().st_uid == 0


def test_a_mount_target_that_a_sibling_keeps_swapping(node: Node, tmp_path: Path) -> None:
    """CVE-2021-30465: a target below a shared volume, now a directory, now a link to /."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    flip = """
import os
os.symlink("/etc", "/volume/link")
while True:
    try:
        os.mkdir("/volume/target"); os.rename("/volume/target", "/volume/old")
        os.rmdir("/volume/old")
    except OSError: pass
    try:
        os.symlink("/etc", "/volume/target"); os.unlink("/volume/target")
    except OSError: pass
"""
    shared = {"source": str(volume), "target": "/volume", "read_only": False}
    start(node, name="flip", python=flip, native={"mounts": [shared]} | KILL_AT_ONCE)
    until(lambda: (volume / "link").is_symlink())
    before = hashlib.sha256(b"".join(sorted(os.listdir(b"/etc")))).hexdigest()
    below = [shared, {"source": str(tmp_path), "target": "/volume/target"}]
    descriptor = make_descriptor(name="victim", shell="ls /etc/image", native={"mounts": below})
    victim = node.define(descriptor).instance
    refused = 0
    for _ in range(60):
        try:
            node.configure(victim)
        except NativertError:
            refused += 1
            continue
        node.run(victim)
        node.wait(victim, timeout_s=scale.LONG_S)
        node.clean(victim)
    assert hashlib.sha256(b"".join(sorted(os.listdir(b"/etc")))).hexdigest() == before
    assert "word" not in log_text(node, victim)
    assert refused <= 60


@pytest.mark.parametrize("workdir", [f"/proc/self/fd/{n}" for n in (0, 3, 5, 9)] + ["/proc/1/cwd"])
def test_a_working_directory_that_is_a_descriptor(node: Node, workdir: str) -> None:
    """CVE-2024-21626."""
    app = node.define(make_descriptor(shell="pwd", native={"workdir": workdir})).instance
    node.configure(app)
    with pytest.raises(NativertError, match="working directory"):
        node.run(app)
    assert node.get(app).state == "CONFIGURED"


def test_a_session_is_handed_no_directory(node: Node) -> None:
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    slash = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(NativertError, match="directory"):
            node.exec(app, ["ls", "/proc/self/fd/0/"], stdio=(slash, 1, 2))
    finally:
        os.close(slash)
    assert run_inside(node, app, "echo", "alive") == (0, "alive\n")


def test_the_operators_terminal_stays_outside(node: Node, root: Path) -> None:
    """Who holds a terminal's descriptor reads what is typed there later."""
    app = start(node, shell=IDLE, native=KILL_AT_ONCE)
    probe = "import os; print('terminals', [os.isatty(n) for n in (0, 1, 2)])"
    pid, master = pty.fork()
    if pid == 0:
        os.environ["NATIVERT_ROOT"] = str(root)
        os.execv(CLI[0], [*CLI, "exec", "-i", app, "--", PYTHON, "-c", probe])
    text = b""
    try:
        while data := os.read(master, 4096):
            text += data
    except OSError:
        pass  # EIO: the command has ended.
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert b"terminals [False, False, False]" in text


@pytest.mark.parametrize("user", [1000, "root"])
def test_the_interpreter_of_the_launcher(node: Node, user: int | str) -> None:
    """CVE-2019-5736: a script whose interpreter is /proc/self/exe, and writes to init's."""
    python = Path(os.path.realpath(sys.executable))
    before = hashlib.sha256(python.read_bytes()).hexdigest()
    attack = """
printf '#!/proc/self/exe\\n' > x; chmod +x x
for number in 1 self $PPID; do (: >> /proc/$number/exe) 2>&1 && echo OPENED; done
for number in 1 2 3 4 5; do ./x; done
"""
    app = start(node, shell=attack, native={"user": user} | KILL_AT_ONCE)
    node.wait(app, timeout_s=scale.LONG_S)
    # As the first program it would be the launcher's own interpreter.
    second = node.define(make_descriptor(name="second", shell="exit 0", native={"user": user}))
    node.configure(second.instance)
    entry = "import os; os.close(os.open('/proc/self/exe', os.O_WRONLY)); print('OPENED')"
    _, text = run_inside(node, second.instance, "/proc/self/exe", "-S", "-c", entry)
    assert "OPENED" not in log_text(node, app) + text
    assert hashlib.sha256(python.read_bytes()).hexdigest() == before
