"""Two nodes on one network: `scripts/vm-test --nodes 2` runs this on both at the same time."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
import scale
from nodes import PYTHON, make_descriptor, remove_node, run_inside, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.vm, pytest.mark.peer]

PEER = os.environ.get("NATIVERT_PEER", "")
OWN = os.environ.get("VM_TEST_ADDRESS", "")
MEETING_PORT = 7700
DEADLINE_S = scale.seconds(10)
# What an instance answers: the name of the host on which it runs.
SERVE = f"echo $NODE >index.html; exec {PYTHON} -m http.server --bind 0.0.0.0 80"
FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read().decode().strip())
"""


class Meeting:
    """A line to the other node's tests: each waits for the other."""

    def __init__(self) -> None:
        if OWN < PEER:
            with socket.create_server(("", MEETING_PORT)) as server:
                server.settimeout(DEADLINE_S)
                self.line, _ = server.accept()
        else:
            self.line = until(self._connect, deadline_s=DEADLINE_S, what="the other node's tests")
        self.line.settimeout(DEADLINE_S)
        # Not one for both ways: a write would drop what has been read ahead.
        self.lines = self.line.makefile("r")

    def _connect(self) -> socket.socket | None:
        try:
            return socket.create_connection((PEER, MEETING_PORT), timeout=DEADLINE_S)
        except OSError:
            return None

    def at(self, word: str) -> None:
        """Return when the other node's tests are at *word* too."""
        self.line.sendall(f"{word}\n".encode())
        assert self.lines.readline().strip() == word


@pytest.fixture(scope="module")
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.lines.close()
    meeting.line.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, meeting: Meeting) -> Iterator[Node]:
    """A node with an instance that publishes its host's name on 22080, and on 127.0.0.1:22081."""
    root = tmp_path_factory.mktemp("node")
    ports = ["22080:80/tcp", "127.0.0.1:22081:80/tcp"]
    with Node(root) as node:
        node.define(
            make_descriptor(
                name="web",
                shell=SERVE,
                veth=True,
                native={"network": {"ports": ports}, "env": {"NODE": socket.gethostname()}},
            )
        )
        node.configure("web")
        node.run("web")
        until(lambda: fetch("127.0.0.1", 22080), what="the own instance answers")
        meeting.at("served")
        yield node
        meeting.at("done")
    remove_node(root)


def fetch(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/index.html")
        return connection.getresponse().read().decode().strip()
    except OSError:
        return ""
    finally:
        connection.close()


def peer_name() -> str:
    return {"node-a": "node-b", "node-b": "node-a"}[socket.gethostname()]


def test_the_hosts_ping_each_other() -> None:
    subprocess.run(["ping", "-c", "1", "-W", str(int(DEADLINE_S)), PEER], check=True)


def test_an_instance_pings_the_other_host(node: Node) -> None:
    code, output = run_inside(node, "web", "/bin/ping", "-c", "1", "-W", str(int(DEADLINE_S)), PEER)
    assert code == 0, output


def test_the_other_nodes_published_port_is_reached(node: Node) -> None:
    assert fetch(PEER, 22080) == peer_name()


def test_an_instance_reaches_the_other_nodes_published_port(node: Node) -> None:
    url = f"http://{PEER}:22080/index.html"
    code, output = run_inside(node, "web", PYTHON, "-c", FETCH, url, str(DEADLINE_S))
    assert (code, output.strip()) == (0, peer_name())


def test_a_port_of_127_0_0_1_is_not_reached_from_the_other_node(node: Node) -> None:
    assert fetch("127.0.0.1", 22081) == socket.gethostname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((PEER, 22081), timeout=DEADLINE_S)


def test_the_other_nodes_port_goes_with_its_instance(node: Node, meeting: Meeting) -> None:
    meeting.at("before clean")
    node.stop("web")
    node.clean("web")
    meeting.at("cleaned")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((PEER, 22080), timeout=DEADLINE_S)
    meeting.at("seen")
