"""The unmodified FIMAPI against one agent."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale
from agents import Agent, serving
from fog05_clients import FIMAPI, LONG, client, config, descriptor, free_port, in_time
from nodes import until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "echo started $A; sleep 1000"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def agent(root: Path, node: Node, port: int) -> Iterator[Agent]:
    with serving(root, config=config(port)) as one:
        yield one


@pytest.fixture
def api(agent: Agent, port: int) -> Iterator[FIMAPI]:
    with client(port) as one:
        yield one


def define(api: FIMAPI, node_id: str, **fields: object) -> str:
    fdu = in_time(lambda: api.fdu.onboard(descriptor(**fields)))
    return str(in_time(lambda: api.fdu.define(fdu.get_uuid(), node_id)).get_uuid())


def status(api: FIMAPI, instance: str) -> str:
    return str(in_time(lambda: api.fdu.instance_info(instance)).get_status())


def test_the_whole_life_of_an_instance(api: FIMAPI, node: Node) -> None:
    nodes = in_time(api.node.list)
    assert nodes == [node.identity.id]
    fdu = in_time(lambda: api.fdu.onboard(descriptor(name="whole", shell=SLEEP)))
    assert in_time(api.fdu.list) == [fdu.get_uuid()]
    assert in_time(lambda: api.fdu.info(fdu.get_uuid())).get_name() == "whole"
    record = in_time(lambda: api.fdu.define(fdu.get_uuid(), nodes[0]))
    instance = record.get_uuid()
    assert record.get_status() == status(api, instance) == "DEFINE"
    assert in_time(lambda: api.fdu.instance_list(fdu.get_uuid())) == {nodes[0]: [instance]}
    assert in_time(lambda: api.fdu.get_nodes(fdu.get_uuid())) == nodes
    assert in_time(lambda: api.fdu.list_node(nodes[0])) == [fdu.get_uuid()]

    assert in_time(lambda: api.fdu.configure(instance)) == instance
    assert status(api, instance) == "CONFIGURE"
    assert in_time(lambda: api.fdu.start(instance, "A=1=2,B=x")) == instance
    assert status(api, instance) == "RUN"
    assert node.get(instance).state == "RUNNING"
    until(lambda: in_time(lambda: api.fdu.log(instance)) == "started 1=2\n", what="its log")

    in_time(lambda: api.fdu.pause(instance))
    assert status(api, instance) == "PAUSE"
    assert node.get(instance).state == "PAUSED"
    in_time(lambda: api.fdu.resume(instance))
    assert status(api, instance) == "RUN"
    in_time(lambda: api.fdu.stop(instance))
    assert status(api, instance) == "CONFIGURE"
    in_time(lambda: api.fdu.clean(instance))
    assert status(api, instance) == "DEFINE"
    in_time(lambda: api.fdu.undefine(instance))
    until(lambda: not node.list(), what="it is gone")
    until(lambda: not in_time(lambda: api.fdu.list_node(nodes[0])), what="its record is gone")
    in_time(lambda: api.fdu.offload(fdu.get_uuid()))
    until(lambda: in_time(api.fdu.list) == [], what="its descriptor is gone")


def test_a_run_gives_exit_code_and_log(api: FIMAPI, node: Node) -> None:
    instance = define(api, node.identity.id, shell="echo $WORD; exit 7")
    in_time(lambda: api.fdu.configure(instance))
    for word in ("one", "two"):
        running = in_time(lambda: api.fdu.run(instance, f"WORD={word}"))  # noqa: B023
        code, log = in_time(running.get_result)
        assert code == 7
        assert log.splitlines()[-1] == word
        assert status(api, instance) == "CONFIGURE"


def test_files_of_an_instance_are_listed_and_read(api: FIMAPI, node: Node) -> None:
    shell = "echo hello > /data/greeting; ln -s /etc/passwd /data/link"
    instance = define(api, node.identity.id, shell=shell)
    in_time(lambda: api.fdu.configure(instance))
    running = in_time(lambda: api.fdu.run(instance))
    assert in_time(running.get_result)[0] == 0
    assert sorted(in_time(lambda: api.fdu.ls(instance))) == ["greeting", "link"]
    assert in_time(lambda: api.fdu.get_file(instance, "greeting")) == "hello\n"
    for name in ("none", "../../etc/passwd", "link"):
        with pytest.raises(ValueError, match=r"^-?[0-9]+$"):
            in_time(lambda: api.fdu.get_file(instance, name))  # noqa: B023


def test_a_scheduled_fdu_is_instantiated_and_terminated(api: FIMAPI, node: Node) -> None:
    fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=SLEEP)))
    scheduled = in_time(lambda: api.fdu.define(fdu.get_uuid()))
    assert node.get(scheduled.get_uuid()).state == "DEFINED"
    record = in_time(lambda: api.fdu.instantiate(fdu.get_uuid(), node.identity.id))
    instance = record.get_uuid()
    assert node.get(instance).state == "RUNNING"
    found = in_time(lambda: api.fdu.instance_list(fdu.get_uuid()))
    assert sorted(found[node.identity.id]) == sorted([instance, scheduled.get_uuid()])
    in_time(lambda: api.fdu.terminate(instance))
    until(lambda: [row.instance for row in node.list()] == [scheduled.get_uuid()], what="gone")


def test_what_is_refused_is_answered_at_once_with_a_number(api: FIMAPI, node: Node) -> None:
    instance = define(api, node.identity.id, shell=SLEEP)
    for call, number in (
        (lambda: api.fdu.start(instance), "10"),
        (lambda: api.fdu.log(instance), "10"),
        (lambda: api.fdu.ls(instance), "10"),
        (lambda: api.fdu.pause(instance), "10"),
        (lambda: api.fdu.resume(instance), "10"),
        (lambda: api.fdu.migrate(instance, node.identity.id), "[89]"),
        (lambda: api.fdu.define(str(uuid.uuid4()), node.identity.id), "NOT|not found|Error 11"),
    ):
        began = time.monotonic()
        with pytest.raises(ValueError, match=number):
            in_time(call)
        # Who asks what nobody answers is told so after ten seconds.
        assert time.monotonic() - began < scale.seconds(8)
    running = api.fdu.run(instance)
    with pytest.raises(ValueError, match=r"^10$"):
        in_time(running.get_result)
    assert node.get(instance).state == "DEFINED"


def test_after_a_refusal_the_next_request_is_done_at_once(
    root: Path, node: Node, port: int
) -> None:
    """An error that nobody asks after is shown for so long that nobody could wait for its end."""
    shown = "from nativert.plugin.runtime_plugin import NativePlugin\n"
    shown += f"NativePlugin.__init__.__kwdefaults__['hold_s'] = {10 * LONG}"
    with serving(root, config=config(port), first=shown), client(port) as api:
        instance = define(api, node.identity.id, shell=SLEEP)
        for _ in range(scale.count(10, least=2)):
            with pytest.raises(ValueError, match=r"Errno: 10 Msg: .*DEFINED"):
                in_time(lambda: api.fdu.pause(instance))
            in_time(lambda: api.fdu.configure(instance))
            with pytest.raises(ValueError, match="Errno: 10"):
                in_time(lambda: api.fdu.resume(instance))
            in_time(lambda: api.fdu.clean(instance))


def test_a_descriptor_that_is_wrong_is_refused_when_it_comes(api: FIMAPI) -> None:
    wrong = descriptor(shell=SLEEP)
    wrong.set_command({"binary": "", "args": []})
    with pytest.raises(SystemError, match=r"onboarding 1 with message command\.binary"):
        in_time(lambda: api.fdu.onboard(wrong))
    needy = descriptor(shell=SLEEP, computation_requirements={"cpu_min_count": 4096})
    fdu = in_time(lambda: api.fdu.onboard(needy))
    with pytest.raises(ValueError, match="Error 23"):
        in_time(lambda: api.fdu.define(fdu.get_uuid()))
    assert in_time(api.fdu.list) == [fdu.get_uuid()]


def test_ten_runs_at_once_take_as_long_as_one(api: FIMAPI, node: Node) -> None:
    """None ends before all of them run, and something else has been asked meanwhile."""
    count = 10
    wait = 'until [ -e go ]; do sleep 0.05; done; exit "$N"'
    fdu = in_time(lambda: api.fdu.onboard(descriptor(shell=wait)))
    instances = []
    for _ in range(count):
        record = in_time(lambda: api.fdu.define(fdu.get_uuid(), node.identity.id))
        instances.append(record.get_uuid())
        in_time(lambda: api.fdu.configure(instances[-1]))
    # The client's own pool has as many threads as the machine has processors, and four.
    api.executor._max_workers = count
    running = [api.fdu.run(one, f"N={number}") for number, one in enumerate(instances)]
    until(
        lambda: all(node.get(one).state == "RUNNING" for one in instances),
        what="all of them run at once",
    )
    other = define(api, node.identity.id, name="other", shell="true")
    assert status(api, other) == "DEFINE"
    for one in instances:
        (node._context.paths.instance_lib(one) / "data/go").touch()
    assert [in_time(each.get_result)[0] for each in running] == list(range(count))


def test_a_command_with_semicolons_and_quotes_arrives_as_it_is(api: FIMAPI, node: Node) -> None:
    text = 'a; b="c" #d (e) {f} [g] ?h é'
    instance = define(api, node.identity.id, shell='printf "%s|" "$@"', args=[text, "x;y"])
    in_time(lambda: api.fdu.configure(instance))
    running = api.fdu.run(instance)
    code, log = in_time(running.get_result)
    assert (code, log.rstrip("\n")) == (0, f"{text}|x;y|")


def test_the_node_tells_of_itself_and_its_plugins(api: FIMAPI, node: Node) -> None:
    node_id = node.identity.id
    info = in_time(lambda: api.node.info(node_id))
    assert (info["uuid"], info["os"]) == (node_id, "linux")
    assert info["cpu"]
    assert info["ram"]["size"] > 0
    assert {"intf_name", "intf_configuration"} <= set(info["network"][0])
    told = in_time(lambda: api.node.status(node_id))
    assert 0 < told["ram"]["free"] <= told["ram"]["total"]
    assert told["disk"][0]["total"] > 0
    plugins = in_time(lambda: api.node.plugins(node_id))
    assert len(plugins) == 1
    manifest = in_time(lambda: api.plugin.info(plugins[0], node_id))
    assert (manifest["name"], manifest["type"]) == ("native", "runtime")


def test_images_flavors_and_networks_are_kept_in_the_catalog(api: FIMAPI) -> None:
    image, network = str(uuid.uuid4()), str(uuid.uuid4())
    told = {"uuid": image, "uri": "file:///x", "checksum": "", "format": "tar"}
    in_time(lambda: api.image.add(told))
    in_time(lambda: api.flavor.add({"uuid": image, "name": "small"}))
    in_time(lambda: api.network.add_network({"uuid": network, "name": "n", "net_type": "ELAN"}))
    until(lambda: in_time(api.image.list) == [told], what="the image")
    until(lambda: in_time(api.flavor.list) == [{"uuid": image, "name": "small"}], what="the flavor")
    assert in_time(lambda: api.image.get(image))["uri"] == "file:///x"
    until(lambda: in_time(api.network.list), what="the network")
    in_time(lambda: api.image.remove(image))
    until(lambda: in_time(api.image.list) == [], what="the image is gone")


def test_an_agent_that_starts_again_has_lost_nothing(
    root: Path, node: Node, agent: Agent, port: int
) -> None:
    with client(port) as api:
        instance = define(api, node.identity.id, shell=SLEEP)
        in_time(lambda: api.fdu.configure(instance))
        in_time(lambda: api.fdu.start(instance, "A=5"))
        fdus = in_time(api.fdu.list)
        waiting = api.fdu.run(define(api, node.identity.id, shell="true"))
        with pytest.raises(ValueError, match="10"):
            in_time(waiting.get_result)
    pid = node.get(instance).pid
    assert agent.end() == 0
    with serving(root), client(port) as api:
        assert fdus[0] in in_time(api.fdu.list)
        assert status(api, instance) == "RUN"
        assert node.get(instance).pid == pid
        assert in_time(lambda: api.fdu.log(instance)) == "started 5\n"
        in_time(lambda: api.fdu.terminate(instance))
        until(lambda: instance not in {r.instance for r in node.list()}, what="it is gone")


@pytest.mark.parametrize(("killed", "code"), [(False, "41"), (True, "11")])
def test_who_waits_for_a_run_is_told_when_the_agent_is_gone(
    agent: Agent, port: int, node: Node, killed: bool, code: str
) -> None:
    with client(port) as api:
        instance = define(api, node.identity.id, shell=SLEEP)
        in_time(lambda: api.fdu.configure(instance))
        running = api.fdu.run(instance)
        until(lambda: node.get(instance).state == "RUNNING", what="it runs")
        if killed:
            agent.process.kill()
            agent.process.wait(LONG)
        else:
            assert agent.end() == 0
        with pytest.raises(ValueError, match=rf"^{code}$"):
            in_time(running.get_result)
    assert node.get(instance).state == "RUNNING"


def test_a_run_of_what_is_nowhere_or_runs_already_is_refused(api: FIMAPI, node: Node) -> None:
    nowhere = api.fdu.run(str(uuid.uuid4()))
    with pytest.raises(ValueError, match=r"^11$"):
        in_time(nowhere.get_result)
    wait = "until [ -e go ]; do sleep 0.05; done; exit 4"
    instance = define(api, node.identity.id, shell=wait)
    in_time(lambda: api.fdu.configure(instance))
    running = api.fdu.run(instance)
    until(lambda: node.get(instance).state == "RUNNING", what="it runs")
    # The client itself does not know that it has asked for that already.
    again = api.fdu.run(instance)
    with pytest.raises(ValueError, match=r"^10$"):
        in_time(again.get_result)
    (node._context.paths.instance_lib(instance) / "data/go").touch()
    assert in_time(running.get_result) == (4, "")


def test_the_log_of_the_agent_has_no_traceback(api: FIMAPI, agent: Agent, node: Node) -> None:
    instance = define(api, node.identity.id, shell=SLEEP)
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.clean(instance))
    assert not re.search("Traceback", agent.log.read_text())
