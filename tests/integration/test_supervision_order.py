"""Instances start after what they depend on and stop before it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nodes import ended, make_descriptor, until, until_logged

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


@pytest.fixture
def supervisor(node: Node) -> Iterator[Supervisor]:
    """A supervisor of the test's node."""
    one = Supervisor(node)
    one.start()
    yield one
    one.close()


def define(node: Node, name: str, *needs: str, **fields: Any) -> str:
    given = {"shell": SLEEP} | fields
    return node.define(make_descriptor(name=name, depends_on=list(needs), **given)).instance


def order(node: Node, kind: str) -> list[str]:
    return [event.name for event in node.events(limit=10_000) if event.kind == kind]


def test_a_start_begins_with_what_is_depended_on(node: Node, supervisor: Supervisor) -> None:
    health = {"exec": ["test", "-e", "/data/up"], "interval": "100ms", "retries": 100}
    define(node, "db", shell="sleep 1; touch /data/up; exec sleep 1000", native={"health": health})
    define(node, "cache", "db")
    web = define(node, "web", "cache", "db")
    node.configure(web)
    assert node.run(web).state == "RUNNING"
    assert order(node, "started") == ["db", "cache", "web"]
    events = [(e.kind, e.name) for e in node.events(limit=10_000)]
    assert events.index(("healthy", "db")) < events.index(("started", "cache"))
    supervisor.stop_all()
    assert order(node, "ended") == ["web", "cache", "db"]
    end = ended(node.get(web))
    assert end.reason == "node-shutdown"
    assert "node shut down" in end.message or "node was shut down" in end.message
    native: Any = node.inspect(web)["native"]
    assert native["wanted"] == "RUNNING"


def test_an_unknown_dependency_and_a_circle_are_refused(node: Node, supervisor: Supervisor) -> None:
    lonely = define(node, "lonely", "nobody")
    node.configure(lonely)
    with pytest.raises(NativertError) as refused:
        node.run(lonely)
    assert refused.value.code is Code.REQUIREMENTS
    assert "depends_on names nobody" in refused.value.message
    first = define(node, "first", "second")
    define(node, "second", "first")
    node.configure(first)
    with pytest.raises(NativertError) as refused:
        node.run(first)
    assert refused.value.code is Code.REQUIREMENTS
    assert "first -> second -> first" in refused.value.message
    assert {row.state for row in node.list()} == {"CONFIGURED", "DEFINED"}


def test_a_dependency_that_fails_is_the_verdict(node: Node, supervisor: Supervisor) -> None:
    define(node, "db", shell="exit 7", native={"health": {"tcp": 1}})
    web = define(node, "web", "db")
    node.configure(web)
    with pytest.raises(NativertError) as refused:
        node.run(web)
    assert refused.value.code is Code.RUN
    assert "db" in refused.value.message
    row = node.get(web)
    assert (row.state, ended(row).reason) == ("CONFIGURED", "dependency")
    assert "db" in ended(row).message


def test_what_was_wanted_comes_back_in_order_where_autostart_says_so(
    node: Node, supervisor: Supervisor
) -> None:
    define(node, "db", native={"autostart": True})
    web = define(node, "web", "db", native={"autostart": True})
    plain = define(node, "plain")
    for app in (web, plain):
        node.configure(app)
        node.run(app)
    supervisor.stop_all()
    again = Supervisor(node)
    again.start()
    try:
        until(lambda: node.get(web).state == "RUNNING", what="it was started again")
        assert node.get("db").state == "RUNNING"
        assert order(node, "started")[-2:] == ["db", "web"]
        assert node.get(plain).state == "CONFIGURED"
    finally:
        again.close()


def reboot(node: Node) -> None:
    """What a reboot leaves: no process, an empty run directory, another boot in the records."""
    for row in node.list():
        facts = node.look(row.instance).facts
        if facts is not None and facts.init_pid is not None:
            os.kill(facts.init_pid, signal.SIGKILL)
            shutil.rmtree(node.paths.instance_run(row.instance))
    with closing(sqlite3.connect(node.paths.database)) as connection:
        connection.execute("UPDATE instances SET boot_id = 'the boot before'")
        connection.commit()


def test_after_a_boot_what_was_wanted_runs_again(node: Node) -> None:
    before = Supervisor(node)
    before.start()
    always = {"policy": "always", "backoff": "1s"}
    env = {"autostart": True, "restart": always}
    define(node, "db", veth=True, native={"autostart": True})
    define(node, "web", "db", veth=True, shell="echo mode=$MODE; exec sleep 1000", native=env)
    define(node, "stopped", native={"autostart": True})
    define(node, "looping", shell="exit 1", native={"restart": always | {"backoff": "100ms"}})
    define(node, "plain")
    for name in ("web", "stopped", "looping", "plain"):
        node.configure(name)
        node.run(name, env={"MODE": "edge"})
    node.stop("stopped")
    before.close()
    reboot(node)
    cursor = node.latest_event()
    after = Supervisor(node)
    after.start()
    try:
        until(lambda: node.get("web").state == "RUNNING", what="web runs again")
        until_logged(node, "web", "mode=edge\nmode=edge\n")
        told = [(e.kind, e.name) for e in node.events(cursor)]
        assert told.index(("started", "db")) < told.index(("started", "web"))
        until(lambda: node.get("plain").state == "DEFINED", what="plain is settled")
        assert ended(node.get("plain")).reason == "node-rebooted"
        assert {node.get(name).state for name in ("stopped", "looping")} == {"DEFINED"}
        assert ("started", "looping") not in told
    finally:
        after.close()


def test_a_start_after_a_boot_that_fails_is_not_tried_for_ever(node: Node, tmp_path: Path) -> None:
    before = Supervisor(node)
    before.start()
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    image = {"uri": f"file://{program}", "format": "binary"}
    define(
        node,
        "gone",
        shell=None,
        binary="program",
        args=["1000"],
        image=image,
        native={"autostart": True},
    )
    node.configure("gone")
    node.run("gone")
    before.close()
    reboot(node)
    program.unlink()
    cursor = node.latest_event()
    after = Supervisor(node)
    after.start()
    try:
        until(
            lambda: any(e.kind == "rests" for e in node.events(cursor)), what="it is decided once"
        )
        cursor = node.latest_event()
        assert not [e for e in node.wait_events(cursor, 1.5) if e.name == "gone"]
        assert node.get("gone").state == "DEFINED"
    finally:
        after.close()
