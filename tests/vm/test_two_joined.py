"""Two machines joined by an overlay: `scripts/vm-test --nodes 2` runs this on both at once."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import serving
from nodes import CLI, PYTHON, make_document, remove_node, until
from test_two_nodes import DEADLINE_S, OWN, PEER, Meeting, fetch, peer_name

from nativert.runtime.node import Node

pytestmark = [pytest.mark.vm, pytest.mark.peer]

FIRST = OWN < PEER
PORT = 22090
SERVE = f"echo moved >index.html; exec {PYTHON} -m http.server --bind 0.0.0.0 80"
ROUNDS = 3


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.lines.close()
    meeting.line.close()


@pytest.fixture
def root(tmp_path: Path, meeting: Meeting) -> Iterator[Path]:
    """A node whose agent knows the other machine's."""
    root = tmp_path / "node"
    etc = root / "etc/nativert"
    etc.mkdir(parents=True)
    (etc / "config.toml").write_text(
        f'[zenoh]\nlisten = ["tcp/{OWN}:7447"]\nconnect = ["tcp/{PEER}:7447"]\ninsecure = true\n'
    )
    with Node(root):
        pass
    with serving(root):
        until(
            lambda: [row["alive"] for row in ok(root, "node", "ls")] == [True, True],
            deadline_s=DEADLINE_S,
            what="both know each other",
        )
        meeting.at("known")
        yield root
        meeting.at("done")
        for row in ok(root, "ps", "-a"):
            ok(root, "rm", "--force", row["instance"])
    remove_node(root)


def ok(root: Path, *words: str) -> Any:
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    done = subprocess.run(
        [*CLI, *words, "-o", "json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def served(address: str, path: str = "/index.html") -> bytes:
    connection = http.client.HTTPConnection(address, 80, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except OSError:
        return b""
    finally:
        connection.close()


@pytest.mark.timeout(scale.seconds(300))
def test_an_instance_moves_between_machines_with_its_address(
    root: Path, meeting: Meeting, tmp_path: Path
) -> None:
    if FIRST:
        page = tmp_path / "web.json"
        native = {"network": {"ports": [f"{PORT}:80"]}}
        page.write_text(
            json.dumps(make_document(name="web", shell=SERVE, veth=True, native=native))
        )
        ok(root, "run", "-d", str(page))
    meeting.at("started")
    web = ok(root, "inspect", "web")["native"]["interfaces"][0]["address"]
    for turn in range(ROUNDS):
        here = (turn % 2 == 0) == FIRST
        until(lambda: served(web) == b"moved\n", deadline_s=DEADLINE_S, what="it is found")
        # More than a frame, through a tunnel with less room than the network.
        assert len(served(web, "/" + "x" * 4000)) > 0
        assert fetch(OWN if here else PEER, PORT) == "moved"
        meeting.at(f"found {turn}")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((PEER if here else OWN, PORT), timeout=DEADLINE_S)
        meeting.at(f"seen {turn}")
        if here:
            told = ok(root, "migrate", "web", peer_name())
            assert told["addresses"] == {"eth0": web}
        meeting.at(f"moved {turn}")
