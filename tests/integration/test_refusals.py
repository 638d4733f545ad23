"""Bad input: each its own clear error with its code, and nothing left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import census
import pytest
from nodes import make_descriptor, run_inside, start, until, until_logged

from nativert.errors import Code, NativertError
from nativert.isolation.syscalls import MNT_DETACH, mount, umount2
from nativert.runtime.node import Node
from nativert.runtime.protocols import DownloadLimits

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
MIB = 1 << 20


@contextmanager
def refused(code: Code, *words: str) -> Iterator[None]:
    """The block raises a NativertError with this code, whose text has these words."""
    with pytest.raises(NativertError) as caught:
        yield
    text = str(caught.value)
    assert caught.value.code is code, text
    for word in words:
        assert word in text, text
    # One line, no full stop, no Python in it.
    assert "\n" not in caught.value.message
    assert not text.endswith(".")
    assert "Traceback" not in text
    assert "Errno" not in text, text


def assert_nothing_of(node: Node, ref: str) -> None:
    """Nothing of the instance is on the host but its entry, its empty data and its log."""
    assert node.get(ref).state == "DEFINED"
    context = node._context
    assert f"i-{ref}" not in context.driver.names()
    assert not context.paths.instance_run(ref).exists()
    assert context.network.links() == ()
    assert context.claims.ports(context.identity.id).get(ref) is None
    left = [path for path in context.paths.instance_lib(ref).rglob("*") if path.is_file()]
    assert left == []
    assert [f for f in node.gc(dry_run=True) if ref in f.name or f.kind == "link"] == []
    assert not [line for line in census.take() if ref[:8] in line]


def configure_refused(node: Node, code: Code, *words: str, **fields: Any) -> str:
    ref = node.define(make_descriptor(**fields)).instance
    with refused(code, *words):
        node.configure(ref)
    assert_nothing_of(node, ref)
    return ref


# -- the program -----------------------------------------------------------------------------


def test_missing_binary(node: Node, cli: Callable[..., Any]) -> None:
    configure_refused(node, Code.COMMAND_NOT_FOUND, "/usr/bin/nonesuch", binary="/usr/bin/nonesuch")
    done = cli("configure", "app")
    assert done.returncode == 127
    assert done.stderr.count("\n") == 1


def test_missing_binary_in_path_is_told_at_run(node: Node) -> None:
    ref = node.define(make_descriptor(binary="nonesuch", veth=True)).instance
    node.configure(ref)
    with refused(Code.COMMAND_NOT_FOUND, "nonesuch"):
        node.run(ref)
    row = node.get(ref)
    assert row.state == "CONFIGURED"
    assert row.end is not None
    assert row.end.reason == "exec-failed"
    # The instance is as good as before.
    assert run_inside(node, ref, "true")[0] == 0


@pytest.fixture
def opt() -> Iterator[Path]:
    """A directory of the host that instances see."""
    path = Path("/opt", f"nativert-test-{os.getpid()}")
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_not_executable(node: Node, opt: Path) -> None:
    (opt / "text").write_text("hello\n")
    configure_refused(node, Code.NOT_EXECUTABLE, "text", "chmod +x", binary=str(opt / "text"))
    configure_refused(node, Code.NOT_EXECUTABLE, "not an executable", binary=str(opt), name="b")


def test_wrong_architecture(node: Node, opt: Path) -> None:
    # An ELF header of a SPARC, 64 bit, big-endian.
    header = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHI", 2, 43, 1) + bytes(40)
    (opt / "sparc").write_bytes(header)
    (opt / "sparc").chmod(0o755)
    configure_refused(
        node, Code.NOT_EXECUTABLE, "architecture", os.uname().machine, binary=str(opt / "sparc")
    )


def test_missing_interpreter(node: Node, opt: Path) -> None:
    (opt / "script").write_text("#!/usr/bin/nonesuch\n")
    (opt / "script").chmod(0o755)
    ref = node.define(make_descriptor(binary=str(opt / "script"))).instance
    node.configure(ref)
    with refused(Code.NOT_EXECUTABLE, "interpreter", str(opt / "script")):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


def test_neither_program_nor_script(node: Node, opt: Path) -> None:
    (opt / "noise").write_bytes(b"\0\1\2\3")
    (opt / "noise").chmod(0o755)
    ref = node.define(make_descriptor(binary=str(opt / "noise"))).instance
    node.configure(ref)
    with refused(Code.NOT_EXECUTABLE, "noise"):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


@pytest.mark.parametrize("binary", ["/home/pi/app/run", "/root/venv/bin/python", "/srv/app"])
def test_a_program_that_is_not_shown_inside(node: Node, binary: str) -> None:
    ref = configure_refused(node, Code.COMMAND_NOT_FOUND, binary, "not visible", binary=binary)
    with pytest.raises(NativertError) as caught:
        node.configure(ref)
    assert "--bind-here" in caught.value.hint
    assert "mounts" in caught.value.hint


def test_missing_user(node: Node) -> None:
    configure_refused(
        node, Code.CONFIGURE, "nosuchuser", shell=SLEEP, native={"user": "nosuchuser"}
    )


def test_missing_workdir(node: Node) -> None:
    ref = node.define(make_descriptor(shell=SLEEP, native={"workdir": "/nonesuch"})).instance
    node.configure(ref)
    with refused(Code.RUN, "/nonesuch", "working directory"):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


# -- mounts ----------------------------------------------------------------------------------


def test_missing_mount_source(node: Node, tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path / "nonesuch"), "target": "/srv"}]
    configure_refused(
        node, Code.CONFIGURE, str(tmp_path / "nonesuch"), "/srv",
        shell=SLEEP, veth=True, native={"mounts": mounts},
    )  # fmt: skip


def test_mount_target_in_a_read_only_place(node: Node, tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path), "target": "/usr/nonesuch/here"}]
    configure_refused(
        node, Code.CONFIGURE, "/usr/nonesuch/here", "must exist",
        shell=SLEEP, veth=True, native={"mounts": mounts},
    )  # fmt: skip
    assert not Path("/usr/nonesuch").exists()


# -- images ----------------------------------------------------------------------------------


def tar_with(*members: tarfile.TarInfo) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        program = tarfile.TarInfo("bin/app")
        program.mode, program.size = 0o755, 10
        tar.addfile(program, io.BytesIO(b"#!/bin/sh\n"))
        for member in members:
            tar.addfile(member)
    return archive.getvalue()


def member(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def image_of(path: Path, **fields: str) -> dict[str, object]:
    return {"uri": f"file://{path}", **fields}


def test_missing_image(node: Node, tmp_path: Path) -> None:
    image = image_of(tmp_path / "nonesuch.tar")
    configure_refused(node, Code.IMAGE, "nonesuch.tar", binary="app", image=image, veth=True)


def test_wrong_checksum(node: Node, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(tar_with())
    wrong = hashlib.sha256(b"something else").hexdigest()
    image = image_of(tmp_path / "image.tar", checksum=wrong)
    ref = configure_refused(node, Code.IMAGE, "sha256", binary="app", image=image)
    assert list(node._context.paths.instance_lib(ref).iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("/etc/absolute"),
        member("link", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
        member("node", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("suid", mode=0o4755),
    ],
    ids=lambda bad: bad.name,
)
def test_a_tar_that_reaches_out(node: Node, tmp_path: Path, bad: tarfile.TarInfo) -> None:
    (tmp_path / "image.tar").write_bytes(tar_with(bad))
    ref = configure_refused(
        node, Code.IMAGE, bad.name, binary="app", image=image_of(tmp_path / "image.tar")
    )
    assert list(node._context.paths.instance_lib(ref).iterdir()) == []


def test_an_image_without_the_program(node: Node, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(tar_with())
    image = image_of(tmp_path / "image.tar")
    ref = configure_refused(
        node, Code.COMMAND_NOT_FOUND, "/app/bin/nonesuch", binary="/app/bin/nonesuch", image=image
    )
    assert not (node._context.paths.instance_lib(ref) / "image").exists()


@contextmanager
def server(answer: bytes, *, close: bool = True) -> Iterator[str]:
    """A server that gives every request the same bytes, whatever they are."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.sendall(answer)
            held.append(connection)
            if close:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/image.tar"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in held:
            connection.close()


def test_a_server_that_truncates(node: Node) -> None:
    body = tar_with()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) * 2) + body
    with server(answer) as uri:
        configure_refused(node, Code.IMAGE, "127.0.0.1", binary="app", image={"uri": uri})


def test_a_server_that_lies(node: Node) -> None:
    with server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as uri:
        configure_refused(node, Code.IMAGE, "404", binary="app", image={"uri": uri})
    page = b"<html>please log in</html>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    wanted = hashlib.sha256(tar_with()).hexdigest()
    with server(answer) as uri:
        configure_refused(
            node,
            Code.IMAGE,
            "sha256",
            name="b",
            binary="app",
            image={"uri": uri, "checksum": wanted},
        )


def test_a_server_that_hangs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    images = node._context.images
    short = DownloadLimits(
        max_bytes=MIB, connect_timeout_s=1.0, stall_timeout_s=0.3, total_timeout_s=1.0
    )
    monkeypatch.setattr(images._cache, "_limits", short)
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", close=False) as uri:
        configure_refused(node, Code.IMAGE, "127.0.0.1", binary="app", image={"uri": uri})


def test_no_server(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}/image.tar"
    configure_refused(node, Code.IMAGE, "127.0.0.1", binary="app", image={"uri": uri})


# -- addresses, ports, names -----------------------------------------------------------------


def test_no_address_left(node: Node) -> None:
    context = node._context
    tiny = IPv4Network((int(context.identity.subnet.network_address), 30))
    context.identity = dataclasses.replace(context.identity, subnet=tiny)
    first = node.define(make_descriptor(name="first", shell=SLEEP, veth=True)).instance
    with refused(Code.ADDRESS_EXHAUSTED, str(tiny), "1 are in use"):
        node.define(make_descriptor(name="second", shell=SLEEP, veth=True))
    assert [row.name for row in node.list()] == ["first"]
    node.undefine(first)
    node.define(make_descriptor(name="second", shell=SLEEP, veth=True))


def publishing(port: int, **fields: Any) -> dict[str, Any]:
    return {
        "shell": SLEEP,
        "veth": True,
        "native": {"network": {"ports": [f"{port}:80"]}},
        **fields,
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_port_taken_by_a_process_of_the_host(node: Node, host: str) -> None:
    with socket.create_server((host, 21101)):
        ref = configure_refused(node, Code.PORT_TAKEN, "21101", **publishing(21101))
    node.configure(ref)


def test_port_taken_by_another_instance(node: Node) -> None:
    owner = start(node, **publishing(21102, name="owner"))
    ref = node.define(make_descriptor(**publishing(21102))).instance
    with refused(Code.PORT_TAKEN, "21102", owner):
        node.configure(ref)
    assert node.get(ref).state == "DEFINED"
    assert node.get(owner).state == "RUNNING"
    assert not node._context.paths.instance_run(ref).exists()
    node.stop(owner)
    node.clean(owner)
    node.configure(ref)


def test_port_taken_by_another_node(
    node: Node, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    other = make_node(tmp_path / "other")
    start(other, **publishing(21103, name="owner"))
    ref = configure_refused(
        node, Code.PORT_TAKEN, "21103", str(tmp_path / "other"), **publishing(21103)
    )
    other.remove("owner")
    node.configure(ref)


def test_name_taken(node: Node, cli: Callable[..., Any], tmp_path: Path) -> None:
    first = node.define(make_descriptor(shell=SLEEP))
    with refused(Code.NAME_TAKEN, "app"):
        node.define(make_descriptor(shell=SLEEP))
    assert [row.instance for row in node.list()] == [first.instance]
    node.define(make_descriptor(shell=SLEEP), name="other")
    with refused(Code.NAME_TAKEN, "other"):
        node.define(make_descriptor(shell=SLEEP), name="other")
    document = tmp_path / "app.json"
    document.write_text(
        '{"id":"app","name":"app","hypervisor":"BARE","command":{"binary":"/bin/true"}}'
    )
    done = cli("run", str(document))
    assert done.returncode == 4
    assert "app" in done.stderr
    assert len(node.list()) == 2


# -- limits, requirements, disk --------------------------------------------------------------


def test_a_limit_that_nothing_enforces(node: Node) -> None:
    configure_refused(
        node,
        Code.UNENFORCEABLE,
        "cpuset",
        shell=SLEEP,
        veth=True,
        native={"cpu": {"cpuset": "4000"}},
    )


def test_requirements_that_this_machine_has_not(node: Node) -> None:
    for field, value in (("cpu_arch", "sparc64"), ("cpu_min_count", 4096)):
        with refused(Code.REQUIREMENTS, field):
            node.define(make_descriptor(shell=SLEEP, computation_requirements={field: value}))
    assert node.list() == []
    for field, value in (("ram_size_mb", 1 << 30), ("storage_size_gb", 1 << 30)):
        configure_refused(
            node, Code.REQUIREMENTS, field,
            name=field, shell=SLEEP, computation_requirements={field: value},
        )  # fmt: skip


@pytest.fixture
def full_disk(root: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The node's lib is a small file system, which is full in the returned blocks."""
    lib = root / "var/lib/nativert"
    lib.mkdir(parents=True)
    mount("nativert-test", str(lib), "tmpfs", data="size=8m,mode=0700")
    ballast = lib / "ballast"

    @contextmanager
    def full() -> Iterator[None]:
        try:
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            ballast.unlink()

    yield full
    umount2(str(lib), MNT_DETACH)


def test_full_disk(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, tmp_path: Path
) -> None:
    (tmp_path / "image.tar").write_bytes(tar_with())
    image = image_of(tmp_path / "image.tar")
    ref = node.define(make_descriptor(binary="app", image=image)).instance
    with full_disk():
        with refused(Code.IMAGE, "space"):
            node.configure(ref)
        with refused(Code.STORE, "space"):
            node.define(make_descriptor(name="more", shell=SLEEP))
        assert [row.state for row in node.list()] == ["DEFINED"]
    assert_nothing_of(node, ref)


def test_a_log_on_a_full_disk_does_not_disturb_the_application(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, cli: Callable[..., Any]
) -> None:
    # Each time more than the page that its file may have left.
    app = start(node, shell="while sleep 0.01; do seq 2000; done")
    with full_disk():
        before = node.stats([app])[0].cpu_ns
        until(lambda: (node.stats([app])[0].cpu_ns or 0) > (before or 0) + 30_000_000)
        assert run_inside(node, app, "true")[0] == 0
        assert node.get(app).state == "RUNNING"
        # A new command may have no room to open the store; then it says why.
        done = cli("ps")
        assert done.returncode == 0 or "no space left" in done.stderr
    until_logged(node, app, "bytes of log dropped")
    assert node.stop(app).state == "CONFIGURED"


def test_bad_descriptors_through_the_cli(cli: Callable[..., Any], tmp_path: Path) -> None:
    document = tmp_path / "bad.yaml"
    document.write_text(
        "id: a\nname: a\nhypervisor: BARE\ncommand: {binary: /bin/true}\nnative: {cpu: {maxi: 1}}\n"
    )
    done = cli("define", str(document))
    assert done.returncode == 2
    assert "native.cpu.maxi" in done.stderr
    assert cli("define", str(tmp_path / "nonesuch.yaml")).returncode == 2
    assert cli("inspect", "nonesuch").returncode == 3
