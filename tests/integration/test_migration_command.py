"""`nativert migrate` between two agents over Zenoh, and fog05's own migrate."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import serving
from fog05_clients import FIMAPI, client, config, descriptor, free_port, in_time
from nodes import CLI, MakeNode, address, make_descriptor, make_document, start, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

APP = "echo run >> /data/runs; echo up; exec sleep 1000"
LONG = scale.LONG_S
EXAMPLE = Path(__file__).parents[2] / "examples/migration.yaml"


class Two:
    """Two nodes whose agents know each other."""

    def __init__(self, tmp_path: Path, make_node: MakeNode, stack: ExitStack) -> None:
        self.ports = (free_port(), free_port())
        self.roots = (tmp_path / "a" / "node", tmp_path / "b" / "node")
        for root in self.roots:
            root.parent.mkdir()
        self.nodes: list[Node] = [make_node(root) for root in self.roots]
        self.ids = [node.identity.id for node in self.nodes]
        self._stack = stack
        for number in (0, 1):
            own, other = self.ports[number], self.ports[1 - number]
            stack.enter_context(serving(self.roots[number], config=config(own, other)))

    def api(self) -> FIMAPI:
        return self.api_of(0)

    def api_of(self, number: int) -> FIMAPI:
        return self._stack.enter_context(client(self.ports[number]))

    def command(self, number: int, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NATIVERT_ROOT": str(self.roots[number])}
        return subprocess.run(
            [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
        )


@pytest.fixture
def two(tmp_path: Path, make_node: MakeNode) -> Iterator[Two]:
    with ExitStack() as stack:
        yield Two(tmp_path, make_node, stack)


def met(two: Two) -> Callable[[], bool]:
    api = two.api()
    return lambda: sorted(in_time(api.node.list)) == sorted(two.ids)


def runs(node: Node, uuid: str) -> str:
    return node.read(uuid, "runs", limit=1000).decode()


def test_the_command_moves_an_instance_there_and_back(two: Two) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    uuid = start(two.nodes[0], name="mover", shell=APP, veth=True)
    moved = two.command(0, "migrate", "mover", two.ids[1], "-o", "json")
    assert moved.returncode == 0, moved.stderr
    told: dict[str, Any] = json.loads(moved.stdout)
    assert {"instance": uuid, "name": "mover", "state": "RUNNING"}.items() <= told.items()
    assert told["addresses"]["eth0"]
    assert two.nodes[0].list() == []
    assert two.nodes[1].get(uuid).state == "RUNNING"
    until(lambda: runs(two.nodes[1], uuid) == "run\n" * 2, what="the second run")
    back = two.command(1, "migrate", "mover", two.ids[0])
    assert back.returncode == 0, back.stderr
    assert back.stdout.startswith("mover RUNNING on ")
    assert two.nodes[0].get(uuid).state == "RUNNING"
    assert two.nodes[1].list() == []


def test_who_is_looked_after_here_is_looked_after_there(two: Two, tmp_path: Path) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    native = {"restart": {"policy": "always", "backoff": "100ms"}}
    page = tmp_path / "app.json"
    page.write_text(json.dumps(make_document(name="mover", shell=APP, native=native)))
    ran = two.command(0, "run", "-d", str(page))
    assert ran.returncode == 0, ran.stderr
    uuid = ran.stdout.strip()
    moved = two.command(0, "migrate", uuid, two.ids[1])
    assert moved.returncode == 0, moved.stderr
    before = two.nodes[1].get(uuid)
    assert (before.state, before.restarts) == ("RUNNING", 0)
    assert two.command(1, "kill", "mover").returncode == 0
    until(lambda: two.nodes[1].get(uuid).restarts == 1, deadline_s=LONG, what="a restart")
    assert two.nodes[0].list() == []
    until(lambda: runs(two.nodes[1], uuid) == "run\n" * 3, what="the third run")


def numbers(node: Node, uuid: str) -> list[int]:
    return [int(line.text) for line in node.logs(uuid)]


@pytest.mark.apps
def test_the_example_counts_on_where_it_was_told_to_stop(two: Two) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    ran = two.command(0, "run", "-d", str(EXAMPLE))
    assert ran.returncode == 0, ran.stderr
    uuid = ran.stdout.strip()
    until(lambda: len(numbers(two.nodes[0], uuid)) >= 2, deadline_s=LONG, what="two numbers")
    counted = numbers(two.nodes[0], uuid)
    assert counted == list(range(1, len(counted) + 1))
    moved = two.command(0, "migrate", "counter", two.ids[1])
    assert moved.returncode == 0, moved.stderr
    until(lambda: len(numbers(two.nodes[1], uuid)) >= 2, deadline_s=LONG, what="two more")
    left = int(two.nodes[1].read(uuid, "count", limit=100))
    assert left >= counted[-1]
    assert numbers(two.nodes[1], uuid)[:2] == [left + 1, left + 2]


def test_what_cannot_be_moved_is_refused_and_stays(two: Two) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    uuid = start(two.nodes[0], name="mover", shell=APP)
    pid = two.nodes[0].get(uuid).pid
    for where, code, text in (
        ("elsewhere", 3, "no such node is there"),
        (two.ids[0], 1, "it is on that node"),
    ):
        refused = two.command(0, "migrate", "mover", where)
        assert refused.returncode == code, refused.stderr
        assert text in refused.stderr
    two.nodes[1].define(make_descriptor(name="mover", shell=APP))
    refused = two.command(0, "migrate", "mover", two.ids[1])
    assert refused.returncode == 1
    assert "the name mover is taken" in refused.stderr
    assert two.nodes[0].get(uuid).pid == pid


def test_without_an_agent_nothing_is_moved(
    cli: Callable[..., subprocess.CompletedProcess[str]], node: Node
) -> None:
    start(node, name="mover", shell=APP)
    refused = cli("migrate", "mover", "elsewhere")
    assert refused.returncode == 5
    assert "nobody here reaches other nodes" in refused.stderr


def test_who_is_on_a_virtual_network_is_on_it_there_with_the_same_address(two: Two) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    api, net = two.api(), str(uuid.uuid4())
    configuration = {"ip_version": "IPV4", "subnet": "192.168.9.0/24"}
    told = {"uuid": net, "name": "cell", "net_type": "ELAN", "ip_configuration": configuration}
    in_time(lambda: api.network.add_network(told))
    until(
        lambda: any(each["uuid"] == net for each in in_time(two.api_of(1).network.list)),
        deadline_s=LONG,
        what="the network is in both catalogs",
    )
    points = [{"id": "cp0", "name": "cp0", "vld_ref": net}]
    faces = [{"name": "eth0", "cp_id": "cp0"}]
    document = descriptor(name="mover", shell=APP, connection_points=points, interfaces=faces)
    fdu = in_time(lambda: api.fdu.onboard(document)).get_uuid()
    instance = in_time(lambda: api.fdu.define(fdu, two.ids[0])).get_uuid()
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.start(instance))
    before = address(two.nodes[0], instance)
    assert before.startswith("192.168.9.")
    in_time(lambda: api.fdu.migrate(instance, two.ids[1]))
    assert address(two.nodes[1], instance) == before
    (point,) = two.nodes[1].inspect(instance)["connection_points"]  # type: ignore[misc]
    assert point["status"] == "CONNECTED"


def test_fog05s_own_client_moves_an_fdu(two: Two) -> None:
    until(met(two), deadline_s=LONG, what="both nodes are seen")
    api = two.api()
    fdu = in_time(lambda: api.fdu.onboard(descriptor(name="mover", shell=APP)))
    instance = in_time(lambda: api.fdu.define(fdu.get_uuid(), two.ids[0])).get_uuid()
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.start(instance))
    in_time(lambda: api.fdu.migrate(instance, two.ids[1]))
    assert two.nodes[1].get(instance).state == "RUNNING"
    until(lambda: two.nodes[0].list() == [], what="nothing is left at the source")
    until(
        lambda: in_time(lambda: api.fdu.instance_list(fdu.get_uuid())) == {two.ids[1]: [instance]},
        deadline_s=LONG,
        what="one record",
    )
    until(lambda: in_time(lambda: api.fdu.log(instance)) == "up\n", what="log")
    in_time(lambda: api.fdu.terminate(instance))
    until(lambda: two.nodes[1].list() == [], deadline_s=LONG, what="gone")
