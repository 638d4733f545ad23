"""`up` and `down`: nodes in namespaces of their own, used, killed, and removed without a rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scale
from nodes import CLI, make_document, until

from nativert.errors import NativertError
from nativert.fleet import plan, up
from nativert.fleet.plan import Member, Plan
from nativert.isolation.network import named
from nativert.isolation.network.netns import inside
from nativert.plugin.zenoh_session import Settings, open_session
from nativert.store.claims import Claims, PortClaim
from nativert.store.identity import open_identity
from nativert.store.locks import NodeLock, holder
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.timeout(300)]

LONG = scale.seconds(100)
SERVER = "exec /usr/bin/python3 -u -m http.server 80 --directory /usr/share/common-licenses"


def command(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    return subprocess.run(
        [*CLI, *words], env=environment, capture_output=True, text=True, timeout=LONG
    )


def ok(root: Path, *words: str) -> Any:
    done = command(root, *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def left_of(root: Path, fleet: Plan) -> list[str]:
    """What is on the host of a fleet that is not there any more."""
    left = [f"netns {name}" for name in named.names("nrf-") if fleet.tag in name]
    left += [f"file {path}" for path in root.glob("*")]
    claims = Claims().nodes()
    left += [f"claim {id_}" for id_, each in claims.items() if each.path.startswith(f"{root}/")]
    text = os.fsencode(f"{root}/")
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text in (entry / "cmdline").read_bytes():
                left.append(f"process {entry.name}")
        except OSError:
            continue
    return left


def agent_of(node: Member) -> int:
    pid = holder(NodeLock(node.paths, "agent").path)
    assert pid is not None
    return pid


def alive(node: Member) -> list[bool]:
    return [row["alive"] for row in ok(node.root, "node", "ls")]


@pytest.fixture
def fleet_root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "fleet"
    yield root
    if plan.there(root):
        removed = command(root, "down")
        assert removed.returncode == 0, removed.stderr


def test_a_fleet_runs_nothing_of_the_directory_it_is_made_in(
    fleet_root: Path, tmp_path: Path
) -> None:
    own, ran = tmp_path / "here" / "nativert", tmp_path / "ran"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text(f"open({str(ran)!r}, 'w')\nraise SystemExit(1)\n")
    program = Path(sys.executable).with_name("nativert")
    for words in (("up", "--nodes", "1", "-d"), ("down",)):
        done = subprocess.run(
            [program, *words],
            cwd=own.parent,
            env=os.environ | {"NATIVERT_ROOT": str(fleet_root)},
            capture_output=True,
            text=True,
            timeout=LONG,
        )
        assert done.returncode == 0, done.stderr
    assert not ran.exists()


def test_a_fleet_is_up_used_and_gone(
    fleet_root: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    told = ok(fleet_root, "up", "--nodes", "3", "-d")
    tell(f"3 nodes are up after {told['took_s']} s")
    fleet = plan.read(fleet_root)
    assert [node["root"] for node in told["nodes"]] == [node.directory for node in fleet.nodes]
    one, two, three = fleet.nodes
    for node in fleet.nodes:
        rows = ok(node.root, "node", "ls")
        assert [row["name"] for row in rows] == ["node-1", "node-2", "node-3"]
        assert all(row["alive"] for row in rows)
        assert [row["addresses"] for row in rows] == [[each.endpoint] for each in fleet.nodes]
    refused = command(fleet_root, "up")
    assert (refused.returncode, "a fleet is here already" in refused.stderr) == (4, True)

    # Who is in a node's namespace, as an application may be, has no password.
    netns = named.open_named(one.netns)
    try:
        for settings in (
            Settings(connect=(one.endpoint,), mode="client"),
            Settings(connect=(two.endpoint,), mode="client", more={
                "transport/auth/usrpwd/user": "fleet",
                "transport/auth/usrpwd/password": "guessed",
            }),
        ):  # fmt: skip
            with pytest.raises(NativertError, match="cannot open"):
                inside(netns, lambda settings=settings: open_session(settings))
    finally:
        os.close(netns)

    # An instance runs on one node, and is reached from another; its port is its node's.
    page = tmp_path / "web.json"
    native = {"network": {"ports": ["18080:80"]}}
    document = make_document(name="web", shell=SERVER, veth=True, native=native)
    page.write_text(json.dumps(document))
    started = ok(one.root, "--on", "node-2", "run", "-d", str(page))
    assert (started["node"], started["state"]) == ("node-2", "RUNNING")
    (row,) = ok(three.root, "ps", "--all-nodes")
    assert (row["node"], row["name"]) == ("node-2", "web")
    assert ok(three.root, "pause", "web")[0]["state"] == "PAUSED"
    assert ok(one.root, "resume", "web")[0]["state"] == "RUNNING"
    until(lambda: fetched(two), deadline_s=LONG, what="the port of node-2 answers")
    assert not fetched(one)
    # Without its agent, a command works in the node's namespace too.
    assert command(two.root, "exec", "web", "--", "/bin/true").returncode == 0
    alone = command(two.root, "--no-agent", "restart", "web")
    assert alone.returncode == 0, alone.stderr
    until(lambda: fetched(two), deadline_s=LONG, what="the port answers again")

    # A node is killed: the others see it, and go on; its instances too.
    os.kill(agent_of(two), signal.SIGKILL)
    began = time.monotonic()
    until(lambda: alive(one) == [True, False, True], deadline_s=LONG, what="node-2 is gone")
    tell(f"node-2 is seen gone after {time.monotonic() - began:.2f} s, two commands included")
    until(lambda: alive(three) == [True, False, True], deadline_s=LONG, what="node-2 is gone")
    lost = command(one.root, "stop", "web")
    assert (lost.returncode, "node node-2 is gone" in lost.stderr) == (5, True)
    page.write_text(json.dumps(make_document(name="other", shell=SERVER, veth=True)))
    assert ok(one.root, "--on", "node-3", "run", "-d", str(page))["node"] == "node-3"
    assert fetched(two)
    assert ok(two.root, "ps")[0]["state"] == "RUNNING"
    # Its agent is started as any node's.
    environment = os.environ | {"NATIVERT_ROOT": two.directory}
    again = subprocess.Popen([*CLI, "agent"], env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: alive(one) == [True] * 3, deadline_s=LONG, what="node-2 is there again")
        assert ok(one.root, "stop", "web")[0]["state"] == "CONFIGURED"
        down = command(fleet_root, "down")
        assert (down.returncode, down.stdout) == (0, f"{fleet_root}: 3 nodes removed\n")
        again.wait(LONG)
    finally:
        again.kill()
        again.wait()
    assert left_of(fleet_root, fleet) == []
    assert not fleet_root.exists()
    nothing = command(fleet_root, "down")
    assert (nothing.returncode, "no fleet is here" in nothing.stderr) == (3, True)


def fetched(node: Member) -> bool:
    """Whether the port that is published at 18080 answers in the namespace of a node."""
    probe = ["curl", "-s", "-o", "/dev/null", "-m", "5", "http://127.0.0.1:18080/GPL-3"]
    netns = named.open_named(node.netns)
    try:
        return inside(netns, lambda: subprocess.run(probe, check=False).returncode) == 0
    finally:
        os.close(netns)


@pytest.mark.parametrize("end", ["TERM", "down"])
def test_in_the_foreground_it_lasts_until_it_is_told_to_end(fleet_root: Path, end: str) -> None:
    environment = os.environ | {"NATIVERT_ROOT": str(fleet_root)}
    words = [*CLI, "up", "--nodes", "2"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout) for _ in range(5)]
        assert lines[0].startswith("2 nodes are up after ")
        assert lines[-1] == "Ctrl-C removes everything\n"
        fleet = plan.read(fleet_root)
        assert alive(fleet.nodes[0]) == [True, True]
        try:
            if end == "TERM":
                process.terminate()
            else:
                assert command(fleet_root, "down").returncode == 0
            assert process.wait(LONG) == 0
        finally:
            process.kill()
    assert left_of(fleet_root, fleet) == []


@pytest.mark.parametrize("when", ["at once", "agents"])
def test_what_a_killed_up_has_left_is_removed(fleet_root: Path, when: str) -> None:
    environment = os.environ | {"NATIVERT_ROOT": str(fleet_root)}
    words = [*CLI, "up", "--nodes", "2", "-d"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        until(lambda: plan.there(fleet_root), deadline_s=LONG, what="the plan")
        fleet = plan.read(fleet_root)
        if when == "agents":
            log = fleet.nodes[1].root / "agent.log"
            until(log.exists, deadline_s=LONG, what="the last agent begins")
        process.kill()
    down = command(fleet_root, "down")
    assert down.returncode == 0, down.stderr
    assert left_of(fleet_root, fleet) == []


@pytest.mark.parametrize("fault", ["a node", "an agent", "a signal"])
def test_an_up_that_fails_leaves_nothing(
    fleet_root: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    save = plan.save

    def saved(root: Path, fleet: Plan) -> None:
        plans.append(fleet)
        save(root, fleet)

    monkeypatch.setattr(plan, "save", saved)
    prepare = up._prepare

    def prepared(node: Member, *more: Any) -> None:
        if fault == "a node" and node.name == "node-2":
            raise OSError(28, "injected", node.directory)
        if fault == "a signal" and node.name == "node-2":
            raise KeyboardInterrupt
        prepare(node, *more)

    monkeypatch.setattr(up, "_prepare", prepared)
    if fault == "an agent":
        monkeypatch.setattr(up, "_CONFIG", "wrong = 1\n")
    kinds = {"a node": OSError, "an agent": NativertError, "a signal": KeyboardInterrupt}
    with pytest.raises(kinds[fault]) as failed:
        up.up(fleet_root, 2)
    if fault == "an agent":
        assert "its agent has ended" in str(failed.value)
        assert "wrong" in str(failed.value)
    assert left_of(fleet_root, plans[0]) == []


def test_what_is_no_fleet_is_left_alone(fleet_root: Path) -> None:
    (fleet_root / "node-1").mkdir(parents=True)
    (fleet_root / "node-1" / "mine").write_text("mine")
    refused = command(fleet_root, "up", "-d")
    assert (refused.returncode, "no fleet's" in refused.stderr) == (4, True)
    assert command(fleet_root, "down").returncode == 3
    assert (fleet_root / "node-1" / "mine").read_text() == "mine"


def test_nodes_in_other_namespaces_have_ports_of_their_own(tmp_path: Path, host: Any) -> None:
    claims = Claims(tmp_path / "host.json", tmp_path / "lock")
    ids = [open_identity(Paths(tmp_path / name), claims).id for name in ("a", "b")]
    port = [PortClaim(None, 8080, "tcp")]
    claims.claim_ports(ids[0], "one", port)
    with pytest.raises(NativertError, match="is published by"):
        claims.claim_ports(ids[1], "two", port)
    inside(host.netns(), lambda: claims.claim_ports(ids[1], "two", port))
    assert claims.ports(ids[0])["one"] == claims.ports(ids[1])["two"] == port
