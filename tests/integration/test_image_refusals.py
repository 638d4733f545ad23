"""Images that are missing, damaged or hostile: each its own error, and nothing left behind."""

from __future__ import annotations

import hashlib
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scale
from refusal import configure_refused, image_of, member, tar_with

from nativert.errors import Code
from nativert.runtime.node import Node
from nativert.runtime.protocols import DownloadLimits

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
MIB = 1 << 20


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
        thread.join(scale.LONG_S)
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
