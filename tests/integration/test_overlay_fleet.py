"""A fleet whose nodes are joined: an instance moves, and is found at its address and its port."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import scale
from network_hosts import ip
from nodes import CLI, make_document, until

from nativert.fleet import plan
from nativert.fleet.plan import Member
from nativert.isolation.network import named
from nativert.isolation.network.netns import inside
from nativert.runtime.overlay import plan as plans
from nativert.store.durable import Store
from nativert.store.identity import tag_of
from nativert.store.locks import NodeLock, holder
from nativert.store.registry import read_node

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.timeout(300)]

LONG = scale.seconds(100)
# Tells each client as whom it sees it.
SERVER = """
import socket
listener = socket.create_server(("", 80))
while True:
    served, peer = listener.accept()
    with served:
        served.sendall(peer[0].encode())
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as client:
    print(client.recv(100).decode())
"""


def command(root: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    return subprocess.run(
        [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
    )


def ok(root: Path | str, *words: str) -> Any:
    done = command(root, *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Member]]:
    root = tmp_path / "fleet"
    try:
        ok(root, "up", "--nodes", "3", "-d")
        yield plan.read(root).nodes
    finally:
        if plan.there(root):
            removed = command(root, "down")
            assert removed.returncode == 0, removed.stderr


def run(node: Member, directory: Path, **fields: Any) -> str:
    """Run an instance; return its address."""
    page = directory / "page.json"
    page.write_text(json.dumps(make_document(veth=True, **fields)))
    ok(node.root, "run", "-d", str(page))
    return address_of(node, fields["name"])


def address_of(node: Member, name: str) -> str:
    return str(ok(node.root, "inspect", name)["native"]["interfaces"][0]["address"])


@contextmanager
def opened(node: Member) -> Iterator[int]:
    netns = named.open_named(node.netns)
    try:
        yield netns
    finally:
        os.close(netns)


def asked(node: Member, address: str, port: int = 80) -> str:
    """Ask a server from a node itself; return as whom that sees it, "" without an answer."""
    argv = [sys.executable, "-c", CLIENT, address, str(port)]
    with opened(node) as netns:
        done = inside(netns, lambda: subprocess.run(argv, capture_output=True, text=True))
    return done.stdout.strip()


def asked_inside(node: Member, name: str, address: str) -> str:
    argv = ["/usr/bin/python3", "-c", CLIENT, address, "80"]
    return command(node.root, "exec", name, "--", *argv).stdout.strip()


def tag(node: Member) -> str:
    found = read_node(node.paths.lib)
    assert found is not None
    return tag_of(found.id)


def links(node: Member) -> str:
    with opened(node) as netns:
        return ip("-br", "link", netns=netns)


def routes(node: Member) -> str:
    with opened(node) as netns:
        return ip("route", netns=netns)


def agent_of(node: Member) -> int:
    pid = holder(NodeLock(node.paths, "agent").path)
    assert pid is not None
    return pid


def test_an_instance_is_found_wherever_it_has_moved(nodes: list[Member], tmp_path: Path) -> None:
    one, two, three = nodes
    native = {"network": {"ports": ["18080:80"]}}
    web = run(one, tmp_path, name="web", python=SERVER, native=native)
    sleep = "exec sleep 10000"
    sibling = run(one, tmp_path, name="sibling", shell=sleep)
    client = run(three, tmp_path, name="client", shell=sleep)

    def found_from_everywhere(at: Member) -> None:
        until(lambda: asked(at, web) != "", deadline_s=LONG, what="it serves")
        assert asked_inside(one, "sibling", web) == sibling
        assert asked_inside(three, "client", web) == client
        for node in nodes:
            assert asked(node, web) != ""
            # Its port is where it is, and nowhere else.
            assert (asked(node, node.address, 18080) != "") == (node is at)
            assert (asked(node, "127.0.0.1", 18080) != "") == (node is at)

    found_from_everywhere(one)
    for there in (two, three, one, three):
        moved = ok(two.root, "migrate", "web", there.name)
        assert moved["addresses"] == {"eth0": web}
        assert address_of(there, "web") == web
        found_from_everywhere(there)
    # Meanwhile its home gives the address to nobody else, and keeps it for it.
    with Store(one.paths) as store:
        ((lent, _),) = store.lent()
        assert lent == web
    assert run(one, tmp_path, name="other", shell=sleep) != web

    # An agent that dies, and one that comes back, change nothing.
    os.kill(agent_of(three), signal.SIGKILL)
    until(
        lambda: [row["alive"] for row in ok(one.root, "node", "ls")] == [True, True, False],
        deadline_s=LONG,
        what="node-3 is gone",
    )
    for node in (one, two):
        assert asked(node, web) != ""
    os.kill(agent_of(one), signal.SIGKILL)
    environment = os.environ | {"NATIVERT_ROOT": one.directory}
    again = subprocess.Popen([*CLI, "agent"], env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: command(one.root, "node", "ls").returncode == 0, deadline_s=LONG)
        assert asked(one, web) != ""
        assert asked_inside(one, "sibling", web) == sibling

        # What is taken away is put back.
        with opened(two) as netns:
            ip("link", "del", f"nrx-{tag(two)}", netns=netns)
        assert asked(two, web) == ""
        until(lambda: asked(two, web) != "", deadline_s=LONG, what="the tunnel is back")

        # It ends away from home: nothing of it is left there, and its home has its address again.
        alone = command(three.root, "--no-agent", "rm", "--force", "web")
        assert alone.returncode == 0, alone.stderr
        third = subprocess.Popen(
            [*CLI, "agent"],
            env=os.environ | {"NATIVERT_ROOT": three.directory},
            stderr=subprocess.DEVNULL,
        )
        try:
            for node in nodes:
                until(
                    lambda: web not in routes(node),  # noqa: B023
                    deadline_s=LONG,
                    what="its route is gone",
                )
            with Store(one.paths) as store:
                until(lambda: not store.lent(), deadline_s=LONG, what="it is recalled")
        finally:
            third.kill()
            third.wait()
    finally:
        again.kill()
        again.wait()


def test_an_address_is_found_whoever_is_killed_while_it_moves(
    nodes: list[Member], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    chance = random.Random(7)
    web = run(nodes[0], tmp_path, name="web", python=SERVER)
    agents: list[subprocess.Popen[bytes]] = []

    def having() -> list[Member]:
        found = []
        for node in nodes:
            rows = json.loads(command(node.root, "--no-agent", "ps", "-a", "-o", "json").stdout)
            found += [node for row in rows if (row["name"], row["state"]) == ("web", "RUNNING")]
        return found

    try:
        for _ in range(scale.count(5, least=2)):
            (source,) = having()
            target = chance.choice([node for node in nodes if node is not source])
            victim, after_s = chance.choice([source, target]), chance.uniform(0.1, 0.6)
            environment = os.environ | {"NATIVERT_ROOT": source.directory}
            words = [*CLI, "migrate", "web", target.name]
            with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as moving:
                time.sleep(after_s)  # Somewhere on its way; wherever, what follows holds.
                os.kill(agent_of(victim), signal.SIGKILL)
                environment = os.environ | {"NATIVERT_ROOT": victim.directory}
                again = subprocess.Popen(
                    [*CLI, "agent"], env=environment, stderr=subprocess.DEVNULL
                )
                agents.append(again)
                moving.wait(LONG)
            until(
                lambda: len(having()) == 1 and all(asked(node, web) for node in nodes),
                deadline_s=LONG,
                what="it is on one node, and every node finds it",
            )
            assert address_of(having()[0], "web") == web
            tell(f"{victim.name} killed after {after_s:.2f} s: it is on {having()[0].name}")
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_nothing_is_left_of_it(nodes: list[Member], tmp_path: Path) -> None:
    one, two, _ = nodes
    run(one, tmp_path, name="web", python=SERVER)
    # As long as its agent is there, a node stays joined.
    ok(one.root, "rm", "--force", "web")
    kept = ok(one.root, "gc")
    assert [each for each in kept if each["kind"] == "network"] == []
    assert f"nrx-{tag(one)}" in links(one)
    (check,) = [c for c in ok(one.root, "doctor") if c["name"] == "overlay network"]
    assert check["ok"]
    assert check["detail"].endswith("VNI 7447: 2 other nodes")
    # An agent that ends takes it along where no instance is.
    os.kill(agent_of(one), signal.SIGTERM)
    until(lambda: f"nrx-{tag(one)}" not in links(one), deadline_s=LONG, what="the tunnel is gone")
    until(lambda: holder(NodeLock(one.paths, "agent").path) is None, deadline_s=LONG)
    assert plans.read(one.paths.run / "net" / "overlay.json") is None
    ok(one.root, "--no-agent", "gc")
    assert "nrt-" not in links(one)
    # Where one is, it stays for it, and goes with it.
    run(two, tmp_path, name="web", python=SERVER)
    os.kill(agent_of(two), signal.SIGTERM)
    until(lambda: holder(NodeLock(two.paths, "agent").path) is None, deadline_s=LONG)
    assert f"nrx-{tag(two)}" in links(two)
    assert command(two.root, "--no-agent", "rm", "--force", "web").returncode == 0
    ok(two.root, "--no-agent", "gc")
    assert "nrx-" not in links(two)
    assert "nrt-" not in links(two)
