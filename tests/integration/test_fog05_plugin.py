"""`nativert plugin MANIFEST` at an agent that is not nativert's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import scale
from fog05_agents import AgentDouble
from fog05_clients import descriptor, free_port
from nodes import CLI, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

NODE = "53712df2c2e541ebbb5d0e3b2c1f7c7d"
LOOP = "echo started $A; trap 'exit 0' TERM; while :; do sleep 0.1; done"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def double(port: int) -> Iterator[AgentDouble]:
    one = AgentDouble(port, NODE)
    yield one
    one.close()


@pytest.fixture
def manifest(tmp_path: Path, port: int) -> Path:
    path = tmp_path / "native_plugin.json"
    configuration = {"ylocator": f"tcp/127.0.0.1:{port}", "nodeid": NODE, "update_interval": 0.2}
    tree = {
        "uuid": str(uuid.uuid4()),
        "name": "native",
        "version": 1,
        "type": "runtime",
        "requirements": [],
        "configuration": configuration,
    }
    path.write_text(json.dumps(tree))
    return path


@contextmanager
def plugin(root: Path, manifest: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    log = (root.parent / "plugin.log").open("ab")
    process = subprocess.Popen(
        [*CLI, "plugin", str(manifest)], env=environment, stdout=sys.stderr, stderr=log
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(scale.LONG_S)
        log.close()


def onboarded(**fields: Any) -> dict[str, Any]:
    tree: dict[str, Any] = descriptor(**fields).to_json()
    return {name: value for name, value in tree.items() if value is not None}


def test_a_life_at_somebody_elses_agent(
    root: Path, node: Node, double: AgentDouble, manifest: Path
) -> None:
    with plugin(root, manifest) as process:
        told = double.plugin()
        assert (told["name"], told["type"], told["status"]) == ("native", "runtime", "running")
        assert told["pid"] == process.pid
        fdu, instance = double.define(onboarded(name="life", shell=LOOP))
        assert node.get(instance).name == "life"
        for status, seen in (("CONFIGURE", "CONFIGURE"),):
            double.want(fdu, instance, status)
            double.until(instance, seen)
        assert double.ask(fdu, instance, "start", "env=A=1=2,B=3") == {"result": instance}
        double.until(instance, "RUN")
        until(lambda: double.ask(fdu, instance, "log")["result"] == "started 1=2\n", what="log")
        key = double.path("alfos", instance, fdu)
        double.wait(lambda: json.loads(double.values[key])["hypervisor_info"].get("memory"),
                    "figures of what runs")  # fmt: skip
        for status, seen in (
            ("PAUSE", ("PAUSE",)),
            ("RESUME", ("RUN",)),
            ("STOP", ("CONFIGURE",)),
            ("CLEAN", ("CLEAN", "DEFINE")),
            ("UNDEFINE", ("gone",)),
        ):
            double.want(fdu, instance, status)
            double.until(instance, *seen)
        assert node.list() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(scale.LONG_S) == 0
    double.wait(lambda: not any("/plugins/" in key for key in double.values), "it says goodbye")
    assert double.lost == []


def test_run_and_refusals_have_fog05s_shapes(
    root: Path, node: Node, double: AgentDouble, manifest: Path
) -> None:
    with plugin(root, manifest):
        fdu, instance = double.define(onboarded(shell="echo out; exit 3"))
        double.want(fdu, instance, "PAUSE")
        double.until(instance, "ERROR")
        record = json.loads(double.values[double.path("alfos", instance, fdu)])
        assert (record["error_code"], type(record["error_msg"])) == (10, str)
        double.want(fdu, instance, "CONFIGURE")
        double.until(instance, "CONFIGURE")
        assert double.ask(fdu, instance, "run", "env=") == {"result": "3"}
        double.until(instance, "RUN", "CONFIGURE")
        assert json.loads(double.ask(fdu, instance, "ls")["result"]) == []
        assert double.ask(fdu, instance, "get", "filename=none")["error"] != 0
        for status, code in (("TAKE_OFF", 8), ("MIGRATE", 10)):
            double.want(fdu, instance, status)
            double.until(instance, "ERROR")
            record = json.loads(double.values[double.path("alfos", instance, fdu)])
            assert record["error_code"] == code
            double.want(fdu, instance, "CONFIGURE")
            double.until(instance, "CONFIGURE")
    assert double.lost == []


def test_instances_live_on_while_the_plugin_starts_again(
    root: Path, node: Node, double: AgentDouble, manifest: Path
) -> None:
    with plugin(root, manifest) as process:
        fdu, instance = double.define(onboarded(shell=LOOP))
        double.want(fdu, instance, "CONFIGURE")
        double.until(instance, "CONFIGURE")
        double.ask(fdu, instance, "start", "env")
        double.until(instance, "RUN")
        pid = node.get(instance).pid
        process.kill()
        process.wait(scale.LONG_S)
    # While nobody is there, an instance is asked for that does not exist yet.
    key = double.path("alfos", instance, fdu)
    late = str(uuid.uuid4())
    record = json.loads(double.values[key])
    double.want(fdu, late, "DEFINE", record | {"uuid": late, "hypervisor_info": {}})
    with plugin(root, manifest):
        double.until(late, "DEFINE")
        assert double.ask(fdu, instance, "log")["result"] == "started\n"
        assert node.get(instance).pid == pid
        double.want(fdu, instance, "STOP")
        double.until(instance, "CONFIGURE")
        assert node.get(instance).state == "CONFIGURED"
    assert double.lost == []


def test_a_manifest_that_says_too_little_is_refused(root: Path, manifest: Path, cli: Any) -> None:
    tree = json.loads(manifest.read_text())
    for name in ("ylocator", "nodeid"):
        without = tree | {"configuration": tree["configuration"] | {name: ""}}
        manifest.write_text(json.dumps(without))
        refused = cli("plugin", str(manifest))
        assert refused.returncode == 2
        assert f"configuration.{name}: is required" in refused.stderr
