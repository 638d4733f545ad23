"""Files below /data by ls, get and put: by commands, without an agent and with one, and by HTTP."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import Agent, serving
from nodes import make_descriptor, run_inside, start, until_logged

from nativert.errors import Code, NativertError
from nativert.runtime.facade import Facade
from nativert.runtime.node import Node
from nativert.store import moves
from nativert.store.moves import Move, Phase

pytestmark = [pytest.mark.root]

Cli = Callable[..., "subprocess.CompletedProcess[Any]"]
SLEEP = "sleep 100000"


@pytest.fixture(params=["alone", "agent"])
def served(request: pytest.FixtureRequest, root: Path, node: Node) -> Iterator[Agent | None]:
    if request.param == "alone":
        yield None
        return
    with serving(root) as agent:
        yield agent
        assert "fault" not in agent.log.read_text()


@pytest.fixture
def facade(served: Agent | None, node: Node) -> Iterator[Facade]:
    if served is None:
        yield node
        return
    with served.client() as client:
        yield client


def data_of(node: Node, ref: str) -> Path:
    return node.paths.instance_lib(node.get(ref).instance) / "data"


def assert_nothing_waits(node: Node, directory: Path) -> None:
    """Nothing but whole files: no temporary name where they are received or put."""
    assert [path for path in directory.rglob("*") if path.name.startswith(".put-")] == []
    assert [path for path in (node.paths.lib / "i").iterdir() if "put-" in path.name] == []


def test_what_is_put_before_the_first_configure_is_the_applications(
    served: Agent | None, node: Node, cli: Cli, tmp_path: Path
) -> None:
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\nid -u\ncat /data/word\n")
    program.chmod(0o4755)
    node.define(make_descriptor(name="app", binary="/data/hello"))
    assert cli("ls", "app", "-o", "json").stdout == "[]\n"
    assert cli("put", "app", str(program), "hello").stdout == "hello: 31 B\n"
    placed = cli("put", "app", "-", "/data/word", "-o", "json", input="sesame\n")
    assert json.loads(placed.stdout).items() >= {"name": "word", "kind": "file"}.items()
    assert cli("get", "app", "word").stdout == "sesame\n"
    found = json.loads(cli("ls", "app", "-o", "json").stdout)
    assert [list(one) for one in found] == [
        ["name", "kind", "size_bytes", "mode", "modified_at"]
    ] * 2
    assert [(one["name"], one["mode"]) for one in found] == [("hello", "0755"), ("word", "0644")]
    for command in ("configure", "start", "wait"):
        assert cli(command, "app").returncode == 0
    assert cli("logs", "app").stdout == "1000\nsesame\n"
    assert_nothing_waits(node, data_of(node, "app"))


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "CONFIGURED", "DEFINED"])
def test_files_are_reached_in_every_state(facade: Facade, node: Node, state: str) -> None:
    start(node, name="app", shell=f"mkdir d; echo old > d/file; echo ready; exec {SLEEP}")
    until_logged(node, "app", "ready")
    for step in {
        "RUNNING": (),
        "PAUSED": (node.pause,),
        "CONFIGURED": (node.stop,),
        "DEFINED": (node.stop, node.clean),
    }[state]:
        step("app")
    assert [entry.name for entry in facade.ls("app", "d")] == ["file"]
    assert b"".join(facade.read_file("app", "/data/d/file")) == b"old\n"
    placed = facade.write_file("app", "d/file", [b"n", b"", b"ew\n"], mode=0o640)
    assert (placed.size_bytes, placed.mode) == (4, "0640")
    assert b"".join(facade.read_file("app", "d/file")) == b"new\n"
    assert node.get("app").state == state
    path = data_of(node, "app") / "d/file"
    assert path.stat().st_uid == path.parent.parent.stat().st_uid >= 65536
    if state == "RUNNING":
        assert run_inside(node, "app", "sh", "-c", "echo more >> d/file; cat d/file") == (
            0,
            "new\nmore\n",
        )


def test_what_is_wrong_is_said_with_its_exit_code(
    served: Agent | None, node: Node, cli: Cli, tmp_path: Path
) -> None:
    start(node, name="app", shell=f"mkdir d; ln -s /etc l; echo ready; exec {SLEEP}")
    until_logged(node, "app", "ready")
    source, kept = tmp_path / "source", tmp_path / "kept"
    source.write_text("content")
    kept.write_text("as it was")
    for arguments, code, word in (
        (("ls", "nobody"), 3, "not-found"),
        (("get", "app", "none", str(kept)), 3, "not-found"),
        (("put", "app", str(source), "none/x"), 3, "not-found"),
        (("get", "app", "l/passwd"), 2, "usage"),
        (("put", "app", str(source), "../x"), 2, "usage"),
        (("get", "app", b"\xff"), 2, "usage"),
    ):
        done = cli(*arguments, "-o", "json")
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert json.loads(done.stderr)["error"]["code"] == word
    assert kept.read_text() == "as it was"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_nothing_but_files_below_data_is_reached(facade: Facade, node: Node) -> None:
    start(node, name="app", shell=f"mkdir d; ln -s /etc l; mkfifo p; echo ready; exec {SLEEP}")
    until_logged(node, "app", "ready")

    def refused(attempt: Callable[[], object]) -> Code:
        with pytest.raises(NativertError) as error:
            attempt()
        return error.value.code

    def get(ref: str, path: str) -> Code:
        return refused(lambda: list(facade.read_file(ref, path)))

    def put(ref: str, path: str) -> Code:
        return refused(lambda: facade.write_file(ref, path, [b"content"]))

    def ls(ref: str, path: str) -> Code:
        return refused(lambda: list(facade.ls(ref, path)))

    for ask in (get, put, ls):
        assert ask("nobody", "x") is Code.NOT_FOUND
        for path in ("../log/current", "/data/../x", "l/passwd", "p\0"):
            assert ask("app", path) is Code.USAGE, (ask, path)
        assert ask("app", "none/x") is Code.NOT_FOUND
        assert ask("app", "p/x") is Code.NOT_FOUND
    for path in ("", "/data", "d", "p", "l"):
        assert get("app", path) is Code.USAGE
    for path in ("", "/data", "d", "new/"):
        assert put("app", path) is Code.USAGE
    assert ls("app", "l") is Code.USAGE
    assert sorted(entry.name for entry in node.ls("app")) == ["d", "l", "p"]
    assert not Path("/etc/x").exists()


def test_a_link_is_shown_and_replaced_but_never_followed(facade: Facade, node: Node) -> None:
    shell = f"ln -s /etc/hostname link; ln link hard; echo ready; exec {SLEEP}"
    start(node, name="app", shell=shell)
    until_logged(node, "app", "ready")
    before = Path("/etc/hostname").read_bytes()
    assert {(e.name, e.kind) for e in facade.ls("app")} == {("link", "link"), ("hard", "link")}
    facade.write_file("app", "link", [b"mine"])
    assert {(e.name, e.kind) for e in facade.ls("app")} == {("link", "file"), ("hard", "link")}
    assert Path("/etc/hostname").read_bytes() == before


def test_an_application_that_swaps_directories_leads_nobody_out(
    facade: Facade, node: Node, tmp_path: Path
) -> None:
    """A directory becomes a link to the host's, and back, while files are put and read."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o777)
    (victim / "file").write_text("the host's")
    swapping = (
        "mkdir d; echo mine > d/file; echo ready\n"
        f"while :; do mv d e; ln -s {victim} d; rm d; mv e d; done"
    )
    start(node, name="app", shell=swapping)
    until_logged(node, "app", "ready")
    codes = set()
    for number in range(scale.count(200, least=20)):
        for attempt in (
            lambda: facade.write_file("app", "d/put", [b"x" * number]),  # noqa: B023
            lambda: b"".join(facade.read_file("app", "d/file")) == b"mine\n" or 1 / 0,
        ):
            try:
                attempt()
            except NativertError as e:
                codes.add(e.code)
    assert codes <= {Code.NOT_FOUND, Code.USAGE}
    assert [path.name for path in victim.iterdir()] == ["file"]
    node.stop("app")
    assert_nothing_waits(node, data_of(node, "app"))


def test_a_large_file_is_never_held_as_a_whole(
    served: Agent | None, facade: Facade, node: Node, tmp_path: Path
) -> None:
    start(node, name="app", shell=SLEEP)
    size = scale.count(192, least=64) << 20
    pid = os.getpid() if served is None else served.process.pid
    facade.write_file("app", "small", [bytes(1 << 20)])
    b"".join(facade.read_file("app", "small"))
    before = _peak_bytes(pid)
    sent, block = hashlib.sha256(), os.urandom(1 << 20)

    def pieces() -> Iterator[bytes]:
        for _ in range(size >> 20):
            sent.update(block)
            yield block

    assert facade.write_file("app", "large", pieces()).size_bytes == size
    came = hashlib.sha256()
    for piece in facade.read_file("app", "large"):
        came.update(piece)
    assert came.digest() == sent.digest()
    assert _peak_bytes(pid) - before < 32 << 20


def _peak_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(x.split()[1]) << 10 for x in text.splitlines() if x.startswith("VmHWM"))


def test_a_directory_of_thousands_is_told_line_by_line(facade: Facade, node: Node) -> None:
    shell = f"mkdir d; cd d; seq 3000 | xargs touch -- 'a\nb'; echo ready; exec {SLEEP}"
    start(node, name="app", shell=shell)
    until_logged(node, "app", "ready")
    assert sorted(entry.name for entry in facade.ls("app", "d")) == sorted(
        ["a\nb", *map(str, range(1, 3001))]
    )
    (data_of(node, "app") / "d" / os.fsdecode(b"\xff")).touch()
    assert "\\xff" in {entry.name for entry in facade.ls("app", "d")}


def test_a_put_that_breaks_off_leaves_the_old_file(facade: Facade, node: Node) -> None:
    start(node, name="app", shell=SLEEP)
    facade.write_file("app", "file", [b"old"])

    def breaks() -> Iterator[bytes]:
        yield b"new" * 100_000
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source"):
        facade.write_file("app", "file", breaks())
    with pytest.raises(RuntimeError, match="the source"):
        facade.write_file("app", "other", breaks())
    assert [entry.name for entry in facade.ls("app")] == ["file"]
    assert b"".join(facade.read_file("app", "file")) == b"old"
    assert_nothing_waits(node, data_of(node, "app"))


@pytest.mark.parametrize(
    "head", ["Content-Length: 1000000", "Transfer-Encoding: chunked"], ids=["length", "chunked"]
)
def test_half_a_request_puts_nothing(root: Path, node: Node, head: str) -> None:
    start(node, name="app", shell=SLEEP)
    with serving(root) as agent:
        sock = agent.connect()
        sock.sendall(
            f"PUT /v1/instances/app/file?path=x HTTP/1.1\r\nHost: n\r\n{head}\r\n\r\n".encode()
        )
        sock.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        sock.close()
        # A whole one comes after it, so that it had its time.
        assert agent.ask("PUT", "/v1/instances/app/file?path=y&mode=0600", b"whole")[0] == 200
        agent.end()
    assert [(e.name, e.mode) for e in node.ls("app")] == [("y", "0600")]
    assert_nothing_waits(node, data_of(node, "app"))


def test_a_body_that_stands_still_is_given_up(root: Path, node: Node) -> None:
    start(node, name="app", shell=SLEEP)
    with serving(root, config="[api]\nclient_timeout_s = 0.5\n") as agent:
        sock = agent.connect()
        head = "PUT /v1/instances/app/file?path=x HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\n\r\n1"
        sock.sendall(head.encode())
        assert b" 504 " in sock.recv(65536).split(b"\r\n")[0]
        sock.close()
    assert list(node.ls("app")) == []


def test_a_file_system_without_nameless_files(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    start(node, name="app", shell=SLEEP)
    real, asked = os.open, []

    def without(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            asked.append(path)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", without)
    node.write_file("app", "file", [b"content"], mode=0o7777)
    with pytest.raises(NativertError, match="directory"):
        node.write_file("app", "none/file", [b"content"])
    assert len(asked) == 1
    path = data_of(node, "app") / "file"
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert_nothing_waits(node, path.parent)


def test_nothing_is_put_into_what_is_on_its_way(node: Node) -> None:
    uuid = start(node, name="app", shell=SLEEP)

    def moves_meanwhile() -> Iterator[bytes]:
        yield b"content"
        move = Move(epoch=1, phase=Phase.PREPARING, peer="elsewhere")
        node.context.store.update(uuid, moving=moves.encode(move))

    for pieces in (moves_meanwhile(), [b"content"]):
        with pytest.raises(NativertError) as refused:
            node.write_file("app", "file", pieces)
        assert refused.value.code is Code.TRANSITION
    node.context.store.update(uuid, moving=None)
    assert list(node.ls("app")) == []
    assert_nothing_waits(node, data_of(node, "app"))


def test_what_is_undefined_meanwhile_leaves_nothing(node: Node) -> None:
    uuid = node.define(make_descriptor(name="app", shell=SLEEP)).instance

    def undefined_meanwhile() -> Iterator[bytes]:
        yield b"content"
        node.undefine(uuid)

    with pytest.raises(NativertError) as refused:
        node.write_file("app", "file", undefined_meanwhile())
    assert refused.value.code is Code.NOT_FOUND
    assert not node.paths.instance_lib(uuid).exists()
    assert list((node.paths.lib / "i").iterdir()) == []
