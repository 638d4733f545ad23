"""What others take away from an instance is put back, and each repair is told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from aftermath import alter_facts
from nodes import (
    MakeNode,
    address,
    cgroup,
    driver_of,
    make_descriptor,
    run_inside,
    start,
    tag_of,
    until,
)

from nativert.isolation.cgroups.limits import Entry, Limits
from nativert.isolation.network import nftables
from nativert.launcher.client import Channel
from nativert.runtime import virtual_networks
from nativert.runtime.node import Node
from nativert.runtime.protocols import Mending
from nativert.runtime.supervision.reconcile import Reconciler
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.store.catalog import Entry as CatalogEntry

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
NETWORK = "6cc2aa30-1dcf-4c93-a57e-433fd0bd498e"
SERVER = (
    "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
)


@pytest.fixture
def supervised(node: Node) -> Iterator[Node]:
    """The test's node, reconciled ten times a second."""
    supervisor = Supervisor(node, reconcile_s=0.1)
    supervisor.start()
    yield node
    supervisor.close()


def told(node: Node, kind: str, instance: str = "") -> list[str]:
    return [
        event.data["message"]
        for event in node.events(limit=10_000)
        if (event.kind, event.instance) == (kind, instance)
    ]


def run_quietly(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=scale.LONG_S)


def test_a_limit_that_was_wiped_is_written_again(supervised: Node) -> None:
    app = start(supervised, shell=SLEEP, native={"memory": {"max": "64M"}, "pids": {"max": 20}})
    cgroup(supervised, app).apply(Limits())
    until(lambda: cgroup(supervised, app).read().memory_max == 64 << 20, what="memory.max is back")
    until(lambda: cgroup(supervised, app).read().pids_max == 20, what="pids.max is back")
    until(lambda: told(supervised, "repaired", app), what="the repair is told")
    assert "limits were changed" in told(supervised, "repaired", app)[0]


def test_it_never_fights_a_scale(supervised: Node) -> None:
    app = start(supervised, shell=SLEEP, native={"memory": {"max": "64M"}})
    for mib in range(65, 95):
        supervised.scale(app, {"memory_max": mib << 20, "cpu_max": 0.5, "pids_max": mib})
        assert cgroup(supervised, app).read().memory_max == mib << 20
    rounds = supervised.latest_event()
    cgroup(supervised, app).apply(Limits())
    until(lambda: supervised.latest_event() > rounds, what="the reconciler is at work")
    until(lambda: cgroup(supervised, app).read().memory_max == 94 << 20, what="it is as scaled")
    assert len(told(supervised, "repaired", app)) <= 2


def test_processes_that_were_moved_out_are_brought_back(supervised: Node, root: Path) -> None:
    app = start(supervised, shell="sleep 1000 & sleep 1001 & exec sleep 1002")
    until(lambda: len(cgroup(supervised, app).pids()) == 3, what="three processes")
    pids = cgroup(supervised, app).pids()
    entry = driver_of(root).open("init").entry()
    for directory in directories(entry):
        for pid in pids:
            Path(directory, "cgroup.procs").write_text(str(pid))
    until(lambda: sorted(cgroup(supervised, app).pids()) == sorted(pids), what="they are back")
    until(lambda: told(supervised, "repaired", app), what="the repair is told")
    assert "moved out" in told(supervised, "repaired", app)[0]
    assert supervised.stop(app).state == "CONFIGURED"


def remove_cgroup(node: Node, root: Path, app: str) -> list[int]:
    """Move what is in an instance's cgroup elsewhere and remove it; return the processes."""
    pids = cgroup(node, app).pids()
    outside, own = (driver_of(root).open(name).entry() for name in ("init", f"i-{app}"))
    for into, away in zip(directories(outside), directories(own), strict=True):
        for pid in pids:
            Path(into, "cgroup.procs").write_text(str(pid))
        os.rmdir(away)
    return pids


@pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
def test_a_cgroup_that_was_removed_is_made_anew_and_programs_start_in_it(
    node: Node, root: Path, again: bool
) -> None:
    app = start(node, shell="sleep 1000 & exec sleep 1001", native={"pids": {"max": 20}})
    until(lambda: len(cgroup(node, app).pids()) == 2, what="two processes")
    pids = remove_cgroup(node, root, app)
    if again:
        # Another one of its name, which init's descriptors do not lead to.
        node.context.driver.create(f"i-{app}")
    reconciler = Reconciler(node)
    reconciler.round()
    reconciler.round()
    assert sorted(cgroup(node, app).pids()) == sorted(pids)
    assert cgroup(node, app).read().pids_max == 20
    assert "its cgroup was removed" in told(node, "repaired", app)[0] or again
    assert told(node, "degraded", app) == []
    # What is started now is in it and counted there, beside and after the running application.
    fork = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done"
    assert "fork" in run_inside(node, app, "sh", "-c", fork)[1]
    assert node.stop(app).state == "CONFIGURED"
    end = node.get(app).end
    assert end is not None
    assert (end.reason, end.cpu_s) == ("stopped", None)
    assert node.run(app).state == "RUNNING"
    until(lambda: len(cgroup(node, app).pids()) == 2, what="two processes, in it")
    node.stop(app)
    end = node.get(app).end
    assert end is not None
    assert end.cpu_s is not None


def test_a_configured_instance_whose_cgroup_was_removed_runs(node: Node, root: Path) -> None:
    app = node.define(make_descriptor(shell="exec sleep 1000")).instance
    node.configure(app)
    remove_cgroup(node, root, app)
    Reconciler(node).round()
    assert told(node, "degraded", app) == []
    assert node.run(app).state == "RUNNING"
    assert cgroup(node, app).pids() == [node.get(app).pid]


def test_a_removed_cgroup_that_an_older_init_cannot_be_told_of_is_degraded(
    node: Node, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = start(node, shell="exec sleep 1000")
    remove_cgroup(node, root, app)
    real = Channel.call

    def older(self: Channel, message: dict[str, Any], *more: Any, **options: Any) -> Any:
        # It reads the fields that it knows, and no others.
        known = {key: value for key, value in message.items() if key != "cgroup"}
        return real(self, known, *more, **options)

    monkeypatch.setattr(Channel, "call", older)
    Reconciler(node).round()
    assert "clean and configure" in told(node, "degraded", app)[0]
    node.stop(app)
    node.clean(app)
    node.configure(app)
    assert node.run(app).state == "RUNNING"


def test_an_init_in_another_network_namespace_is_told_as_degraded(node: Node, root: Path) -> None:
    app = start(node, shell=SLEEP, veth=True)
    alter_facts(root, app, netns_inode=1)
    supervisor = Supervisor(node, reconcile_s=0.1)
    supervisor.start()
    try:
        until(lambda: told(node, "degraded", app), what="the degraded state is told")
    finally:
        supervisor.close()
    assert "network namespace" in told(node, "degraded", app)[0]
    assert node.get(app).state == "RUNNING"


def directories(entry: Entry) -> list[str]:
    found = [os.path.dirname(path) for path in entry.tasks] + [entry.into or ""]
    return list(dict.fromkeys(filter(None, found)))


def published(node: Node) -> tuple[str, Callable[[], bool]]:
    """A running server on a published port, and whether it answers through it."""
    app = node.define(
        make_descriptor(python=SERVER, veth=True, native={"network": {"ports": ["22997:80"]}})
    ).instance
    node.configure(app)
    node.run(app)

    def answers() -> bool:
        done = subprocess.run(
            ["curl", "-s", "-m", "1", "-o", "/dev/null", "http://127.0.0.1:22997/"], check=False
        )
        return done.returncode == 0

    until(answers, what="the server answers")
    return app, answers


def test_a_virtual_network_is_put_back_and_who_was_taken_off_it_is_not(supervised: Node) -> None:
    path = virtual_networks.CATALOG.format(uuid=NETWORK)
    told_of = {"uuid": NETWORK, "ip_configuration": {"subnet": "192.168.7.0/24"}}
    supervised.context.store.enter(CatalogEntry(path, "1/1", json.dumps(told_of)))
    points, faces = [{"id": "cp", "vld_ref": NETWORK}], [{"name": "eth0", "cp_id": "cp"}]
    app = start(supervised, shell=SLEEP, connection_points=points, interfaces=faces)
    native: Any = supervised.inspect(app)["native"]
    link = native["interfaces"][0]["link"]
    bridge = next(
        name
        for name in os.listdir("/sys/class/net")
        if name.startswith(f"nw{supervised.identity.tag}")
    )
    port = Path(f"/sys/class/net/{bridge}/brif/{link}")
    assert port.exists()
    run_quietly("ip", "link", "set", link, "nomaster")
    until(port.exists, what="it is on its network again")
    run_quietly("ip", "link", "delete", bridge)
    until(port.exists, what="the network is back, and it is on it")
    run_quietly("ip", "link", "delete", link)
    until(port.exists, what="its link is made anew, on its network")
    supervised.connect(app, "cp", "")
    assert not port.exists()
    run_quietly("ip", "link", "set", link, "master", bridge)
    until(lambda: not port.exists(), what="it is off again")
    repairs = {
        f"link {link} was taken off its network",
        f"bridge {bridge} was removed",
        f"link {link} was put on its network",
    }
    until(lambda: repairs <= set(told(supervised, "repaired")), what="the repairs are told")
    supervised.connect(app, "cp", NETWORK)
    assert port.exists()


@pytest.mark.parametrize("what", ["table", "rules", "ports", "veth", "bridge", "off-the-bridge"])
def test_the_network_is_put_back(supervised: Node, root: Path, what: str) -> None:
    app, answers = published(supervised)
    pid = supervised.get(app).pid
    tag = tag_of(root)
    native: Any = supervised.inspect(app)["native"]
    link = native["interfaces"][0]["link"]
    taken: dict[str, Callable[[], None]] = {
        "table": lambda: nftables.run(f"delete table ip nativert_{tag}\n"),
        "rules": lambda: nftables.run(f"flush chain ip nativert_{tag} arriving\n"),
        "ports": lambda: nftables.run(f"flush map ip nativert_{tag} ports\n"),
        "veth": lambda: run_quietly("ip", "link", "delete", link),
        "bridge": lambda: run_quietly("ip", "link", "delete", f"nrt-{tag}"),
        "off-the-bridge": lambda: run_quietly("ip", "link", "set", link, "nomaster"),
    }
    taken[what]()
    instance = app if what == "veth" else ""
    until(lambda: told(supervised, "repaired", instance), what="the repair is told")
    until(answers, what="the server answers again")
    assert supervised.get(app).pid == pid
    assert address(supervised, app)
    supervised.stop(app)
    supervised.clean(app)
    assert link not in supervised.context.network.links()


def test_nothing_is_repaired_where_nothing_is_wrong(supervised: Node) -> None:
    limits = {
        "cpu": {"max": 0.37, "weight": 33},
        "memory": {"max": 70_000_001},
        "pids": {"max": 9},
    }
    start(supervised, shell=SLEEP, veth=True, native=limits)
    other = start(supervised, name="other", shell=SLEEP, native={"network": {"mode": "none"}})
    supervised.pause(other)
    before = supervised.latest_event()
    assert supervised.context.store.wait_events(before, 1.5) == []


def test_at_its_start_what_has_no_record_is_removed_and_nothing_else(
    make_node: MakeNode, tmp_path: Path
) -> None:
    node, other = make_node(), make_node(tmp_path / "other")
    ports = {"network": {"ports": ["22996:80"]}}
    kept = start(node, name="kept", shell=SLEEP, veth=True)
    theirs = start(other, name="theirs", shell=SLEEP, veth=True)
    lost = start(node, name="lost", shell=SLEEP, veth=True, native=ports)
    facts = node.look(lost).facts
    assert facts is not None
    pids = [node.get(lost).pid or 0, facts.init_pid or 0]
    link, directory = facts.links[0].link, node.paths.instance_run(lost)
    data = node.paths.instance_lib(lost)
    # As after a store that was restored from before its definition.
    node.context.store.delete(lost)
    node.close()
    again = make_node()

    def told_of() -> set[object]:
        return {e.data["what"] for e in again.events() if e.kind == "leftover-removed"}

    supervisor = Supervisor(again)
    supervisor.start()
    try:
        # What is removed is told when all is.
        whole = {"process", "cgroup", "link", "rule", "directory"}
        until(lambda: told_of() >= whole, what="it is told")
        until(lambda: not directory.exists() and not data.exists(), what="its directories go")
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="it ends")
        until(lambda: link not in again.context.network.links(), what="its link goes")
        assert f"i-{lost}" not in again.context.driver.names()
        network = again.context.network
        assert isinstance(network, Mending)
        assert network.published_addresses() == set()
        assert again.get(kept).state == other.get(theirs).state == "RUNNING"
        assert not other.events(other.latest_event() - 1)[0].kind.startswith("leftover")
    finally:
        supervisor.close()
