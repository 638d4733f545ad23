"""The unmodified FIMAPI against two agents that know each other; one of them dies and returns."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import scale
from agents import Agent, serving
from fog05_clients import FIMAPI, client, config, descriptor, free_port, in_time
from nodes import MakeNode, until

from nativert.errors import NativertError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "echo here; sleep 1000"
LONG = scale.LONG_S


class Pair:
    """Two nodes with their agents, and a client at the first one."""

    def __init__(self, tmp_path: Path, make_node: MakeNode) -> None:
        self.ports = [free_port(), free_port()]
        self.roots = [tmp_path / "a" / "node", tmp_path / "b" / "node"]
        for root in self.roots:
            root.parent.mkdir()
        self.nodes: list[Node] = [make_node(root) for root in self.roots]
        self.ids = [node.identity.id for node in self.nodes]
        self.stack = ExitStack()
        self.agents = [self.serve(0), self.serve(1)]

    def serve(self, number: int) -> Agent:
        own, other = self.ports[number], self.ports[1 - number]
        return self.stack.enter_context(serving(self.roots[number], config=config(own, other)))

    def api(self, number: int = 0) -> FIMAPI:
        return self.stack.enter_context(client(self.ports[number]))


@pytest.fixture
def pair(tmp_path: Path, make_node: MakeNode) -> Iterator[Pair]:
    one = Pair(tmp_path, make_node)
    with one.stack:
        yield one


def sees(api: FIMAPI, *ids: str) -> Callable[[], bool]:
    return lambda: sorted(in_time(api.node.list)) == sorted(ids)


def test_an_fdu_is_defined_and_run_on_either_node(pair: Pair) -> None:
    api = pair.api()
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    fdu = in_time(lambda: api.fdu.onboard(descriptor(name="both", shell=SLEEP)))
    found = {}
    for number, node in enumerate(pair.nodes):
        until(
            lambda: in_time(lambda: pair.api(number).fdu.list()) == [fdu.get_uuid()],  # noqa: B023
            deadline_s=LONG,
            what="the catalog is everywhere",
        )
        record = in_time(lambda: api.fdu.define(fdu.get_uuid(), pair.ids[number]))  # noqa: B023
        instance = found[pair.ids[number]] = record.get_uuid()
        in_time(lambda: api.fdu.configure(instance))  # noqa: B023
        in_time(lambda: api.fdu.start(instance))  # noqa: B023
        assert node.get(instance).state == "RUNNING"
        until(lambda: in_time(lambda: api.fdu.log(instance)) == "here\n", what="log")  # noqa: B023
    listed = in_time(lambda: api.fdu.instance_list(fdu.get_uuid()))
    assert listed == {node: [instance] for node, instance in found.items()}
    assert sorted(in_time(lambda: api.fdu.get_nodes(fdu.get_uuid()))) == sorted(pair.ids)
    for instance in found.values():
        in_time(lambda: api.fdu.terminate(instance))  # noqa: B023
    until(lambda: not any(node.list() for node in pair.nodes), deadline_s=LONG, what="gone")


def test_a_client_at_one_node_has_the_whole_life_of_an_instance_at_the_other(pair: Pair) -> None:
    api, there = pair.api(), pair.nodes[1]
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    shell = 'echo "$WORD"; echo kept > /data/kept; [ -z "$STAY" ] || sleep 1000; exit 7'
    fdu = in_time(lambda: api.fdu.onboard(descriptor(name="far", shell=shell))).get_uuid()
    until(lambda: pair.api(1).fdu.list() == [fdu], deadline_s=LONG, what="the catalog is there")
    instance = in_time(lambda: api.fdu.define(fdu, pair.ids[1])).get_uuid()

    def status() -> str:
        return str(in_time(lambda: api.fdu.instance_info(instance)).get_status())

    def refused(call: Callable[[], object]) -> None:
        began = time.monotonic()
        with pytest.raises(ValueError, match="10"):
            in_time(call)
        # Who asks what nobody answers is told so after ten seconds.
        assert time.monotonic() - began < scale.seconds(8)

    assert there.get(instance).state == "DEFINED"
    for early in (api.fdu.log, api.fdu.start, api.fdu.pause, api.fdu.resume):
        refused(lambda: early(instance))  # noqa: B023
    in_time(lambda: api.fdu.configure(instance))
    code, log = in_time(api.fdu.run(instance, "WORD=a=b").get_result)
    assert (code, log) == (7, "a=b\n")
    assert in_time(lambda: api.fdu.ls(instance)) == ["kept"]
    assert in_time(lambda: api.fdu.get_file(instance, "kept")) == "kept\n"
    with pytest.raises(ValueError, match=r"^-?[0-9]+$"):
        in_time(lambda: api.fdu.get_file(instance, "../../etc/passwd"))
    in_time(lambda: api.fdu.start(instance, "WORD=second,STAY=1"))
    assert status() == "RUN"
    in_time(lambda: api.fdu.pause(instance))
    assert (status(), there.get(instance).state) == ("PAUSE", "PAUSED")
    refused(lambda: api.fdu.start(instance))
    refused(lambda: api.fdu.clean(instance))
    in_time(lambda: api.fdu.resume(instance))
    assert (status(), there.get(instance).state) == ("RUN", "RUNNING")
    in_time(lambda: api.fdu.stop(instance))
    assert status() == "CONFIGURE"
    in_time(lambda: api.fdu.clean(instance))
    assert status() == "DEFINE"
    in_time(lambda: api.fdu.undefine(instance))
    until(lambda: there.list() == [], deadline_s=LONG, what="it is gone")
    another = in_time(lambda: api.fdu.instantiate(fdu, pair.ids[1])).get_uuid()
    assert in_time(lambda: api.fdu.list_node(pair.ids[1])) == [fdu]
    assert in_time(lambda: api.fdu.info(fdu)).get_name() == "far"
    assert in_time(lambda: api.fdu.get_nodes(fdu)) == [pair.ids[1]]
    assert in_time(lambda: api.fdu.instance_list(fdu)) == {pair.ids[1]: [another]}
    until(lambda: there.get(another).state == "CONFIGURED", deadline_s=LONG, what="its end")
    in_time(lambda: api.fdu.clean(another))
    in_time(lambda: api.fdu.undefine(another))
    until(lambda: there.list() == [], deadline_s=LONG, what="it is gone too")
    assert pair.nodes[0].list() == []


def test_ten_runs_at_once_on_two_nodes_do_not_wait_for_each_other(pair: Pair) -> None:
    count, api = 10, pair.api()
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    wait = 'until [ -e go ]; do sleep 0.05; done; exit "$N"'
    fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=wait))).get_uuid()
    until(lambda: pair.api(1).fdu.list() == [fdu], deadline_s=LONG, what="the catalog is there")
    instances: list[tuple[Node, str]] = []
    for number in range(count):
        at = number % 2
        record = in_time(lambda: api.fdu.define(fdu, pair.ids[at]))  # noqa: B023
        instances.append((pair.nodes[at], record.get_uuid()))
        in_time(lambda: api.fdu.configure(instances[-1][1]))
    # The client's own pool has as many threads as the machine has processors, and four.
    api.executor._max_workers = count
    running = [api.fdu.run(one, f"N={number}") for number, (_, one) in enumerate(instances)]
    until(
        lambda: all(node.get(one).state == "RUNNING" for node, one in instances),
        deadline_s=LONG,
        what="all of them run at once",
    )
    for node, one in instances:
        (node._context.paths.instance_lib(one) / "data/go").touch()
    assert [in_time(each.get_result)[0] for each in running] == list(range(count))


def test_scheduling_uses_the_nodes_that_can(pair: Pair) -> None:
    api = pair.api()
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=SLEEP)))
    used = set()
    for _ in range(40):
        record = in_time(lambda: api.fdu.define(fdu.get_uuid()))
        instance = record.get_uuid()
        used.add(next(n for n in pair.nodes if instance in {r.instance for r in n.list()}))
        if len(used) == 2:
            break
    assert len(used) == 2


def test_a_node_that_was_away_gets_what_it_missed(pair: Pair) -> None:
    api = pair.api()
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    old = in_time(lambda: api.fdu.onboard(descriptor(name="old", shell=SLEEP))).get_uuid()
    until(lambda: pair.api(1).fdu.list() == [old], deadline_s=LONG, what="it is on both")
    record = in_time(lambda: api.fdu.define(old, pair.ids[1]))
    instance = record.get_uuid()
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.start(instance))
    pid = pair.nodes[1].get(instance).pid

    pair.agents[1].process.send_signal(signal.SIGKILL)
    pair.agents[1].process.wait(LONG)
    until(sees(api, pair.ids[0]), deadline_s=LONG, what="one node is gone")
    new = in_time(lambda: api.fdu.onboard(descriptor(name="new", shell=SLEEP))).get_uuid()
    in_time(lambda: api.fdu.offload(old))
    until(lambda: in_time(api.fdu.list) == [new], deadline_s=LONG, what="the old one is gone")
    image = str(uuid.uuid4())
    told = {"uuid": image, "uri": "file:///x", "checksum": "", "format": "tar"}
    in_time(lambda: api.image.add(told))

    pair.serve(1)
    until(sees(api, *pair.ids), deadline_s=LONG, what="it is back")
    other = pair.api(1)
    until(lambda: in_time(other.fdu.list) == [new], deadline_s=LONG, what="it has the same")
    until(lambda: in_time(other.image.list) == [told], deadline_s=LONG, what="images too")
    assert in_time(lambda: api.fdu.instance_info(instance)).get_status() == "RUN"
    assert pair.nodes[1].get(instance).pid == pid
    in_time(lambda: api.fdu.terminate(instance))
    until(lambda: not pair.nodes[1].list(), deadline_s=LONG, what="it is gone")


def test_a_node_alone_goes_on_when_the_other_is_frozen(pair: Pair) -> None:
    api = pair.api()
    until(sees(api, *pair.ids), deadline_s=LONG, what="both nodes are seen")
    frozen = pair.agents[1].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=SLEEP)))
        record = in_time(lambda: api.fdu.define(fdu.get_uuid(), pair.ids[0]))
        assert pair.nodes[0].get(record.get_uuid()).state == "DEFINED"
        until(sees(api, pair.ids[0]), deadline_s=LONG, what="the frozen one is gone")
    finally:
        frozen.send_signal(signal.SIGCONT)
    until(sees(api, *pair.ids), deadline_s=LONG, what="it is back")
    known = asked(pair.ports[1], lambda other: other.fdu.list() == [fdu.get_uuid()])
    until(known, deadline_s=LONG, pause_s=0.2, what="it has the same")


def test_nodes_see_each_other_again_however_often_one_is_frozen(pair: Pair) -> None:
    both = [
        asked(port, lambda api: sorted(api.node.list()) == sorted(pair.ids)) for port in pair.ports
    ]
    alone = asked(pair.ports[0], lambda api: api.node.list() == [pair.ids[0]])
    frozen = pair.agents[1].process
    # One return in six or so leaves a connection half open.
    for _ in range(5):
        until(lambda: all(see() for see in both), deadline_s=LONG, pause_s=0.2, what="both")
        frozen.send_signal(signal.SIGSTOP)
        try:
            until(alone, deadline_s=LONG, pause_s=0.2, what="the frozen one is gone")
        finally:
            frozen.send_signal(signal.SIGCONT)
    until(lambda: all(see() for see in both), deadline_s=LONG, pause_s=0.2, what="both at last")


def asked(port: int, question: Callable[[FIMAPI], bool]) -> Callable[[], bool]:
    """Have a node asked by a client of its own; False while it takes none."""

    def ask() -> bool:
        try:
            with client(port) as api:
                return in_time(lambda: question(api))
        except NativertError:
            return False

    return ask


def test_an_agent_starts_anew_where_only_a_new_session_helps(
    tmp_path: Path, make_node: MakeNode
) -> None:
    root = tmp_path / "a" / "node"
    root.parent.mkdir()
    node = make_node(root)
    half_open = tmp_path / "half-open"
    first = f"""
import os
from nativert.agent.nodes.half_open import HalfOpen
HalfOpen.look = lambda *_: os.path.exists({str(half_open)!r})
"""
    port = free_port()
    with serving(root, config=config(port), first=first) as agent:
        with client(port) as api:
            fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=SLEEP)))
            record = in_time(lambda: api.fdu.define(fdu.get_uuid(), node.identity.id))
            instance = record.get_uuid()
            in_time(lambda: api.fdu.configure(instance))
            in_time(lambda: api.fdu.start(instance))
        pid = node.get(instance).pid
        half_open.touch()
        until(lambda: "starts anew" in agent.log.read_text(), deadline_s=LONG, what="it is told")
        half_open.unlink()
        served = f"serves node {node.context.name}"
        until(lambda: agent.log.read_text().count(served) == 2, deadline_s=LONG, what="it serves")
        assert agent.process.poll() is None
        with client(port) as api:
            assert in_time(lambda: api.fdu.instance_info(instance)).get_status() == "RUN"
            assert node.get(instance).pid == pid
            in_time(lambda: api.fdu.terminate(instance))
