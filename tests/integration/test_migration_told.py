"""An application is told that it is to move: by a program, a signal, or a line on a socket."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from movers import APP, QUICK, Pair, Wire, read
from nodes import make_descriptor, run_inside, start, until

from nativert.errors import Code, NativertError
from nativert.runtime import failpoints
from nativert.runtime.migration.source import Mover
from nativert.runtime.node import Node
from nativert.store.moves import Phase

pytestmark = [pytest.mark.root, pytest.mark.netns]

TOLD = "trap 'echo dumped > /data/dump; exit 0' USR2; echo up; while :; do sleep 0.05; done"


def test_the_application_is_told_before_by_a_program(pair: Pair) -> None:
    told = ["/bin/sh", "-c", "test -e /data/may && echo dumped > /data/dump"]
    uuid = start(pair.here, name="mover", shell=APP, native={"migration": {"exec": told}})
    pid = pair.here.get(uuid).pid
    with pytest.raises(NativertError, match="it is not ready to be moved: exit code 1"):
        pair.move(uuid)
    assert pair.here.get(uuid).pid == pid
    assert pair.there.list() == []
    assert run_inside(pair.here, uuid, "touch", "/data/may")[0] == 0
    pair.move(uuid)
    assert read(pair.there, uuid, "dump") == "dumped\n"


def test_who_does_not_get_ready_in_time_stays(pair: Pair) -> None:
    native = {"migration": {"exec": ["/bin/sleep", "100"], "timeout": "200ms"}}
    uuid = start(pair.here, name="mover", shell=APP, native=native)
    pid = pair.here.get(uuid).pid
    with pytest.raises(NativertError, match=r"no end after 0\.2 s"):
        pair.move(uuid)
    assert pair.here.get(uuid).pid == pid
    assert pair.there.list() == []


def test_the_application_is_told_before_by_a_signal(pair: Pair) -> None:
    native = {"migration": {"signal": "USR2"}}
    uuid = start(pair.here, name="mover", shell=TOLD, native=native)
    until(lambda: b"up" in b"".join(line.text for line in pair.here.logs(uuid)), what="up")
    pair.move(uuid)
    assert read(pair.there, uuid, "dump") == "dumped\n"
    assert pair.there.get(uuid).state == "RUNNING"


# Says what stands in /data/answer, notes what it is told, and dumps before it says "ready".
LISTENER = """
import os, signal, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["NATIVERT_MIGRATION_SOCKET"])
listener.listen()
print("up", flush=True)
while True:
    node, _ = listener.accept()
    for line in node.makefile():
        with open("/data/told", "a") as told:
            told.write(line)
        if line == "prepare\\n":
            answer = open("/data/answer").read()
            if answer == "ready":
                open("/data/dump", "w").write("dumped")
            node.sendall(f"{answer}\\n".encode())
    with open("/data/told", "a") as told:
        told.write("end\\n")
"""
ON_SOCKET: dict[str, Any] = {"migration": {"socket": "/run/migration.sock", "timeout": "20s"}}


def listening(node: Node, answer: str, native: dict[str, Any] = ON_SOCKET) -> str:
    uuid = node.define(make_descriptor(name="mover", python=LISTENER, native=native)).instance
    node.configure(uuid)
    (node.paths.instance_lib(uuid) / "data/answer").write_text(answer)
    node.run(uuid)
    return uuid


def test_the_application_is_told_before_by_a_line_on_its_socket(pair: Pair) -> None:
    uuid = listening(pair.here, "ready")
    for back in (False, True):
        pair.move(uuid, back=back)
        at = pair.here if back else pair.there
        assert at.get(uuid).state == "RUNNING"
        assert read(at, uuid, "dump") == "dumped"
    # It was stopped on that connection both times: nobody told it to go on.
    assert read(pair.here, uuid, "told") == "prepare\n" * 2


def test_who_says_on_its_socket_that_it_is_busy_stays_and_is_told_so(pair: Pair) -> None:
    uuid = listening(pair.here, "not now")
    pid = pair.here.get(uuid).pid
    with pytest.raises(NativertError, match=r"migration\.sock: says 'not now'") as refused:
        pair.move(uuid)
    assert refused.value.code is Code.MIGRATE
    assert (pair.here.get(uuid).state, pair.here.get(uuid).pid) == ("RUNNING", pid)
    assert pair.there.list() == []
    until(lambda: read(pair.here, uuid, "told") == "prepare\nresume\nend\n", what="that it goes on")


def test_an_application_that_was_ready_is_told_that_it_stays_after_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nativert.runtime.migration import settling

    uuid = listening(pair.here, "ready")
    pid = pair.here.get(uuid).pid
    enter = settling.enter

    def full(context: Any, row: Any, phase: Phase) -> Any:
        if phase is Phase.TAKE_OFF:
            raise NativertError("the disk is full", code=Code.STORE)
        return enter(context, row, phase)

    with monkeypatch.context() as patch:
        patch.setattr(settling, "enter", full)
        with pytest.raises(NativertError, match="the disk is full"):
            pair.move(uuid)
    assert pair.here.get(uuid).pid == pid
    until(lambda: read(pair.here, uuid, "told") == "prepare\nresume\nend\n", what="that it goes on")
    pair.move(uuid)
    assert pair.there.get(uuid).state == "RUNNING"


def test_whose_node_dies_while_it_is_told_sees_the_end_of_the_connection(pair: Pair) -> None:
    uuid = listening(pair.here, "ready")
    pid = pair.here.get(uuid).pid
    roots = [node.paths.root or Path("/") for node in (pair.here, pair.there)]

    def die() -> None:
        failpoints.arm("migrate.stopping=kill")
        Mover(Node(roots[0]), Wire(*roots), patience=QUICK).migrate(uuid, pair.ids[pair.there])

    killed = os.fork()
    if killed == 0:
        try:
            die()
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL
    until(lambda: read(pair.here, uuid, "told") == "prepare\nend\n", what="that it goes on")
    assert (pair.here.get(uuid).state, pair.here.get(uuid).pid) == ("RUNNING", pid)


def test_who_does_not_listen_on_its_socket_stays(pair: Pair) -> None:
    native = {"migration": {"socket": "/run/migration.sock", "timeout": "300ms"}}
    uuid = start(pair.here, name="mover", shell=APP, native=native)
    pid = pair.here.get(uuid).pid
    with pytest.raises(NativertError, match=r"migration\.sock: takes no connection within 0\.3 s"):
        pair.move(uuid)
    assert pair.here.get(uuid).pid == pid
    assert pair.there.list() == []


def test_a_socket_of_the_host_that_is_shown_inside_is_not_spoken_to(
    pair: Pair, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shown / "host.sock"))
        listener.listen()
        native = {
            "mounts": [{"source": str(shown), "target": "/shown"}],
            "migration": {"socket": "/shown/host.sock"},
        }
        uuid = start(pair.here, name="mover", shell=APP, native=native)
        with pytest.raises(NativertError, match="who listens there is not the application"):
            pair.move(uuid)
        assert pair.here.get(uuid).state == "RUNNING"
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(100) == b""
